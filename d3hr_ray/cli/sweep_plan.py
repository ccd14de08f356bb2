"""What jobs/sweep.py asks for: the sets to make, and the students to train on them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from d3hr_ray.cli.data_flags import test_data
from d3hr_ray.cli.evaluate_inputs import judge_teachers
from d3hr_ray.cli.resolve import resolve_auto
from d3hr_ray.cli.sweep_axes import expand, timesteps
from d3hr_ray.cli.sweep_checks import base_of
from d3hr_ray.cli.sweep_flags import SweepFlags, kept
from d3hr_ray.datasets.classes import names_and_wnids
from d3hr_ray.evaluation.comparison import Comparison, list_real, open_comparison
from d3hr_ray.evaluation.protocols import Setting
from d3hr_ray.evaluation.recipes import Overrides, Recipe
from d3hr_ray.evaluation.trials import Trial
from d3hr_ray.layout import CLASSES, sweep_folder
from d3hr_ray.methods.guiding import seen_blocks
from d3hr_ray.methods.inputs import read_model
from d3hr_ray.methods.sweep import Sweep
from d3hr_ray.models.students import build_on_meta
from d3hr_ray.models.teachers import resolve, teacher_id
from d3hr_ray.report.tables import pools_text
from d3hr_ray.runs import stored_config
from d3hr_ray.runtime.actors import Actors, find_actors
from d3hr_ray.runtime.capacity import Ask, Workers, claim
from d3hr_ray.runtime.console import announce, tell
from d3hr_ray.sets import SetSpec, sets_of
from d3hr_ray.stages.choose import pools_table
from d3hr_ray.stages.judge import judge_ids
from d3hr_ray.store import Store


def plan_sweep(flags: SweepFlags, store: Store, patience: float = 0.0) -> Sweep:
    """Settle what the axes vary, the stored run's config or the preset's, and on which actors. Raises ValueError."""
    actors = find_actors(flags.actors, flags.gpus_per_actor, patience)
    base = resolve_auto(base_of(flags, store), stored_config(store), actors)
    sweep = Sweep(flags.name, store, base, timesteps(flags, base), expand(flags, base), actors, kept(flags))
    check_settings(flags, sweep)
    return sweep


def check_settings(flags: SweepFlags, sweep: Sweep) -> None:
    """Raise ValueError for settings that do not go together, before hours are spent on the first of them."""
    need = next((config.method for config in sweep.configs if config.fits), None)
    if need and not sweep.base.data.uri:
        raise ValueError(
            f"--method {need} needs images, and the run of --run {sweep.store.uri} has none: make one with "
            f"jobs/distill.py --method {need} --data, and sweep that"
        )
    if flags.weights and not any(spec.has_weights for config in sweep.configs for spec in sets_of(config)):
        raise ValueError("--weights needs sets of several components: give --components (ipc with --ipc above 1)")
    if (data := test_data(flags)) is not None and sweep.store.exists(CLASSES):
        list_real(data, *names_and_wnids(sweep.store.read_table(CLASSES)))
    card, _ = read_model(sweep.base, planning=False)
    seen_blocks(sweep.configs, card)
    side = sweep.base.synthesis.image_size or card.image_size
    for arch in flags.arch:
        build_on_meta(arch, card.num_classes, side)
        for protocol, changes in product(flags.protocol, overrides(flags)):
            Recipe(overrides=changes).make(protocol, Setting(arch, side, flags.ipc[0], card.num_classes))
    for name in flags.teacher:
        teacher_id((resolve(name),))
    for config in {config.cao2: config for config in sweep.configs if config.has_pool}.values():
        judge_ids(config)


def trial_gpus(flags: SweepFlags, actors: Actors, patience: float) -> float:
    """GPUs per student: as asked, else one where the actors have any. Raises ValueError if the cluster has none."""
    share = flags.gpus_per_trial
    if share is None and (actors.gpus or flags.gpus_per_actor is None):
        share = 1.0 if actors.gpus else 0.0
    return claim(Ask(None, share, "--at-once", "--gpus-per-trial"), patience)[0]


def overrides(flags: SweepFlags) -> list[Overrides]:
    """The product of the training hyperparameters."""
    axes = ("epochs", "lr", "weight_decay", "batch_size", "temperature")
    values = [getattr(flags, axis) or (None,) for axis in axes]
    return [Overrides(**dict(zip(axes, combination, strict=True))) for combination in product(*values)]


def write_pools(sweep: Sweep, sets: Mapping[str, SetSpec], classes: int) -> None:
    """Keep in pools.csv what the pools held that sets were chosen from, if any were."""
    pooled = [(uri, spec) for uri, spec in sets.items() if spec.config.has_pool]
    if pooled:
        table = pools_table(pooled, classes)
        sweep.store.write_csv(f"{sweep_folder(sweep.name)}/pools.csv", table)
        announce(pools_text(table))


def compare(
    flags: SweepFlags, sweep: Sweep, sets: Sequence[str], gpus: float
) -> tuple[Comparison, list[Trial], dict[tuple[str, ...], float | None]]:
    """The comparison, its trials under every combination of hyperparameters, and the teachers' top-1."""
    data = test_data(flags) or sweep.base.data
    recipe = Recipe(weighted=flags.weights, precision=flags.precision)
    comparison = open_comparison(tuple(sets), data, None, flags.arch, None, recipe, flags.protocol)
    tell(comparison.notes)
    teachers = tuple(map(resolve, flags.teacher))
    top1: dict[tuple[str, ...], float | None] = {}
    if teachers:
        top1[teachers] = judge_teachers(teachers, comparison, Workers(1, gpus))
    names = teacher_id(teachers) if teachers else None
    trials: list[Trial] = []
    for changes in overrides(flags):
        varied = replace(comparison, recipe=replace(comparison.recipe, overrides=changes))
        trials += varied.trials(flags.arch, flags.protocol, flags.repeats, teachers, names)
    return comparison, trials, top1
