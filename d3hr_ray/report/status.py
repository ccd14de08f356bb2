"""What a run folder has done and what is left, from its marks alone: no Ray, no network, no image is opened."""

from collections.abc import Callable
from dataclasses import dataclass

from d3hr_ray.config import RunConfig, from_dict
from d3hr_ray.layout import (
    CLASSES,
    GAUSSIANS,
    LATENTS,
    RUN,
    block_mark,
    candidate_file,
    finished,
    gaussian_file,
    manifest_file,
    subset_file,
)
from d3hr_ray.lock import describe, is_alive, read_holder
from d3hr_ray.runs import describe_lineage, read_run
from d3hr_ray.sets import SetSpec, sets_of
from d3hr_ray.stages.feature_kinds import feature_kind
from d3hr_ray.store import Store


@dataclass(frozen=True)
class Progress:
    """One stage, or one of its sets: `done` of `total` units."""

    stage: str
    done: int
    total: int
    unit: str

    def __str__(self) -> str:
        state = "done" if self.done >= self.total else ("to do" if not self.done else "under way")
        return f"{self.stage:<44} {self.done:>11,} of {self.total:>11,} {self.unit:<12} {state}"


def status(store: Store) -> str:
    """The run's state as text: who drives it, images per stage, what is left. Raises ValueError if there is no run."""
    if not store.exists(RUN):
        raise ValueError(f"--status {store.uri}: no run there (it has no run.json)")
    record = read_run(store)
    config = from_dict(record["config"])
    done = finished(store).values()
    rejected, inputs = sum(counts["rejected"] for counts in done), record["inputs"]
    reused, lineage = sum(counts.get("reused", 0) for counts in done), inputs.get("extends")
    inverted = sum(c["accepted"] + c["rejected"] for c in done) - reused
    steps = [] if lineage is None else [Progress("reuse", reused, lineage["reused"], "images")]
    steps += progress(store, config, inputs["images"] - (lineage["reused"] if lineage else 0), inverted)
    left = [f"{s.stage} {s.total - s.done:,} {s.unit}" for s in steps if s.done < s.total]
    lines = [
        f"{store.uri}: {config.method} ({config.fidelity}) of {config.data.uri}, seed {config.seed}",
        f"started {record['started']}, {_driver(store, record)}",
        *([] if lineage is None else [f"extends: {describe_lineage(lineage)}"]),
        *map(str, steps),
        f"rejected images: {rejected:,}",
        "left: " + ("; ".join(left) or "nothing"),
    ]
    return "\n".join(lines)


def progress(store: Store, config: RunConfig, images: int, inverted: int) -> list[Progress]:
    """Every stage that the run's method needs, in order. `images` are to be inverted, `inverted` are done with."""
    classes = len(store.read_table(CLASSES, ["label"])) if store.exists(CLASSES) else 0
    steps = []
    sets = sets_of(config)
    if any(spec.timestep is not None for spec in sets):
        if store.list(LATENTS) or not store.list(GAUSSIANS):  # a run --from-gaussians inverts nothing
            steps.append(Progress("invert", inverted, images, "images"))
        fitted = sum(store.exists(gaussian_file(t)) for t in config.inversion.timesteps)
        steps.append(Progress("fit", fitted, len(config.inversion.timesteps), "timesteps"))
    if config.refines and store.list(LATENTS):
        kind = feature_kind(config.refine)
        steps.append(Progress("features", kind.networks - len(kind.missing(store)), kind.networks, "networks"))
    for spec in sets:
        if config.has_pool:
            steps += [_blocks(store, "search", spec.pool, classes, subset_file)]
            steps += [_blocks(store, "judge", spec.pool, classes, candidate_file)]
        if config.method != "random":
            steps += [_blocks(store, "choose" if config.has_pool else "search", spec, classes, subset_file)]
            steps += [_blocks(store, "synthesize", spec, classes, block_mark)]
        published = store.exists(manifest_file(spec))
        steps.append(Progress(f"publish {spec.name}", int(published), 1, "set"))
    return steps


def _blocks(store: Store, stage: str, spec: SetSpec, classes: int, name: Callable[[SetSpec, int], str]) -> Progress:
    """How many images of a set lie in blocks whose file is there; one listing."""
    sizes = {name(spec, i).rpartition("/")[2]: len(b) * spec.ipc for i, b in enumerate(spec.blocks(classes))}
    there = store.list(name(spec, 0).rpartition("/")[0])
    return Progress(f"{stage} {spec.name}", sum(sizes.get(n, 0) for n in there), sum(sizes.values()), "images")


def _driver(store: Store, record: dict[str, object]) -> str:
    """Who drives the run now, or how it ended."""
    holder = read_holder(store)
    if holder is not None:
        return f"running: {describe(holder)}" if is_alive(store, holder) else f"killed: {describe(holder)}"
    return f"finished {record['finished']}" if record["finished"] else "stopped: the same command resumes it"
