"""How far students are: workers note the epochs of theirs in files, of which the driver makes one progress bar."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from d3hr_ray.evaluation.training import epochs, steps_per_epoch
from d3hr_ray.evaluation.trials import SCRATCH, Trial, note_seconds, untrained
from d3hr_ray.layout import RECORDS
from d3hr_ray.runtime.progress import counting
from d3hr_ray.store import Store


def counting_steps(store: Store, trials: Iterable[Trial], title: str) -> AbstractContextManager[None]:
    """A progress bar of the steps of all students, with how many of these are trained, wherever they are."""
    wanted = {t.key: t for t in trials}
    total = sum(_epochs(t) * _steps(t) for t in wanted.values())

    def count() -> tuple[int, str]:
        return count_steps(store, wanted)

    return counting(count, total, title, "step", note_seconds(store))


def count_steps(store: Store, wanted: dict[str, Trial]) -> tuple[int, str]:
    """Steps that are done, and in words how many of the students are: by their records, and notes of the others."""
    recorded, noted = ({n.removesuffix(".json") for n in store.list(folder)} for folder in (RECORDS, SCRATCH))
    trained = wanted.keys() & recorded
    steps = sum(_epochs(wanted[key]) * _steps(wanted[key]) for key in trained)
    steps += sum(_noted(store, wanted[key]) * _steps(wanted[key]) for key in (wanted.keys() & noted) - trained)
    return steps, f"{len(trained)} of {len(wanted)} students done"


def trained_already(store: Store, trials: Sequence[Trial]) -> str:
    """ ", all trained already" or ", 3 of them trained already", to be said after their number."""
    wanted = {t.key for t in trials}
    there = len(wanted) - len(untrained(store, trials))
    if not there:
        return ""
    return f", {'all' if there == len(wanted) else f'{there} of them'} trained already"


def _noted(store: Store, trial: Trial) -> int:
    """Epochs that a student in training has done; none if it has ended since its note was listed."""
    try:
        return int(store.read_json(trial.note)["epochs"])
    except FileNotFoundError:
        return 0


def _epochs(trial: Trial) -> int:
    return epochs(trial.protocol, dict(trial.about)["images"])


def _steps(trial: Trial) -> int:
    """Of an epoch."""
    images = dict(trial.about)["images"]
    return steps_per_epoch(images, min(images, trial.protocol.batch_size))
