"""Solvers of diffusers in the shape of ours (numerics/solvers.py), to measure ours beside them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DPMSolverMultistepInverseScheduler, DPMSolverMultistepScheduler

from d3hr_ray.numerics.ddim import Denoise, ddim_step
from d3hr_ray.numerics.schedule import Schedule


@dataclass(frozen=True)
class DpmSolver:
    """DPM-Solver, second order, multistep (Lu et al., 2022), which predicts noise as DDIM does.

    `karras` spaces its noise levels as Karras et al. (2022, eq. 5) do, else timesteps are even. A walk has as many
    evaluations as ours on the same schedule up to the same t, and ends at t exactly: diffusers is given the schedule
    only up to t, since it knows no walk that ends in the middle. With more than about 50 of Karras' levels some share a
    timestep, and diffusers' walk goes astray.
    """

    karras: bool = False

    def invert(
        self, denoise: Denoise, latents: torch.Tensor, schedule: Schedule, timesteps: Iterable[int]
    ) -> dict[int, torch.Tensor]:
        """latents => {t: noised latents}, a walk of its own for each t."""
        made = {}
        for t in timesteps:
            solver = self._solver(DPMSolverMultistepInverseScheduler, schedule, t)
            made[t] = _walk(solver, schedule.position(t) + 1, denoise, latents)
        return made

    def sample(self, denoise: Denoise, noised: torch.Tensor, schedule: Schedule, start: int) -> torch.Tensor:
        """Noised latents at t = start => latents; the last step, from t = 0, is DDIM's, as ours is."""
        solver = self._solver(DPMSolverMultistepScheduler, schedule, start, final_sigmas_type="sigma_min")
        x = _walk(solver, schedule.position(start), denoise, noised)
        return ddim_step(x, denoise(x, 0).float(), schedule.alpha(0), schedule.final_alpha)

    def _solver(self, kind: Any, schedule: Schedule, top: int, **more: str) -> Any:
        return kind(
            num_train_timesteps=top + 1,
            trained_betas=_betas(schedule)[: top + 1].tolist(),
            algorithm_type="dpmsolver",
            use_karras_sigmas=self.karras,
            **more,
        )


def _walk(solver: Any, steps: int, denoise: Denoise, x: torch.Tensor) -> torch.Tensor:
    solver.set_timesteps(steps)
    for t in solver.timesteps:
        x = solver.step(denoise(x, int(t)), t, x, return_dict=False)[0]
    return x


def _betas(schedule: Schedule) -> torch.Tensor:
    """The noise of each training step (T,), whose cumulative product is the schedule's."""
    alphas = schedule.alphas_cumprod
    return 1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])
