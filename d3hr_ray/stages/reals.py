"""reals: a random subset of the real images as a distilled set, the baseline that every paper must beat."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from d3hr_ray.config import RunError
from d3hr_ray.datasets.classes import folder_names
from d3hr_ray.datasets.decode import RejectedImage, decode_seen
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import Look, Seen
from d3hr_ray.datasets.source import Source
from d3hr_ray.layout import IMAGES, set_folder
from d3hr_ray.numerics.seeds import generator
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.images import IMAGE_SCHEMA, png
from d3hr_ray.store import Store


def run_reals(store: Store, spec: SetSpec, listing: Listing, classes: pa.Table, size: int, look: Look) -> pa.Table:
    """Write n real images per class, cropped to `size`, and return their IMAGE_SCHEMA rows by label and index."""
    names, folders = classes["name"].to_pylist(), folder_names(classes)
    jobs = []
    for label, rows in enumerate(listing.rows()):
        entries = listing.entries.take(generator("reals", spec.seed, label).permutation(rows))
        jobs.append((label, (store, spec, listing.source, entries, size, look, label, names[label], folders[label])))
    made = dict(bounded(write_class, jobs, f"pick {spec.name}"))
    for line in Seen.total(seen for _, seen in made.values()).describe(look):
        LOG.warning(line)
    return pa.concat_tables([made[label][0] for label in range(len(classes))])


def write_class(
    store: Store,
    spec: SetSpec,
    source: Source,
    entries: pa.Table,
    size: int,
    look: Look,
    label: int,
    name: str,
    folder: str,
) -> tuple[pa.Table, dict[str, int]]:
    """Write the first n readable images of a shuffled class; also what was seen in them.

    Raises RunError if there are not that many.
    """
    rows: list[dict[str, object]] = []
    met = []
    for pixels, seen in readable(source, entries, spec.ipc, size, look):
        met.append(seen.plain())
        file, data = f"{IMAGES}/{folder}/{len(rows)}.png", png(pixels, None)
        store.write_bytes(f"{set_folder(spec)}/{file}", data)
        rows.append(
            {
                "file_name": file,
                "label": label,
                "class_name": name,
                "index": len(rows),
                "seed": spec.seed,
                "score": float("nan"),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    if len(rows) < spec.ipc:
        raise RunError(f"class {name!r} has {len(rows)} readable images, fewer than --ipc {spec.ipc}")
    return pa.Table.from_pylist(rows, IMAGE_SCHEMA), Seen.total(met).plain()


def readable(source: Source, entries: pa.Table, count: int, size: int, look: Look) -> Iterator[tuple[np.ndarray, Seen]]:
    """The first `count` of the entries that are images, cropped to `size`, with what was seen in each."""
    found = 0
    for data in _in_order(source, entries, count):
        try:
            image = decode_seen(data, size, look)
        except RejectedImage:
            continue
        yield image
        found += 1
        if found == count:
            return


def _in_order(source: Source, entries: pa.Table, at_once: int) -> Iterator[bytes]:
    """The entries' bytes, read a few at a time: one by one, Parquet's row groups would be read for each."""
    for at in range(0, len(entries), at_once):
        yield from source.read(entries.slice(at, at_once))
