"""What a training run or a check is doing, told by whoever works to whoever shows it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

SHOWN = 0.5  # seconds between two states of a phase: a loss on a GPU costs a wait for it


@dataclass(frozen=True)
class State:
    """`done` of the `total` units of a phase; `loss` may be a tensor until somebody looks at it."""

    phase: str
    done: int
    total: int
    unit: str
    loss: Any = None


Tell = Callable[[State], None]


def silent(state: State) -> None:
    """Tell nobody."""


@dataclass
class Seldom:
    """Passes states on: of each phase the first, the last and one every few seconds; the loss as a number."""

    tell: Tell
    seconds: float = SHOWN
    phase: str = ""
    told: float = field(default_factory=time.monotonic)

    def __call__(self, state: State) -> None:
        """A state, from whoever works."""
        now = time.monotonic()
        if state.phase != self.phase or state.done == state.total or now - self.told >= self.seconds:
            self.phase, self.told = state.phase, now
            self.tell(replace(state, loss=None if state.loss is None else float(state.loss)))
