"""What all benchmarks share: both sides of a ratio in turns, a result with its machine, a table for people."""

import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Clock = Callable[[], float]
CPU: Clock = time.process_time  # for single-threaded work: other people's load on the machine does not count
WALL: Clock = time.perf_counter


@dataclass(frozen=True)
class Result:
    """`ratios` are what the benchmark is for; `rows` the measurements behind them; `notes` say what limits them."""

    name: str
    ratios: dict[str, float]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    command: str = field(default_factory=lambda: " ".join(["python", *sys.argv]))

    def __str__(self) -> str:
        head = [f"{self.name} on {self.machine['summary']}", f"command: {self.command}"]
        lines = [*head, *table(self.rows), "", "ratios:"]
        lines += [f"  {key:<32} {value:.4g}" for key, value in self.ratios.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def in_turns(sides: Mapping[str, Callable[[], Any]], repeats: int, clock: Clock = CPU) -> dict[str, list[float]]:
    """Seconds of each side, measured a, b, a, b, ... so that a change of load meets both; one untimed turn first."""
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = clock()
            side()
            seconds[name].append(clock() - start)
    return seconds


def in_turns_apart(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds as of `in_turns`, one thread, each side in a process of its own that lives through all turns.

    So what one side leaves behind in its process (settings of the allocator, warm caches) does not help another.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        alone = partial(ProcessPoolExecutor, 1, context, torch.set_num_threads, (1,))
        pools = {name: stack.enter_context(alone()) for name in sides}
        turns = [
            {name: pools[name].submit(_cpu_seconds, side).result() for name, side in sides.items()}
            for _ in range(1 + repeats)
        ]
    return {name: [turn[name] for turn in turns[1:]] for name in sides}


def _cpu_seconds(side: Callable[[], Any]) -> float:
    start = CPU()
    side()
    return CPU() - start


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over turns of above / below."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_mb() -> float:
    """Peak memory of this process in MB (Linux). ru_maxrss of a new process starts at its parent's; VmHWM does not."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows => aligned lines under one header; a row without a column leaves it blank."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(key, "")) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine() -> dict[str, Any]:
    """CPU, memory, GPU, versions and the load average: without them a number says nothing."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores, load = os.cpu_count(), os.getloadavg()[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = _cpu_name()
    words = f"{cores} cores of {cpu}, {memory:.0f} GiB, {gpu or 'no GPU'}"
    return {
        "summary": f"{words}, load {load:.1f}, torch {torch.__version__}",
        "cpu": cpu,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpu": gpu,
        "load_average": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
