"""A comparison: distilled sets, the baselines they must beat, and the trials that show which is worth more.

Classes are matched by name, never by position: most reports of chance accuracy are a wrong class order, as in
LINs-lab/RDED's issues 3, 4 and 6.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.digits import Digits
from d3hr_ray.datasets.idx import IdxImages
from d3hr_ray.datasets.imagefolder import ImageFolder
from d3hr_ray.datasets.images import Loadable
from d3hr_ray.datasets.listing import ClassMismatch, Listing, list_images, open_source
from d3hr_ray.datasets.look import SHOWN, STORED, Look
from d3hr_ray.datasets.normalisation import are_digits
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.datasets.splits import held_out_of
from d3hr_ray.evaluation.baselines import DRAWN
from d3hr_ray.evaluation.numbered import in_order, is_numbered, named_by, numbered_note
from d3hr_ray.evaluation.protocols import Protocol, Setting, sees_whole
from d3hr_ray.evaluation.recipes import Recipe
from d3hr_ray.evaluation.sets import DistilledSet, check_weights, find_sets, image_side, images_of, load_set
from d3hr_ray.evaluation.training import check_batches
from d3hr_ray.evaluation.trials import Trial, make_trial
from d3hr_ray.models.students import build_on_meta
from d3hr_ray.models.teachers import Target
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.objects import Held, hold, require_room
from d3hr_ray.runtime.tasks import ray_map
from d3hr_ray.store import Store

MADE_FROM = "what the sets were made from"


@dataclass(frozen=True)
class Comparison:
    """What is compared on which test images, whose digest names them in every result; it holds no image.

    `notes` are what people should hear of the test images' source, and of the sets.
    """

    sets: tuple[DistilledSet, ...]
    test: Held
    data: str
    recipe: Recipe
    notes: tuple[str, ...] = ()

    @property
    def target(self) -> Target:
        """What a teacher must label."""
        return Target(self.test.classes, leading(self.sets).wnids, self.test.side)

    def images(self) -> dict[str, Loadable]:
        """The sets that workers need, by key."""
        return {found.key: found.images for found in self.sets}

    def setting(self, found: DistilledSet, arch: str) -> Setting:
        """What the constants of a protocol depend on."""
        classes = self.test.classes
        return Setting(arch, self.test.side, found.about["ipc"], len(classes), are_digits(classes))

    def protocol(self, name: str, found: DistilledSet, arch: str) -> Protocol:
        """A protocol for a set; the full set is seen fewer times."""
        made, most = self.recipe.make(name, self.setting(found, arch)), self.recipe.full_epochs
        own = self.recipe.overrides.epochs is not None
        if found.about.get("method") == "real-full" and made.steps is None and made.epochs > most and not own:
            made = replace(made, epochs=most, version=f"{made.version}+epochs={most}")
        return made

    def trials(
        self,
        archs: Sequence[str],
        protocols: Sequence[str],
        repeats: int,
        teachers: tuple[str, ...],
        teacher: str | None,
    ) -> list[Trial]:
        """Every set x student x protocol x repeat. Baselines that were drawn anew for each repeat are trained once.

        Equal sets of different settings give trials with one key, and one record, that name different settings.

        Raises ValueError for a student that cannot train on a set.
        """
        found: dict[tuple[str, str], Trial] = {}
        tested = (self.data, self.test.digest)
        for each in self.sets:
            drawn = each.about.get("method") in DRAWN
            for arch in archs:
                for name in protocols:
                    protocol = self.protocol(name, each, arch)
                    check_batches(len(each.images), protocol, arch)
                    for seed in range(1 if drawn else repeats):
                        trial = make_trial(each, arch, protocol, seed, teachers, teacher, tested)
                        found[trial.key, repr(trial.about)] = trial  # a set may be named twice
        return list(found.values())


def open_comparison(
    paths: tuple[str, ...],
    data: DataConfig | None,
    side: int | None,
    archs: Sequence[str],
    glyphs: bool | None,
    recipe: Recipe,
    protocols: Sequence[str] = (),
) -> Comparison:
    """Load sets and test images. `data` None means the test split of their own set, `side` None the sets' own.

    What is seen of test images is as the `protocols` have it; without any, their centre is.

    Raises ValueError for sets that do not belong together, for a test set without one of their classes, or if weights
    are asked for and no set has any.
    """
    margin = not sees_whole(protocols)
    stores = find_sets(paths)
    if recipe.weighted:
        check_weights(stores)
    side = side or _own_side(stores)
    for arch in archs:
        build_on_meta(arch, 10, side)
    loaded = [load_set(store, side) for store in stores]
    loaded, numbered = _numbers_named(loaded, stores, side, data)
    first = leading(loaded)
    sets = [_named_as(first, found, store, side) for found, store in zip(loaded, stores, strict=True)]
    source = first.source
    if data is None:
        data = held_out_of(source) if source else None
    if data is None:
        raise ValueError(
            "--data is needed: real test images of these classes (only those of digits and idx sets are known)"
        )
    listing = replace(list_real(data, first.images.classes, first.wnids), look=look_beside(sets))
    reading = replace(Reading.of(listing, first.images.classes, side), context=margin)
    require_room(f"--data {data.uri}", reading, "a smaller --image-size, or --data with fewer images")
    test = hold(reading.load)
    is_glyphs = isinstance(listing.source, Digits) if glyphs is None else glyphs
    upright = isinstance(listing.source, IdxImages) and are_digits(first.images.classes)
    recipe = replace(recipe, glyphs=is_glyphs, upright=upright)
    notes = (*listing.notes, *numbered, *(_without_weights(sets) if recipe.weighted else ()))
    return Comparison(tuple(hashed(sets)), test, data.uri, recipe, notes)


def leading(sets: Sequence[DistilledSet]) -> DistilledSet:
    """The set whose classes, and source of real images, are those of all: the first of ours, else the first."""
    return next((found for found in sets if found.source), sets[0])


def _numbers_named(
    sets: Sequence[DistilledSet], stores: Sequence[Store], side: int, data: DataConfig | None
) -> tuple[list[DistilledSet], list[str]]:
    """Sets that have but numbers for classes get those of a named set, or of `data`; and what to say of it.

    Of named sets only ImageNet's wnids have the order that numbers stand for.
    """
    named = [found for found in sets if not is_numbered(found)]
    first = leading(named or sets)
    if named and not first.wnids:
        return list(sets), []
    classes, order = first.images.classes, first.wnids or first.images.classes
    if not named and data is not None:
        classes = order = _classes_of(data, classes)
    found, notes = [], []
    for each, store in zip(sets, stores, strict=True):
        if is_numbered(each) and each.images.classes != classes and len(each.images.classes) == len(classes):
            notes.append(numbered_note(each, order))
            each = named_by(each, store, side, classes, order)
        found.append(each)
    return found, notes


def _classes_of(data: DataConfig, numbered: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of real images that numbers stand for: these themselves, or where there are none of them, all others.

    Raises ValueError if there are not as many, or if they lie in no folders: such data have numbers of their own.
    """
    try:
        return list_real(data, numbered, None).classes.sources
    except ValueError as error:
        mismatch = error.__cause__
        if not isinstance(mismatch, ClassMismatch) or set(mismatch.found) & set(numbered):
            raise
        if not isinstance(open_source(data), ImageFolder):
            raise
        if len(mismatch.found) != len(numbered):
            raise ValueError(
                f"--distilled: folders called {few(numbered)} are the data's classes in order, and --data {data.uri} "
                f"has {len(mismatch.found)}, not {len(numbered)}; give it these alone"
            ) from error
        return in_order(mismatch.found)


def _named_as(first: DistilledSet, other: DistilledSet, store: Store, side: int) -> DistilledSet:
    """A set with the classes of `first` in that order; folders of one that others made may spell them otherwise.

    Raises ValueError, with both lists, for a set that has other classes.
    """
    classes, own = first.images.classes, other.images.classes
    if own == classes:
        return other
    differ = f"--distilled {store.uri} and {first.name} differ in classes: {few(own)} and {few(classes)}"
    if other.source or len(own) != len(classes):
        raise ValueError(f"{differ} ({len(own)} classes and {len(classes)}); evaluate them separately")
    try:
        listing = list_real(DataConfig(images_of(store).uri, "imagefolder"), classes, first.wnids)
    except ValueError as error:
        why = str(error.__cause__ or error).replace("--classes ", "class ")
        raise ValueError(f"{differ} ({why}); evaluate them separately") from error
    return replace(other, images=Reading.of(listing, classes, side))


def _without_weights(sets: Sequence[DistilledSet]) -> list[str]:
    """A line on the sets, if there are any, that weights do nothing to."""
    plain = [found.name for found in sets if not found.weighting]
    return [f"--weights: {len(plain)} of {len(sets)} sets have none, such as {plain[0]}"] if plain else []


def hashed(sets: Sequence[DistilledSet]) -> list[DistilledSet]:
    """The sets with their hashes; where only the images can give one, a task reads them and keeps none."""
    unknown = [found.images for found in sets if not found.set_hash]
    surveys = iter(ray_map(lambda images: images.survey(), unknown))
    return [found if found.set_hash else _surveyed(found, *next(surveys)) for found in sets]


def _surveyed(found: DistilledSet, digest: str, notes: tuple[str, ...]) -> DistilledSet:
    for line in notes:
        LOG.warning(f"{found.name}: {line}")
    return replace(found, set_hash=digest)


def _own_side(stores: Sequence[Store]) -> int:
    """The side to evaluate sets at: their images', but 224 for the ImageNet sizes, as in all published protocols.

    Raises ValueError for sets of different sides: which of them is taken would decide on all accuracies.
    """
    sides = [min(image_side(store), 224) for store in stores]
    for store, side in zip(stores, sides, strict=True):
        if side != sides[0]:
            raise ValueError(
                f"--distilled {stores[0].uri} has images of {sides[0]} pixels and {store.uri} of {side}; "
                "give --image-size, at which the students of all shall see them"
            )
    return sides[0]


def with_sets(comparison: Comparison, more: Sequence[DistilledSet]) -> Comparison:
    """The same comparison with more sets in it."""
    return replace(comparison, sets=(*comparison.sets, *hashed(more)))


def list_train(comparison: Comparison, data: DataConfig | None) -> Listing:
    """The real training images: those named, else those that a set was distilled from. Raises ValueError."""
    first = leading(comparison.sets)
    source, flag = data or first.source, "--train-data" if data else f"--train-data (by default {MADE_FROM})"
    if source is None:
        raise ValueError("--train-data is needed: baselines and `--teacher train` need the real training images")
    return replace(list_real(source, first.images.classes, first.wnids, flag), look=look_beside(comparison.sets))


def list_real(
    data: DataConfig, classes: tuple[str, ...], wnids: tuple[str, ...] | None, flag: str = "--data"
) -> Listing:
    """Real images of a set's classes, labelled in the set's order; `flag` named their source.

    Raises ValueError for classes that differ, with both lists, or for one without images.
    """
    wanted = wnids or classes
    asked = replace(data, classes=tuple(wanted))
    each = ray_map if "://" in data.uri else thread_map
    count, names = (1000, None) if wnids else (len(classes), list(classes))
    try:
        listing = list_images(asked, count, names, each)
    except ClassMismatch as error:
        why = str(error).replace("--classes ", "class ")
        both = f"the set has {few(classes)}, the data {few(error.found)}"
        raise ValueError(f"{flag} {data.uri}: {both} ({why})") from error
    except ValueError as error:
        raise ValueError(str(error).replace("--data ", f"{flag} ", 1)) from error
    empty = [name for name, count in zip(wanted, listing.counts(), strict=True) if count == 0]
    if empty:
        raise ValueError(f"{flag} {data.uri}: no image of class {empty[0]!r}, which the set has")
    return listing


def look_beside(sets: Sequence[DistilledSet]) -> Look:
    """How the real images beside these sets are read: as the authors' code does where all of them are its."""
    fidelities = [str(found.about.get("fidelity", "")) for found in sets]
    return STORED if fidelities and all(name.startswith("official") for name in fidelities) else SHOWN


def few(names: Sequence[str]) -> str:
    """Names of classes in a line: all, or of many the first three and the last."""
    if len(names) <= 6:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, ..., {names[-1]} ({len(names)} classes)"
