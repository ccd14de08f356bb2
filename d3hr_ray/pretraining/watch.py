"""Progress bars of a training run: in the process that trains, or in the driver of workers elsewhere."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tqdm import tqdm

from d3hr_ray.beside import beside
from d3hr_ray.pretraining.settings import SCRATCH
from d3hr_ray.pretraining.state import Seldom, State, Tell
from d3hr_ray.runtime.progress import make_bar
from d3hr_ray.store import Store

FILE = f"{SCRATCH}/state.json"
POLL = 1.0, 10.0  # seconds between two writings or readings of the file: on disks, on object stores


@dataclass
class Bars:
    """A progress bar for the phase that was last told of; the one before stays as it ended."""

    bar: tqdm | None = None
    last: State | None = None

    def show(self, state: State) -> None:
        """Draw a state. A phase that starts again, as after a restart, gets a new bar."""
        if self.last is None or self.last.phase != state.phase or state.done < self.last.done:
            self.close()
            self.bar = make_bar(state.total, state.phase, state.unit, done=state.done)
        assert self.bar is not None
        self.last = state
        if state.loss is not None:
            self.bar.set_description(f"{state.phase}, loss {state.loss:.4g}", refresh=False)
        self.bar.update(state.done - self.bar.n)

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self.bar is not None:
            self.bar.close()
        self.bar = self.last = None


@contextlib.contextmanager
def showing() -> Iterator[Tell]:
    """Bars of what this process does."""
    bars = Bars()
    try:
        yield Seldom(bars.show)
    finally:
        bars.close()


def to_driver(store: Store) -> Tell:
    """For a worker that has no terminal: states go into a file of the run folder."""
    return Seldom(lambda state: store.write_json(FILE, asdict(state)), _poll(store))


@contextlib.contextmanager
def following(store: Store) -> Iterator[None]:
    """Bars of what a worker of this run folder tells by `to_driver`."""
    store.delete(FILE)
    with beside(_follow, store):
        yield


def _follow(store: Store, stop: threading.Event) -> None:
    bars, ended = Bars(), False
    while not ended:
        ended = stop.wait(_poll(store))
        with contextlib.suppress(OSError):  # nothing told yet, or storage that is away for a while
            bars.show(State(**store.read_json(FILE)))
    bars.close()


def _poll(store: Store) -> float:
    return POLL["://" in store.uri]
