"""Which images of a run are inverted together: fixed runs of its listing.

Of a run that extends another, the first shards are those whose latents it takes from there.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d3hr_ray.datasets.listing import Listing
from d3hr_ray.layout import REUSED
from d3hr_ray.store import Store


def shards_of(store: Store, listing: Listing, size: int) -> list[pa.Table]:
    """The listing's entries by shard: those that are taken over, as they lie in the other run, then runs of `size`."""
    if not store.exists(REUSED):
        return listing.shards(size)
    reused, entries = store.read_table(REUSED).combine_chunks(), listing.entries
    place = places(entries["image_id"], reused["image_id"])
    fresh = entries.filter(pa.array(place < 0))
    at = np.argsort(place, kind="stable")[len(fresh) :]  # of the reused image that comes first, second, ...
    kept = entries.take(pa.array(at))
    return [
        *(kept.slice(start, stop - start) for _, start, stop in source_runs(reused)),
        *(fresh.slice(first, size) for first in range(0, len(fresh), size)),
    ]


def places(values: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Where each value stands in another column; -1 where it does not."""
    place: np.ndarray = pc.index_in(values, value_set=among.combine_chunks()).fill_null(-1).to_numpy()
    return place


def source_runs(reused: pa.Table) -> list[tuple[int, int, int]]:
    """REUSED => (shard of the other run, start, stop) of each run of its rows: its place is the shard's number here."""
    source = reused["source"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(source)) + 1).tolist()]
    return [(int(source[a]), a, b) for a, b in zip(starts, [*starts[1:], len(source)], strict=True)]
