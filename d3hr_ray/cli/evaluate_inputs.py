"""What jobs/evaluate.py compares: sets, real images, baselines and teachers, as its flags ask."""

from collections.abc import Sequence
from dataclasses import fields, replace

from d3hr_ray.cli.evaluate_checks import real_data, wants_training
from d3hr_ray.cli.evaluate_flags import DEFAULT_BASELINES, EvaluateFlags
from d3hr_ray.config import DataConfig, fingerprint
from d3hr_ray.datasets.listing import Listing, open_source
from d3hr_ray.evaluation.baselines import baseline_sets, full_set, read_full
from d3hr_ray.evaluation.comparison import Comparison, leading, list_train, open_comparison, with_sets
from d3hr_ray.evaluation.recipes import Overrides, Recipe
from d3hr_ray.evaluation.schedule import check_teachers, launch
from d3hr_ray.evaluation.trials import Trial, make_trial
from d3hr_ray.layout import student_folder, teacher_folder
from d3hr_ray.models.teachers import CARD, resolve, teacher_id
from d3hr_ray.runtime.capacity import Workers
from d3hr_ray.runtime.console import announce, tell
from d3hr_ray.runtime.objects import Held
from d3hr_ray.store import Store


def open_all(flags: EvaluateFlags) -> tuple[Comparison, Listing | None, Held | None]:
    """The comparison, the training listing if anything needs it, and the full training set if anything needs that."""
    glyphs = {"yes": True, "no": False}.get(flags.glyphs)
    recipe = Recipe(
        overrides=Overrides(**{f.name: getattr(flags, f.name) for f in fields(Overrides)}),
        full_epochs=flags.full_epochs,
        weighted=flags.weights,
        precision=flags.precision,
    )
    data, train = real_data(flags)
    comparison = open_comparison(flags.distilled, data, flags.image_size, flags.arch, glyphs, recipe, flags.protocol)
    tell(comparison.notes)
    whole = flags.full or flags.ranking or "train" in flags.teacher
    coresets = [name for name in flags.baselines if name not in ("real-random", "none")]
    if not wants_training(flags) and ("none" in flags.baselines or _lacks_training(flags, comparison, train)):
        return comparison, None, None
    listing = list_train(comparison, train)
    tell(listing.notes)
    if not (whole or coresets):
        return comparison, listing, None
    asked = {"--teacher train": "train" in flags.teacher, "--full": flags.full, "--ranking": flags.ranking}
    reason = f"--baselines {coresets[0]}" if coresets else next(flag for flag, on in asked.items() if on)
    return comparison, listing, read_full(listing, comparison.test.side, comparison.test.classes, reason)


def _lacks_training(flags: EvaluateFlags, comparison: Comparison, train: DataConfig | None) -> bool:
    """Whether the default baseline is left out, which is said: there are no training images to draw it from."""
    source = train or leading(comparison.sets).source
    try:
        if source and open_source(source):
            return False
        why = f"{flags.distilled[0]} does not say what it was distilled from"
    except ValueError as error:
        why = str(error).replace("--data ", "the images it was distilled from, ", 1)
    announce(f"no random real images beside the sets ({why}); give --train-data for them")
    return True


def make_teachers(
    flags: EvaluateFlags, store: Store, comparison: Comparison, full: Held | None, workers: Workers
) -> tuple[tuple[str, ...], float | None]:
    """Teachers by name, the one of `train` trained first, and their top-1 on the test images. None for hard labels.

    Raises RunError for a teacher near chance.
    """
    if not flags.teacher:
        return (), None
    names = tuple(map(resolve, flags.teacher))
    if flags.teacher == ("train",):
        assert full is not None
        names = (_train_teacher(flags, store, comparison, full, workers),)
    return names, judge_teachers(names, comparison, workers)


def judge_teachers(names: tuple[str, ...], comparison: Comparison, workers: Workers) -> float:
    """Top-1 of the teachers together on the test images; each alone must be far from chance. Raises RunError."""
    for name in names if len(names) > 1 else ():
        check_teachers((name,), comparison.target, comparison.test, workers)
    top1 = check_teachers(names, comparison.target, comparison.test, workers)
    announce(f"teacher {teacher_id(names)}: {top1:.1%} on the test images")
    return top1


def _train_teacher(flags: EvaluateFlags, store: Store, comparison: Comparison, full: Held, workers: Workers) -> str:
    """Train a teacher on the full training set, once per set, architecture and protocol; return its folder."""
    side = comparison.test.side
    arch = flags.teacher_arch or ("convnet-d3-w32" if side <= 32 else "resnet18-small" if side <= 64 else "resnet18")
    whole = full_set(full)
    was = comparison.recipe
    longer = Overrides(epochs=flags.teacher_epochs)
    plain = replace(comparison, recipe=Recipe(was.glyphs, was.full_epochs, longer, upright=was.upright))
    protocol = plain.protocol("teacher", whole, arch)
    folder = store.at(teacher_folder(f"{arch}-{fingerprint(whole.set_hash, protocol)[:8]}")).uri
    if not Store(folder).exists(CARD):
        trial = make_trial(whole, arch, protocol, 0, (), None, (comparison.data, comparison.test.digest), keep=folder)
        launch(
            store, [trial], {whole.set_hash: full}, comparison.test, comparison.target, workers, {}, f"teacher {arch}"
        )
    return folder


def add_baselines(
    flags: EvaluateFlags, comparison: Comparison, listing: Listing | None, full: Held | None
) -> Comparison:
    """The comparison with real images beside it."""
    names = [name for name in flags.baselines or DEFAULT_BASELINES if name != "none"]
    more = (
        baseline_sets(comparison.sets, comparison.test, names, listing, full, flags.repeats)
        if listing is not None
        else []
    )
    if flags.full or flags.ranking:
        assert full is not None
        more.append(full_set(full))
    return with_sets(comparison, more)


def protocols(flags: EvaluateFlags) -> list[str]:
    """The protocols to train under; DD-Ranking's scores need three."""
    asked = [*flags.protocol, *(("hard", "fixed-soft", "fixed-soft-noaug") if flags.ranking else ())]
    return list(dict.fromkeys(asked))


def students(flags: EvaluateFlags, store: Store, comparison: Comparison, teachers: tuple[str, ...]) -> list[Trial]:
    """Every student to train, with --keep-students as trials that keep their networks."""
    names = teacher_id(teachers) if teachers else None
    trials = comparison.trials(flags.arch, protocols(flags), flags.repeats, teachers, names)
    return [kept_at(store, trial) for trial in trials] if flags.keep_students else trials


def kept_at(store: Store, trial: Trial) -> Trial:
    """A trial whose network is to be kept: if it has a record but no network, it is trained again."""
    return replace(trial, keep=store.at(student_folder(trial.arch, trial.key)).uri)


def kept_lines(trials: Sequence[Trial]) -> list[str]:
    """Where networks were kept, a line for each that was."""
    kept = {t.keep: t for t in trials if t.keep}
    return [f"kept: {t.keep} ({_named(t)})" for t in kept.values()]


def _named(trial: Trial) -> str:
    about = dict(trial.about)
    return f"{about['set']}, set seed {about['set_seed']}; protocol {trial.protocol.name}, repeat {trial.seed}"
