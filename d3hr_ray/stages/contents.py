"""Whether the images of a run are still those it was made from: replaced ones are refused, copies of the same are not.

A run keeps the version of each file (its size and modification time, and Parquet's footer) and, with each shard that
it has inverted, a digest of the bytes it read. Files of the same version are taken as the same. One of another version
may have been replaced, or only copied, restored or touched: the shards that hold it are read and compared, which takes
a small part of the time of their inversion. Equal bytes go on; others are refused by name, so that no run mixes two
states of its data. A file that is replaced and given its old size and modification time is not seen.
"""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.layout import DISTILLED, VERSIONS, finished
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.tasks import ray_map
from d3hr_ray.stages.read import read_content, shard_unit
from d3hr_ray.stages.shards import shards_of
from d3hr_ray.store import Store

NAMED = 3  # files, of those that changed


def versions_of(listing: Listing) -> pa.Table:
    """Each file that holds images of a listing, in its order, and its version."""
    table = pa.table({"file": files_of(listing.entries), "version": listing.entries["version"]})
    return table.group_by("file", use_threads=False).aggregate([("version", "min")]).rename_columns(table.column_names)


def remember(store: Store, listing: Listing, name: str = VERSIONS) -> None:
    """Keep the versions of the files, for changed_files."""
    store.write_table(name, versions_of(listing))


def changed_files(store: Store, listing: Listing, name: str = VERSIONS) -> dict[str, str]:
    """File => how it differs from when `remember` was called: new, gone or written again. None if that never was."""
    if not store.exists(name):
        return {}
    old, new = store.read_table(name), versions_of(listing)
    if old.equals(new):
        return {}
    was, now = (dict(zip(*(table[c].to_pylist() for c in ("file", "version")), strict=True)) for table in (old, new))
    changed = {file: "new" if file not in was else "written again" for file in now if was.get(file) != now[file]}
    return changed | {file: "gone" for file in was if file not in now}


def describe(changed: Mapping[str, str]) -> str:
    """'3 files have changed since: a.png (written again), b.png (gone), ...'; nothing if none have."""
    if not changed:
        return ""
    words = [f"{file} ({how})" for file, how in list(changed.items())[:NAMED]]
    more = ["..."] if len(changed) > NAMED else []
    return f"{len(changed):,} file{'s have' if len(changed) > 1 else ' has'} changed since: {', '.join(words + more)}"


def refuse_replaced(store: Store, config: RunConfig, listing: Listing, changed: Mapping[str, str]) -> None:
    """Raise ValueError if what the run has made so far was made from other images than lie there now.

    `changed` are the files of other versions. Real images that were picked (--method random) are not compared: to pick
    them again costs little.
    """
    if config.method == "random" and store.at(DISTILLED).folders():
        raise ValueError(_refusal(store, config, changed))
    shards, done = shards_of(store, listing, config.data.shard_size), finished(store) if config.fits else {}
    held = {i: {*files_of(shards[i]).to_pylist()} & changed.keys() for i in sorted(done)}
    touched = [i for i, names in held.items() if names]
    known = [i for i in touched if "content" in done[i]]
    if len(known) < len(touched):
        LOG.warning(
            f"{describe(changed)}; {store.uri} was begun by a version that kept no digests of its images, so "
            f"{len(touched) - len(known)} of its shards are taken as they are"
        )
    if known:
        LOG.warning(f"{describe(changed)}; comparing the images of {len(known)} finished shards")
    units = [(listing.source, shard_unit(i, shards[i])["entries"]) for i in known]
    now = dict(zip(known, ray_map(read_content, units), strict=True))
    if other := [i for i in known if now[i] != done[i]["content"]]:
        names = [name for i in other for name in changed if name in held[i]]
        raise ValueError(_refusal(store, config, {name: changed[name] for name in names}))


def files_of(entries: pa.Table) -> pa.ChunkedArray:
    """The file that each image lies in: its own, which its id names, if the source says none."""
    files = entries["file"].cast(pa.string())
    return pc.if_else(pc.equal(files, ""), entries["image_id"], files)


def _refusal(store: Store, config: RunConfig, changed: Mapping[str, str]) -> str:
    return (
        f"--data {config.data.uri}: the images that {store.uri} was made from are others now: {describe(changed)}. Put "
        "them back, or give another --out, or --overwrite to start anew"
    )
