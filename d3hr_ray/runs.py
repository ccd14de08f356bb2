"""What a run folder says of itself: run.json, written first, so that a rerun resumes the same run or is refused."""

import contextlib
import itertools
import logging
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from d3hr_ray import lock
from d3hr_ray.config import RunConfig, as_dict, differences, fingerprint, from_dict
from d3hr_ray.layout import INVERSIONS, OWN, RUN, SETS, recipe_file
from d3hr_ray.store import TEMP, Store

LOG = logging.getLogger("d3hr_ray")
LIBRARIES = ("d3hr-ray", "ray", "torch", "diffusers", "numpy", "pyarrow", "pillow")


class AnotherRun(ValueError):
    """A folder holds a run with another config: `changed` says in what; `free` is a folder beside it, not there yet."""

    def __init__(self, store: Store, changed: list[str]) -> None:
        self.store, self.changed = store, changed
        self.free = next(f.uri for n in itertools.count(2) if not (f := store.at(f"../{store.name}-{n}")).exists(""))
        self.what = f"--out {store.uri} holds a run with another config: {'; '.join(changed)}"
        super().__init__(f"{self.what}. Give --out {self.free}; --overwrite would delete the run in {store.uri}")


def open_run(
    store: Store,
    config: RunConfig,
    inputs: dict[str, Any],
    overwrite: bool = False,
    images: str = "",
    base: RunConfig | None = None,
) -> None:
    """Start a run folder, or resume it if its config and inputs are the same.

    `images` says how the files of the data differ from when the run began. `base` is what a sweep varies that starts
    the run: its own config may be one of several that the sweep makes. Raises ValueError with what differs, or if the
    folder holds something else.
    """
    had = overwrite and store.exists(RUN)
    if overwrite:
        clear(store)
    with contextlib.suppress(OSError):  # workers of a killed driver may still write there for a moment
        store.delete(TEMP)
    if store.exists(RUN):
        _same_run(store, config, inputs, images)
        return
    if not had:  # a log of one's own beside an earlier run stays there
        require_run(store, config)
    begun = {"started": _now(), "finished": None} | ({"base": as_dict(base)} if base else {})
    store.write_json(RUN, _record(config, inputs) | begun)


def require_run(store: Store, config: RunConfig) -> None:
    """Raise AnotherRun if the folder holds a run with another config, ValueError if it holds something else."""
    if store.exists(RUN):
        if changed := _changed(read_run(store), config):
            raise AnotherRun(store, changed)
    elif foreign := _foreign(store):
        raise ValueError(f"--out {store.uri} holds {foreign[0]} but no run.json; give an empty or new folder")


def clear(store: Store) -> None:
    """Delete what a run wrote. Raises ValueError if the folder is no run folder, so that nothing else is ever lost."""
    if _foreign(store) and not store.exists(RUN):
        raise ValueError(f"--overwrite: {store.uri} has no run.json, so it is no run folder; empty it yourself")
    for name in OWN:
        store.delete(name)


def _foreign(store: Store) -> list[str]:
    """What lies in a folder, but for the lock of the driver that asks and what a killed one was writing."""
    return [name for name in [*store.list(), *store.folders()] if name not in (lock.NAME, TEMP)]


def close_run(store: Store, summary: dict[str, Any]) -> None:
    """Record that the run is complete, with what it counted."""
    store.write_json(RUN, store.read_json(RUN) | {"finished": _now()} | summary)


def hide_reals(store: Store) -> None:
    """Record that no report shows a real image of the run: as it begins, lest one that is killed forgets it."""
    store.write_json(RUN, store.read_json(RUN) | {"real_images": False})


def stored_config(store: Store) -> dict[str, Any] | None:
    """The plain config of the run in a folder, if there is one."""
    return read_run(store)["config"] if store.exists(RUN) else None


def varied_config(store: Store) -> dict[str, Any] | None:
    """The plain config that sweeps of a run vary: its own, or what the sweep varied that made the run."""
    if not store.exists(RUN):
        return None
    record = read_run(store)
    base: dict[str, Any] = record.get("base") or record["config"]
    return base


def claim_recipe(store: Store, recipe: dict[str, Any]) -> None:
    """Record how a set is made. Raises ValueError if the folder has a set of that name from another recipe."""
    own = recipe["variant"]
    name = recipe_file(own)
    if not store.exists(name):
        store.write_json(name, recipe)
    elif changed := differences(store.read_json(name), recipe):
        raise ValueError(
            f"--out {store.uri}: {own} was made with another recipe ({'; '.join(changed)}); give another --out"
        )


def versions() -> dict[str, str]:
    """Versions that decide bytes."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def _record(config: RunConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    data = [config.fidelity, config.seed, inputs]
    stages = [("invert", config.model, config.inversion), ("search", config.search), ("synthesize", config.synthesis)]
    fingerprints = {}
    for name, *parts in stages:
        data = [*data, *(as_dict(p) for p in parts)]
        fingerprints[name] = fingerprint(data)
    return {
        "config": as_dict(config),
        "seed": config.seed,
        "inputs": inputs,
        "fingerprints": fingerprints,
        "versions": versions(),
    }


def _changed(old: dict[str, Any], config: RunConfig) -> list[str]:
    """In what a config differs from a record's."""
    # Through from_dict, so that a field that an older version did not have counts as its default.
    was, new = as_dict(from_dict(old["config"])), as_dict(config)
    for plain in (was, new):
        plain["data"].pop("max_rejected")  # a limit on the input, which changes no result
        if plain["data"].get("class_depth") == 1:  # which is what a source is read by where nothing speaks against it
            plain["data"].pop("class_depth")
    return differences(was, new)


def _same_run(store: Store, config: RunConfig, inputs: dict[str, Any], images: str) -> None:
    old = read_run(store)
    changed = _changed(old, config)
    if not changed and images and old["inputs"].get("listing") != inputs.get("listing"):
        raise ValueError(
            f"--data {config.data.uri}: {images}. --out {store.uri} was made from the images as they were: put them "
            "back, or give another --out, or --overwrite to start anew"
        )
    if changed := changed + differences(old["inputs"], inputs, "inputs."):
        raise AnotherRun(store, changed)
    if old.get("finished") is None:
        _tell_versions(store, old.get("versions", {}))


def _tell_versions(store: Store, began: dict[str, str]) -> None:
    """Warn of libraries that have other versions than when an unfinished run began: its bytes would be of both."""
    now = versions()
    changed = [f"{name} {was} -> {now[name]}" for name, was in began.items() if now.get(name, was) != was]
    if changed:
        LOG.warning(
            f"{store.uri} was begun with other versions ({', '.join(changed)}): what is finished stays, what is "
            "made now may differ from it by rounding. Install those versions, or give another --out"
        )


def read_run(store: Store) -> dict[str, Any]:
    """run.json. Raises ValueError if it is not a run's record."""
    record = store.read_json(RUN)
    if not isinstance(record, dict) or not {"config", "inputs"} <= record.keys():
        raise ValueError(f"{store.uri}/run.json is no run's record; restore it or use --overwrite")
    return record


def lineage_of(run: Store) -> dict[str, Any]:
    """What names a run that another one extends, whether its real images are private, and what it extends itself."""
    record = read_run(run)
    inputs = record["inputs"]
    older = {"extends": inputs["extends"]} if "extends" in inputs else {}
    private = {} if record.get("real_images", True) else {"real_images": False}
    return {"run": run.uri, "started": record["started"], "listing": inputs["listing"]} | private | older


def describe_lineage(lineage: Mapping[str, Any]) -> str:
    """In words: 900 images are taken from RUN, 397 are inverted; of its images 2 have changed and 3 are gone."""
    return (
        f"{lineage['reused']:,} images are taken from {lineage['run']}, {lineage['inverted']:,} are inverted; of its "
        f"images {lineage['changed']:,} have changed and {lineage['removed']:,} are gone"
    )


def base_of(run: Store) -> Store:
    """The run whose evaluations know a folder's sets: RUN for RUN/sets/<x> and RUN/inversions/<i>/sets/<x>.

    A run of its own may lie in a folder called sets or inversions, too.
    """
    if run.at("..").name == SETS and not run.exists(RUN):
        run = run.at("../..")
    if run.at("..").name == INVERSIONS and (not run.exists(RUN) or run.at("../..").exists(RUN)):
        run = run.at("../..")
    return run


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
