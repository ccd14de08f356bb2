"""Commands of the documentation: where they stand, which are run, and whether the jobs know their flags."""

import importlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from conftest import ROOT

from d3hr_ray.cli.parsing import read
from d3hr_ray.config import RunConfig

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+?) -->\n\n?)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
FLAGS = {
    "jobs/distill.py": "d3hr_ray.cli.distill_flags.DistillFlags",
    "jobs/evaluate.py": "d3hr_ray.cli.evaluate_flags.EvaluateFlags",
    "jobs/sweep.py": "d3hr_ray.cli.sweep_flags.SweepFlags",
    "jobs/scores.py": "d3hr_ray.cli.scores_flags.ScoreFlags",
    "jobs/pretrain.py": "d3hr_ray.cli.pretrain_flags.PretrainFlags",
    "jobs/bench.py": "jobs.bench.BenchFlags",
    "d3hr_ray.results": "d3hr_ray.results.__main__.ResultsFlags",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `why` says why its commands are not run, if they are not."""

    page: Path
    line: int
    kind: str
    text: str
    why: str


def blocks(page: Path, kind: str = "bash") -> list[Block]:
    """The fenced blocks of a page that hold a language, in their order."""
    text = page.read_text()
    found = [
        Block(page, text[: m.start("text")].count("\n") + 1, m["kind"], m["text"], m["why"] or "")
        for m in FENCE.finditer(text)
    ]
    return [block for block in found if block.kind == kind]


def commands(text: str) -> Iterator[list[str]]:
    """Lines of a shell => the words of each command."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            cut = next((k for k, word in enumerate(words) if word in ("&&", "&", "|", ";")), len(words))
            if words[:cut]:
                yield words[:cut]
            words = words[cut + 1 :]


def check(words: list[str]) -> str:
    """Why a command cannot work, or nothing: a job's flags, make's targets, files that Python is given."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if words[1] in targets else f"make has no {words[1]}"
    words = [re.sub(r"^/.*/(?=jobs/)", "", word) for word in words]  # where an image of cluster/ has the repository
    job = next((k for k, word in enumerate(words) if word in FLAGS), None)
    if job is None:
        gone = [w for w in words if w.endswith(".py") and "/" in w and not (ROOT / w).is_file()]
        return f"{gone[0]} is not there" if gone else ""
    module, _, name = FLAGS[words[job]].rpartition(".")
    try:
        flags = read(getattr(importlib.import_module(module), name), words[job + 1 :])
        for variant in getattr(flags, "variants", ()):
            _vary(variant)
    except ValueError as error:
        return str(error)
    return ""


def _vary(variant: str) -> RunConfig:
    """A variant of the digits, which a run may have clustered near the images."""
    from d3hr_ray.cli.presets import PRESETS
    from d3hr_ray.cli.variants import vary

    base = PRESETS["digits"]()
    return vary(replace(base, inversion=replace(base.inversion, cluster_timestep=100)), variant)


def runnable(page: Path) -> list[Block]:
    """The blocks of shell and Python that a page does not mark as not run, in their order."""
    found = sorted([*blocks(page), *blocks(page, "python")], key=lambda block: block.line)
    return [block for block in found if not block.why]


def lay_out(folder: Path) -> None:
    """Make an empty folder look like a new checkout, with an environment: what runs write stays in it."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git"):
            (folder / path.name).symlink_to(path)


def run(block: Block, folder: Path) -> None:
    """A block's commands as a shell or Python takes them, in a folder that holds what the repository does."""
    program = ["bash", "-euo", "pipefail", "-c"] if block.kind == "bash" else ["python", "-c"]
    env = os.environ | {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    done = subprocess.run([*program, block.text], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.page.name}, line {block.line}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
