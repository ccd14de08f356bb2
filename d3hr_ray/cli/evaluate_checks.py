"""What jobs/evaluate.py asks of paths and of what lies there, before anything heavy is imported."""

from collections.abc import Sequence
from dataclasses import replace

from d3hr_ray.cli.data_flags import data_of, test_data
from d3hr_ray.cli.evaluate_flags import EvaluateFlags
from d3hr_ray.cli.outputs import lies_among
from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.files import require_folder
from d3hr_ray.datasets.listing import is_parquet, open_source
from d3hr_ray.datasets.splits import held_out_of
from d3hr_ray.evaluation.sets import check_weights, find_sets, images_of, run_of, source_of
from d3hr_ray.filesystems import absolute
from d3hr_ray.store import Store


def find_out(flags: EvaluateFlags) -> Store:
    """Where results go: --out, or the run folder that the first set lies in.

    Raises ValueError for a path with nothing in it, for weights that no set has, or once for all that is missing.
    """
    if flags.out:
        require_folder("--out", flags.out)
    sets = find_sets(flags.distilled)
    if flags.weights:
        check_weights(sets)
    first = sets[0]
    for flag, data in zip(("--data", "--train-data"), real_data(flags), strict=True):
        if data:
            _check(flag, data)
    run, source = run_of(first), next(filter(None, map(source_of, sets)), None)
    missing = []
    if not flags.out and run is None:
        missing.append("--out FOLDER, for the results: the set lies in no run folder")
    if not flags.data and (source is None or held_out_of(source) is None):
        missing.append("--data URI, real test images of its classes: only those of digits and idx sets are known")
    if (asked := wants_training(flags)) and not flags.train_data and source is None:
        missing.append(f"--train-data URI, real training images, for {asked}")
    if missing:
        raise ValueError(f"{flags.distilled[0]} needs more: {'; '.join(missing)}")
    if flags.out:
        _require_beside(flags, flags.out, sets)
    return Store(absolute(flags.out)) if flags.out else run or first


def _require_beside(flags: EvaluateFlags, out: str, sets: Sequence[Store]) -> None:
    """Raise ValueError for results among images that are read, where another time they would count as images."""
    real = [(flag, data.uri) for flag, data in zip(("--data", "--train-data"), real_data(flags), strict=True) if data]
    for flag, uri in [*real, *(("--distilled", images_of(store).uri) for store in sets)]:
        if lies_among(out, uri):
            raise ValueError(f"--out {out} lies among the images of {flag} {uri}; give a folder beside them")


def real_data(flags: EvaluateFlags) -> tuple[DataConfig | None, DataConfig | None]:
    """The sources of --data and --train-data. Where one of the two is Parquet, column flags are of that alone."""
    test = test_data(flags)
    train = data_of(flags, flags.train_data, format="auto") if flags.train_data else None
    if not (test and train and (test.image_column or test.label_column)):
        return test, train
    test_has, train_has = is_parquet(test), is_parquet(train)
    if test_has == train_has:
        return test, train
    return (test, _without_columns(train)) if test_has else (_without_columns(test), train)


def _without_columns(data: DataConfig) -> DataConfig:
    return replace(data, image_column=None, label_column=None)


def wants_training(flags: EvaluateFlags) -> str | None:
    """The flag, if there is one, that asks for training images; the default baseline does without."""
    asked = [f"--baselines {name}" for name in flags.baselines if name != "none"]
    asked += ["--teacher train"] if "train" in flags.teacher else []
    asked += [flag for flag, on in (("--full", flags.full), ("--ranking", flags.ranking)) if on]
    return asked[0] if asked else None


def _check(flag: str, data: DataConfig) -> None:
    try:
        open_source(data)
    except ValueError as error:
        raise ValueError(str(error).replace("--data ", f"{flag} ", 1)) from error
