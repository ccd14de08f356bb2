"""Baselines that cost no generator: real images at random, coresets, pixel k-means, the full set.

Each maps a class's real images to n of them (or to n centres); seeds are recorded with every result.
"""

from collections.abc import Callable

import numpy as np

from d3hr_ray.datasets.listing import Listing
from d3hr_ray.evaluation.images import Images
from d3hr_ray.evaluation.sets import DistilledSet, read_listing
from d3hr_ray.numerics.seeds import generator


def random_rows(features: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    """n rows at random; the same draw as `jobs/distill.py --method random`, and nested in n."""
    return generator("reals", seed, label).permutation(len(features))[:n]


def herd(features: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    """Herding (Welling, 2009): greedily the row that brings the mean of the chosen nearest to the mean of all.

    Deterministic; `seed` only breaks ties, of which real images have none.
    """
    target, total = features.mean(0), np.zeros(features.shape[1])
    chosen: list[int] = []
    for k in range(n):
        distances = np.linalg.norm(target - (total + features) / (k + 1), axis=1)
        distances[chosen] = np.inf
        best = int(distances.argmin())
        chosen.append(best)
        total += features[best]
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


DRAWN = ("real-random", "herding", "kmeans-real", "pixel-kmeans")  # drawn anew for every repeat
CHOOSERS: dict[str, Callable[[np.ndarray, int, int, int], np.ndarray]] = {
    "herding": herd,
    "kmeans-real": nearest_to_centres,
}


def make_baseline(name: str, real: Images, ipc: int, seed: int) -> DistilledSet:
    """A baseline of n images per class from the full training set, chosen by raw pixels.

    Raises ValueError if a class has fewer images.
    """
    if real.ipc < ipc:
        raise ValueError(f"--baselines {name}: a class has {real.ipc} training images, fewer than {ipc}")
    raw = real.pixels.reshape(len(real), -1)
    pixels, labels = [], []
    for label in range(len(real.classes)):
        rows = np.flatnonzero(real.labels == label)
        if name == "pixel-kmeans":
            found = centres(raw[rows].astype(np.float32), ipc, seed, label)
            pixels.append(found.round().clip(0, 255).astype(np.uint8).reshape(-1, *real.pixels.shape[1:]))
        else:
            pixels.append(real.pixels[rows[CHOOSERS[name](raw[rows].astype(np.float32), ipc, seed, label)]])
        labels.append(np.full(ipc, label))
    images = Images(np.concatenate(pixels), np.concatenate(labels).astype(np.int64), real.classes)
    return DistilledSet(name, images, images.digest, seed, {"method": name, "ipc": ipc})


def random_set(listing: Listing, classes: tuple[str, ...], side: int, ipc: int, seed: int) -> DistilledSet:
    """real-random, reading only the images that are chosen. Raises ValueError if a class has fewer."""
    labels = listing.entries["label"].to_numpy()
    if min(listing.counts()) < ipc:
        raise ValueError(
            f"--baselines real-random: a class has {min(listing.counts())} training images, fewer than {ipc}"
        )
    of_label = [np.flatnonzero(labels == label) for label in range(len(classes))]
    rows = np.concatenate([found[random_rows(found, ipc, seed, label)] for label, found in enumerate(of_label)])
    images = Images(*read_listing(listing, side, rows), classes)
    return DistilledSet("real-random", images, images.digest, seed, {"method": "real-random", "ipc": ipc})


def full_set(real: Images) -> DistilledSet:
    """All training images as a set; its `ipc` is the mean number of images per class."""
    return DistilledSet(
        "real-full", real, real.digest, 0, {"method": "real-full", "ipc": len(real) // len(real.classes)}
    )
