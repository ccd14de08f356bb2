"""One optimisation loop for both phases: AdamW, warm-up and cosine, averaged weights, resumable at every checkpoint."""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from d3hr_ray.config import RunError
from d3hr_ray.pretraining.settings import SCRATCH, Phase
from d3hr_ray.pretraining.state import State, Tell, silent
from d3hr_ray.store import Store

Inputs = tuple[torch.Tensor, ...]
Row = dict[str, float | str]


@dataclass
class Progress:
    """What a checkpoint holds besides the weights: steps done, and the curve so far, a row per `log_every` steps."""

    step: int = 0
    curve: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """How a phase runs: its settings, where it saves, and whom it tells. Rank 0 alone writes."""

    name: str
    phase: Phase
    store: Store
    log_every: int
    checkpoint_every: int
    device: torch.device
    rank: int = 0
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    report: Callable[[Row], None] = lambda row: None
    tell: Tell = silent

    @property
    def file(self) -> str:
        """The checkpoint's name; one file, replaced whole."""
        return f"{SCRATCH}/{self.name}.pt"

    def run(self, objective: Any, inputs: Callable[[int], Iterator[Inputs]]) -> list[Row]:
        """Minimise the objective to the last step, then leave the averaged weights in it. Returns the curve.

        `inputs(step)` yields the objective's arguments from that step on.
        """
        objective.to(self.device)
        trained = objective.trained
        average = {name: value.detach().clone() for name, value in trained.state_dict().items()}
        optimizer = torch.optim.AdamW(
            trained.parameters(), lr=self.phase.lr, betas=(0.9, 0.99), weight_decay=self.phase.weight_decay
        )
        progress = self._load(trained, average, optimizer)
        module = self.wrap(objective)
        title = f"{self.name} of {sum(p.numel() for p in trained.parameters()):,} parameters"
        self.tell(State(title, progress.step, self.phase.steps, "step"))  # the first images may take a while
        sums: dict[str, Any] = {}
        steps = range(progress.step, self.phase.steps)
        for step, batch in zip(steps, inputs(progress.step), strict=False):
            losses = self._step(module, trained, optimizer, step, batch)
            _average(average, trained.state_dict(), min(self.phase.ema, (1 + step) / (10 + step)))
            sums = {name: sums.get(name, 0.0) + value.double() for name, value in losses.items()}
            progress.step = step + 1
            loss = sums["loss"] / self._counted(progress)
            self.tell(State(title, progress.step, self.phase.steps, "step", loss))
            if progress.step % self.log_every == 0 or progress.step == self.phase.steps:
                self._log(progress, sums)
                sums = {}
            if progress.step % self.checkpoint_every == 0 or progress.step == self.phase.steps:
                self._save(progress, trained, average, optimizer)
        trained.load_state_dict(average)
        return progress.curve

    def _step(
        self, module: nn.Module, trained: nn.Module, optimizer: torch.optim.Optimizer, step: int, batch: Inputs
    ) -> dict[str, torch.Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = self.phase.lr * rate(step, self.phase)
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            losses: dict[str, torch.Tensor] = module(*(tensor.to(self.device) for tensor in batch))
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def _log(self, progress: Progress, sums: dict[str, Any]) -> None:
        row: Row = {"phase": self.name, "step": progress.step}
        row |= {name: float(total) / self._counted(progress) for name, total in sums.items()}
        progress.curve.append(row)

    def _counted(self, progress: Progress) -> int:
        """The steps whose losses are summed: those since the curve's last row."""
        return (progress.step - 1) % self.log_every + 1

    def _save(
        self, progress: Progress, trained: nn.Module, average: dict[str, Any], optimizer: torch.optim.Optimizer
    ) -> None:
        if not all(math.isfinite(float(v)) for k, v in progress.curve[-1].items() if k != "phase"):
            raise RunError(
                f"pretraining {self.name}: the loss is not finite at step {progress.step}; lower its --{self.name}-lr"
            )
        if self.rank == 0:
            data = io.BytesIO()
            state = {"model": trained.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": progress.step, "curve": progress.curve}, data)
            self.store.write_bytes(self.file, pa.py_buffer(data.getbuffer()))
        self.report(progress.curve[-1])

    def _load(self, trained: nn.Module, average: dict[str, Any], optimizer: torch.optim.Optimizer) -> Progress:
        if not self.store.exists(self.file):
            return Progress()
        state = torch.load(io.BytesIO(self.store.read_bytes(self.file)), map_location=self.device, weights_only=True)
        trained.load_state_dict(state["model"])
        average.update(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        return Progress(state["step"], state["curve"])


def rate(step: int, phase: Phase) -> float:
    """The share of the peak learning rate at a step: linear warm-up times a half cosine that ends at 0."""
    return min(1.0, (step + 1) / phase.warmup) * 0.5 * (1 + math.cos(math.pi * step / phase.steps))


@torch.no_grad()
def _average(average: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], decay: float) -> None:
    for name, mean in average.items():
        if mean.is_floating_point():
            mean.lerp_(weights[name], 1 - decay)
        else:
            mean.copy_(weights[name])
