"""Baselines that cost no generator: real images at random, coresets, pixel k-means, the full set.

Each maps a class's real images to n of them (or to n centres); seeds are recorded with every result. To add one, name
it in Baseline and give its function to CHOOSERS.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from d3hr_ray.datasets.images import Images, nbytes
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.normalisation import is_grey
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.numerics.seeds import generator

if TYPE_CHECKING:  # Ray takes seconds to import: who names a baseline on a command line does without
    from d3hr_ray.runtime.objects import Held

Baseline = Literal["real-random", "herding", "k-center", "kmeans-real", "pixel-kmeans", "none"]
DRAWN = tuple(name for name in get_args(Baseline) if name != "none")  # for every repeat
ALIKE = ("herding", "k-center")  # whatever the seed


def random_rows(features: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    """n rows at random; the same draw as `jobs/distill.py --method random`, and nested in n."""
    return generator("reals", seed, label).permutation(len(features))[:n]


def herd(features: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    """Herding (Welling, 2009): greedily the row that brings the mean of the chosen nearest to the mean of all.

    Deterministic, whatever the seed, and nested in n.
    """
    rows = features.astype(np.float64)
    squares, target = (rows**2).sum(1), rows.mean(0)
    chosen, missing = list[int](), target.copy()  # what a next row must be for the mean of all
    for _ in range(n):
        distances = squares - 2 * rows @ missing  # squared, but for what all rows share
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
        missing += target - rows[chosen[-1]]
    return np.array(chosen)


def k_centers(features: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    """k-center greedy (Sener and Savarese, 2018): the row nearest to the mean, then each time the farthest from all.

    As deterministic and nested as herding. Theirs starts from a labelled pool; of none, the mean stands for it.
    """
    chosen = [int(np.linalg.norm(features - features.mean(0), axis=1).argmin())]
    nearest = np.linalg.norm(features - features[chosen[0]], axis=1)
    while len(chosen) < n:
        nearest[chosen] = -1.0  # equal images are chosen once each
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return np.array(chosen)


def centres(features: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    """k-means centres (n, F) of one class."""
    from sklearn.cluster import KMeans  # takes seconds to import

    state = int(generator("kmeans", seed, label).integers(2**31))
    found: np.ndarray = KMeans(n, n_init=4, random_state=state).fit(features).cluster_centers_
    return found


def nearest_to_centres(features: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    """The real image nearest to each k-means centre; one that is nearest to two counts for the nearer."""
    chosen: list[int] = []
    for centre in centres(features, n, seed, label):
        distances = np.linalg.norm(features - centre, axis=1)
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
    return np.array(chosen)


CHOOSERS: dict[str, Callable[[np.ndarray, int, int, int], np.ndarray]] = {
    "herding": herd,
    "k-center": k_centers,
    "kmeans-real": nearest_to_centres,
}


def make_baseline(name: str, real: Images, ipc: int, seed: int) -> Images:
    """A baseline of n images per class from the full training set, chosen by raw pixels.

    Raises ValueError if a class has fewer images.
    """
    _require(name, real.ipc, ipc)
    seen = real.pixels[..., :1] if is_grey(real.pixels) and name in CHOOSERS else real.pixels  # distances are in scale
    raw = seen.reshape(len(real), -1)
    pixels, labels = [], []
    for label in range(len(real.classes)):
        rows = np.flatnonzero(real.labels == label)
        if name == "pixel-kmeans":
            found = centres(raw[rows].astype(np.float32), ipc, seed, label)
            pixels.append(found.round().clip(0, 255).astype(np.uint8).reshape(-1, *real.pixels.shape[1:]))
        else:
            pixels.append(real.pixels[rows[CHOOSERS[name](raw[rows].astype(np.float32), ipc, seed, label)]])
        labels.append(np.full(ipc, label))
    return Images(np.concatenate(pixels), np.concatenate(labels).astype(np.int64), real.classes)


def random_set(listing: Listing, classes: tuple[str, ...], side: int, ipc: int, seed: int) -> Reading:
    """real-random: the images that are chosen, none of them read. Raises ValueError if a class has fewer."""
    _require("real-random", min(listing.counts()), ipc)
    chosen = [found[random_rows(found, ipc, seed, label)] for label, found in enumerate(listing.rows())]
    rows = np.concatenate(chosen)
    return Reading.of(listing, classes, side, rows)


def read_full(listing: Listing, side: int, classes: tuple[str, ...], flag: str) -> "Held":
    """All training images in memory, of a task and then of Ray's store. Raises ValueError if they are too many."""
    from d3hr_ray.runtime.objects import hold, require_room, warn_if_tight

    full = Reading.of(listing, classes, side)
    require_room(flag, full, "a smaller --image-size, a --train-data subset, or one of timm's teachers")
    warn_if_tight(f"{flag}: all training images", nbytes(full))
    return hold(full.load)


def full_set(full: "Held") -> DistilledSet:
    """All training images as a set; its `ipc` is the mean number of images per class."""
    about = {"method": "real-full", "ipc": len(full) // len(full.classes), "settings": full.digest[:8]}
    return DistilledSet("real-full", full, full.digest, 0, about)


def baseline_sets(
    sets: Sequence[DistilledSet],
    test: "Held",
    names: Sequence[str],
    listing: Listing,
    full: "Held | None",
    repeats: int,
) -> list[DistilledSet]:
    """Baselines at every IPC of the sets, drawn as often as the sets are: by seed and by repeat.

    Their `settings` are the training images: those of two sources share no mean.
    """
    from d3hr_ray.runtime.objects import hold

    source = listing.digest[:8]
    draws: dict[int, set[int]] = defaultdict(set)
    for found in sets:
        draws[found.about["ipc"]].add(found.set_seed)
    drawn = [
        (name, ipc, seed)
        for ipc, seeds in sorted(draws.items())
        for seed in range(max(repeats, len(seeds)))
        for name in names
    ]

    def make(which: tuple[str, int, int]) -> "Held | Reading":
        name, ipc, seed = which
        if name == "real-random":
            return random_set(listing, test.classes, test.side, ipc, seed)
        assert full is not None
        return hold(partial(make_baseline, name, ipc=ipc, seed=seed), full.ref)

    sources = {(name, ipc, seed): (name, ipc, 0 if name in ALIKE else seed) for name, ipc, seed in drawn}
    distinct = list(dict.fromkeys(sources.values()))
    made = dict(zip(distinct, thread_map(make, distinct), strict=True))

    def named(which: tuple[str, int, int]) -> DistilledSet:
        (name, ipc, seed), images = which, made[sources[which]]
        digest = "" if isinstance(images, Reading) else images.digest
        return DistilledSet(name, images, digest, seed, {"method": name, "ipc": ipc, "settings": source})

    return [named(which) for which in drawn]


def _require(name: str, there: int, ipc: int) -> None:
    if there < ipc:
        raise ValueError(f"--baselines {name}: a class has only {there} training images, fewer than {ipc}")
