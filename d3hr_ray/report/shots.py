"""A few images of each class to look at: real ones, kept when a run is distilled, beside those of its sets."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import look_of
from d3hr_ray.layout import DISTILLED, METADATA, REALS
from d3hr_ray.numerics.seeds import generator
from d3hr_ray.report.html import PIXEL_ART, escape, picture
from d3hr_ray.report.sheets import first_images, pixels_of
from d3hr_ray.stages.images import png
from d3hr_ray.stages.reals import readable
from d3hr_ray.store import Store

SHOWN, EACH = 20, 5  # the first classes, so many images of each
CELLS = 12  # side by side at most, on a phone 28 pixels each
MOST_SETS = 3
SCHEMA = pa.schema([("label", pa.int32()), ("image", pa.binary())])

Shots = Mapping[int, Sequence[np.ndarray]]  # by label


def keep_reals(store: Store, config: RunConfig, listing: Listing, size: int) -> None:
    """Read a few real images per class into report/real.parquet, cropped to `size`: the first of --method random."""
    labels, rows = listing.entries["label"].to_numpy(), []
    for label in range(min(SHOWN, len(listing.classes))):
        order = generator("reals", config.seed, label).permutation(np.flatnonzero(labels == label))
        found = readable(listing.source, listing.entries.take(order), EACH, size, look_of(config.fidelity))
        rows += [{"label": label, "image": png(pixels, None)} for pixels, _ in found]
    store.write_table(REALS, pa.Table.from_pylist(rows, SCHEMA))


def real_shots(store: Store) -> Shots:
    """What `keep_reals` kept; nothing if it kept nothing."""
    shots: dict[int, list[np.ndarray]] = defaultdict(list)
    for row in store.read_table(REALS).to_pylist() if store.exists(REALS) else []:
        shots[row["label"]].append(pixels_of(row["image"]))
    return shots


def set_shots(store: Store, name: str) -> tuple[int, Shots]:
    """A distilled set of a run => its images per class, and the first ones of the first classes."""
    own = store.at(f"{DISTILLED}/{name}")
    table = own.read_table(METADATA)
    return len(table) // len(table["label"].unique()), first_images(own, table, SHOWN, EACH)


def shown_sets(sizes: Mapping[str, int]) -> list[str]:
    """Names of sets, with their images per class => the few to look at: the first of each size, from small to large."""
    first = {ipc: min(n for n in sizes if sizes[n] == ipc) for ipc in sorted(set(sizes.values()))}
    names = list(first.values())
    return names if len(names) <= MOST_SETS else [names[0], names[len(names) // 2], names[-1]]


def grid(columns: Sequence[tuple[str, Shots]], names: Sequence[str]) -> Iterator[str]:
    """A row of pictures per class; `columns` are titles and images: real ones first, then a column per set."""
    each = max(k for k in range(1, EACH + 1) if k == 1 or sum(_widths(columns, k)) <= CELLS)
    widths = _widths(columns, each)
    pixel_art = all(image.shape[0] <= PIXEL_ART for _, shots in columns for found in shots.values() for image in found)
    long = any(len(name) > 3 for name in names[:SHOWN])
    kinds = " ".join(["shots", *["pixels"] * pixel_art, *["long"] * long])
    cells = " ".join(f"8px repeat({width},minmax(0,64px))" for width in widths)
    yield f'<div class="{kinds}" style="--cells:{cells}"><b class="name"></b>'
    for (title, _), width in zip(columns, widths, strict=True):
        yield f'<i></i><b style="grid-column:span {width}">{escape(title)}</b>'
    for label, name in enumerate(names[:SHOWN]):
        yield f'<b class="name">{escape(name)}</b>'
        for (title, shots), width in zip(columns, widths, strict=True):
            found = [picture(pixels, f"{title}, class {name}") for pixels in shots.get(label, [])[:width]]
            yield "".join(["<i></i>", *found, *["<i></i>"] * (width - len(found))])
    yield "</div>"


def _widths(columns: Sequence[tuple[str, Shots]], each: int) -> list[int]:
    return [min(each, max(map(len, shots.values()), default=0)) for _, shots in columns]
