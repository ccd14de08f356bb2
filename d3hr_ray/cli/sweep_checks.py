"""What jobs/sweep.py asks of its flags and of what lies in the run folder, before anything heavy is imported."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from d3hr_ray.cli.data_flags import test_data
from d3hr_ray.cli.distill_config import load_preset
from d3hr_ray.cli.sweep_axes import expand, timesteps
from d3hr_ray.cli.sweep_flags import SweepFlags, deciding, kept, resumed
from d3hr_ray.config import RunConfig, as_dict, differences, from_dict
from d3hr_ray.datasets.files import require_folder
from d3hr_ray.datasets.listing import open_source
from d3hr_ray.filesystems import absolute
from d3hr_ray.layout import RUN, sweep_flags_file
from d3hr_ray.methods.inputs import check_fit, read_model
from d3hr_ray.runs import varied_config
from d3hr_ray.store import Store


def open_sweep(flags: SweepFlags, typed: Collection[str] = ()) -> tuple[SweepFlags, Store]:
    """The flags, or with --resume the stored ones, and the run folder. `typed` are the flags that the user gave.

    Raises ValueError if there is none to resume, or no run and no word of what to make.
    """
    assert flags.run is not None
    require_folder("--run", flags.run)
    if "/" in flags.name or flags.name in (".", ".."):
        raise ValueError(f"--name {flags.name}: is the name of a folder in sweeps/; give one without /")
    store, file = Store(absolute(flags.run)), sweep_flags_file(flags.name)
    stored = store.read_json(file) if store.exists(file) and store.exists(RUN) else None
    if flags.resume:
        if stored is None:
            raise ValueError(f"--resume: {store.uri} has no sweep named {flags.name!r}; give its --name, or start one")
        return resumed(flags, stored, typed), store
    if stored is not None and deciding(stored) != deciding(kept(flags)):
        raise ValueError(
            f"--name {flags.name}: {store.uri} has another sweep of this name; give another --name (students and "
            "sets are shared all the same), or --resume to go on with that one"
        )
    if flags.preset is None and not store.exists(RUN):
        raise ValueError(
            f"--run {flags.run}: no run there (it has no run.json); check the path, make it with jobs/distill.py, or "
            "say with --preset what to make there"
        )
    _check(flags, store)
    return flags, store


def base_of(flags: SweepFlags, store: Store) -> RunConfig:
    """The config that the axes vary: the run's, or the preset's of a run that a sweep makes or made.

    Raises ValueError for a preset that is not the run's.
    """
    preset, stored = load_preset(flags.preset or "digits"), varied_config(store)
    if stored is None:
        return preset
    base = from_dict(stored)
    if flags.preset and (preset.data, preset.model.name) != (base.data, base.model.name):
        raise ValueError(f"--preset {flags.preset} is not what --run {store.uri} was made from; leave it out")
    if flags.preset and (changed := differences(_unswept(base, flags), _unswept(preset, flags))):
        raise ValueError(
            f"--preset {flags.preset} differs from --run {store.uri} ({'; '.join(changed)}): leave it out to vary the "
            "run's settings, or give another --run"
        )
    return base


def _unswept(config: RunConfig, flags: SweepFlags) -> dict[str, Any]:
    """The settings of a config that neither an axis nor the machine replaces."""
    plain = as_dict(replace(config, seed=0))
    plain |= {"data": None, "model": None, "search": {**plain["search"], "ipc": None}}
    plain["inversion"] |= {"batch_size": None}
    axes = {
        "inversion": {"timesteps": flags.timesteps, "guidance": flags.inversion_guidance},
        "search": {name: getattr(flags, name) for name in ("candidates", "components", "rank")},
        "synthesis": {"guidance": flags.guidance or flags.matched},
    }
    axes["search"]["method"] = flags.search
    for section, fields in axes.items():
        plain[section] |= {name: None for name, given in fields.items() if given}
    if flags.search:
        plain["search"]["candidates"] = None
    return plain | ({"method": None} if flags.method else {})


def _check(flags: SweepFlags, store: Store) -> None:
    """Raise ValueError for real images that cannot be opened, for settings that no set can have, and for a timestep
    that the sampler does not have."""
    base, data = base_of(flags, store), test_data(flags)
    if data is None and not base.data.uri:
        raise ValueError("--data is needed: real images to test on; the run has none")
    if data is not None:
        open_source(data)
    wanted = replace(base, inversion=replace(base.inversion, timesteps=timesteps(flags, base)))
    expand(flags, base)
    check_fit(wanted, *read_model(wanted, planning=False))
