"""jobs/evaluate.py on a cluster whose GPUs are only said to be there: its students train on the CPUs of GPU nodes."""

import os
from typing import Any

import ray
import ray.train.torch
import torch

from d3hr_ray.evaluation import schedule


def train_stripe(config: dict[str, Any]) -> None:
    """What a Ray Train worker does, told that its GPU is a CPU."""
    ray.train.torch.get_device = lambda: torch.device("cpu")
    schedule._train_stripe(config)


def main() -> None:
    """Connect so that workers find this file, then run the job."""
    import gpuless

    from d3hr_ray.cli.exits import guard
    from jobs import evaluate

    env = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    ray.init(os.environ["RAY_ADDRESS"], runtime_env=env, log_to_driver=False, logging_level="ERROR")
    evaluate.connect = lambda *_, **__: True  # a cluster, which may grow
    schedule._train_stripe = gpuless.train_stripe
    guard(evaluate.main)


if __name__ == "__main__":
    main()
