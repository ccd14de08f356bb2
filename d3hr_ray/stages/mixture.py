"""mixture: latents/ => mixtures/<name>/, several Gaussians per class, diagonal or with low-rank directions.

Ray tasks, one per run of classes whose latents fit into CLASS_BYTES. A task reads the files that can hold its labels
(their footers tell, and are read once for all tasks), one by one: its memory is bounded whatever the size of the set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.config import RunConfig, RunError
from d3hr_ray.layout import LATENTS, MIXTURES, gaussian_file
from d3hr_ray.numerics.mixture import Mixture, fit_mixture, pooled
from d3hr_ray.numerics.seeds import digest
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.stages.fit import to_tensors
from d3hr_ray.stages.label_ranges import holding, label_ranges
from d3hr_ray.store import Store

CLASS_BYTES = 512 << 20  # of float32 latents that a task holds; of a larger class it takes every k-th image
LISTED = 20  # thinned classes that are named
MIXED = 4  # readings of a file on average, above which people should hear of it


@dataclass(frozen=True)
class MixtureKind:
    """Which mixture of a run: where it is fitted and clustered, and how much it may model."""

    timestep: int
    cluster_timestep: int
    components: int
    rank: int
    seed: int
    pool: int = 1  # cells that latents are averaged over, each way, before they are clustered
    centres: bool = False  # whether it has the components' means where they are clustered, which guides pull to

    @property
    def folder(self) -> str:
        """Its folder within the run's."""
        where = f"t{self.timestep:04d}-c{self.cluster_timestep:04d}"
        pool = f"p{self.pool}" if self.pool > 1 else ""
        centres = "-centres" if self.centres else ""
        return f"{MIXTURES}/{where}{pool}-k{self.components}-r{self.rank}-seed{self.seed}{centres}"


def mixture_kind(config: RunConfig, timestep: int, ipc: int) -> MixtureKind:
    """The mixture that a config asks for at a timestep, for sets of `ipc` images per class."""
    components = ipc if config.search.components == "ipc" else config.search.components
    assert isinstance(components, int)
    search, cluster = config.search, config.inversion.cluster_timestep
    at = timestep if cluster is None else cluster
    pool = 1 if components == 1 else search.cluster_pool
    return MixtureKind(timestep, at, components, search.rank, config.seed, pool, config.guides_to_components)


def run_mixtures(latents: Store, store: Store, kinds: Sequence[MixtureKind], shape: tuple[int, int, int]) -> None:
    """Fit every class that has no mixture yet, from the stored latents of `latents` (a run folder, maybe another).

    `shape` is that of a latent, (C, H, W).
    """
    dims = prod(shape)
    wanted = list[tuple[MixtureKind, range]]()
    thinned: dict[int, tuple[int, int]] = {}
    for kind in kinds:
        table = store.read_table(gaussian_file(kind.timestep)).sort_by("label")
        counts = table["count"].to_pylist()
        blocks = [labels for labels in label_blocks(counts, dims) if not store.exists(part_file(kind, labels))]
        if blocks:
            require_latents(latents, kind)
            most = most_images(dims)
            thinned |= {label: (thin(n, most), n) for label, n in enumerate(counts) if n > most}
        wanted += [(kind, labels) for labels in blocks]
    if thinned:
        LOG.warning(_thinned_text(thinned))
    ranges = label_ranges(latents) if wanted else {}
    jobs = [((kind, labels), (latents, store, kind, labels, shape, holding(ranges, labels))) for kind, labels in wanted]
    if sum(len(args[-1]) for _, args in jobs) > MIXED * len(ranges) * len(kinds):
        LOG.warning(
            f"mixture: the files of {latents.uri}/{LATENTS} mix classes, so that {len(jobs)} tasks read most of them "
            "each; images that are listed class by class (a folder per class, shards in that order) are read once"
        )
    names = {kind.folder.removeprefix(f"{MIXTURES}/") for kind, _ in wanted}
    for _ in bounded(write_mixtures, jobs, f"fit {names.pop() if len(names) == 1 else f'{len(names)} mixtures'}"):
        pass


def label_blocks(counts: list[int], dims: int) -> Iterator[range]:
    """Labels 0..K-1 in runs whose latents stay under CLASS_BYTES, or of a single label."""
    start, total = 0, 0
    for label, count in enumerate(counts):
        if label > start and total + count * dims * 4 > CLASS_BYTES:
            yield range(start, label)
            start, total = label, 0
        total += count * dims * 4
    yield range(start, len(counts))


def most_images(dims: int) -> int:
    """Images of a class that a task holds."""
    return max(2, CLASS_BYTES // (dims * 4))


def thin(count: int, most: int) -> int:
    """How many images `read_classes` keeps of a class: every second is dropped again and again."""
    while count > most:
        count = -(-count // 2)
    return count


def _thinned_text(thinned: dict[int, tuple[int, int]]) -> str:
    """{label: (used, images)} => one line."""
    named = [f"class {label}: {used:,} of {images:,}" for label, (used, images) in thinned.items()]
    more = f" and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return (
        f"mixture: {len(named)} classes have more than {CLASS_BYTES >> 20} MB of latents and are fitted to every "
        f"k-th image: {', '.join(named[:LISTED])}{more}"
    )


def part_file(kind: MixtureKind, labels: range) -> str:
    """Name of the file of some labels; it carries them, so that a reader finds its own."""
    return f"{kind.folder}/part-{labels.start:06d}-{labels.stop:06d}.parquet"


def require_latents(latents: Store, kind: MixtureKind) -> None:
    """Raise ValueError unless the latents of both timesteps are stored."""
    there = stored_timesteps(latents)
    for t in (kind.timestep, kind.cluster_timestep):
        if t not in there:
            stored = ", ".join(map(str, there))
            raise ValueError(
                f"--components and --rank are fitted to stored latents, and {latents.uri} has none at t={t} "
                f"(there: {stored or 'none'}); run it with --timesteps or --cluster-timestep {t}"
            )


def stored_timesteps(latents: Store) -> list[int]:
    """Those whose latents a run folder has."""
    files = latents.list(LATENTS)
    names = latents.column_names(f"{LATENTS}/{files[0]}") if files else []
    return [int(name[2:]) for name in names if name.startswith("z_")]


def write_mixtures(
    latents: Store,
    store: Store,
    kind: MixtureKind,
    labels: range,
    shape: tuple[int, int, int],
    files: Sequence[str],
) -> None:
    """Fit the mixtures of some labels, which lie in some `files`, and write their file.

    Raises RunError for a class with too few images.
    """
    timesteps, most = (kind.timestep, kind.cluster_timestep), most_images(prod(shape))
    at, by, images = read_classes(latents, labels, timesteps, most, files)
    rows: list[dict[str, object]] = []
    for label in labels:
        key = digest(f"mixture of {label}, {kind.seed}".encode())
        try:
            near = by[label] if kind.centres else None
            mixture = fit_mixture(pooled(by[label], shape, kind.pool), at[label], kind.components, kind.rank, key, near)
        except ValueError as error:
            raise RunError(f"mixture: class {label}: {error}") from error
        rows += mixture_rows(label, kind.timestep, mixture, images[label])
    schema = MIXTURE_SCHEMA.append(pa.field("centre", _LIST)) if kind.centres else MIXTURE_SCHEMA
    store.write_table(part_file(kind, labels), pa.Table.from_pylist(rows, schema))


def read_classes(
    latents: Store, labels: range, timesteps: tuple[int, int], most: int, files: Sequence[str]
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor], dict[int, int]]:
    """Latents (N, D) float32 of each label at two timesteps, in the order of the files, and its images in all.

    They are looked for in some `files` of latents/. Of a class with more than `most` images, every second is dropped
    again and again.
    """
    found: dict[int, list[tuple[torch.Tensor, ...]]] = {label: [] for label in labels}
    stride, seen = dict.fromkeys(labels, 1), dict.fromkeys(labels, 0)
    columns = ["label", *dict.fromkeys(f"z_{t}" for t in timesteps)]
    for file in files:
        table = latents.read_rows(f"{LATENTS}/{file}", columns, "label", labels)
        if not len(table):
            continue  # none of these classes is in this file
        parts = [to_tensors(table, f"z_{t}") for t in dict.fromkeys(timesteps)]
        for label in np.unique(parts[0][0].numpy()):
            rows = torch.nonzero(parts[0][0] == label).flatten()
            number = seen[label] + torch.arange(len(rows))
            seen[label] += len(rows)
            rows = rows[number % stride[label] == 0]
            found[label].append(tuple(z[rows].float() for _, z in parts))
            while sum(len(p[0]) for p in found[label]) > most:
                stride[label] *= 2
                found[label] = [tuple(torch.cat([p[i] for p in found[label]])[::2] for i in range(len(parts)))]
    joined: tuple[dict[int, torch.Tensor], ...] = ({}, {})
    for label in labels:
        columns_of = [torch.cat(z) for z in zip(*found.pop(label), strict=True)] or [torch.zeros(0, 1)]
        joined[0][label], joined[1][label] = columns_of[0], columns_of[-1]  # one tensor if the timesteps are equal
    return joined[0], joined[1], seen


_LIST = pa.list_(pa.float32())
MIXTURE_SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("timestep", pa.int32()),
        ("component", pa.int32()),
        ("count", pa.int64()),  # of the component, among those that were used
        ("images", pa.int64()),  # of the class in all: more than its counts together if it was thinned
        ("mean", _LIST),
        ("medoid", _LIST),  # the stored latent nearest to the cluster's centre
        ("variance", _LIST),  # beside the factors
        ("factors", pa.list_(_LIST)),  # the class's, with its first component
    ]
)


def mixture_rows(label: int, timestep: int, mixture: Mixture, images: int) -> list[dict[str, object]]:
    """One row per component of a class of so many images."""
    return [
        {
            "label": label,
            "timestep": timestep,
            "component": c,
            "count": int(mixture.count_C[c]),
            "images": images,
            "mean": mixture.mean_CD[c].numpy(),
            "medoid": mixture.medoid_CD[c].numpy(),
            "variance": mixture.variance_CD[c].numpy(),
            "factors": [] if c else [row.numpy() for row in mixture.factors_RD],
        }
        | ({} if mixture.centre_CD is None else {"centre": mixture.centre_CD[c].numpy()})
        for c in range(len(mixture.count_C))
    ]


def read_mixtures(store: Store, kind: MixtureKind, labels: range) -> dict[int, Mixture]:
    """The stored mixtures of some labels."""
    columns = [name for name in MIXTURE_SCHEMA.names if name != "images"]  # which files of older versions do not have
    columns += ["centre"] if kind.centres else []
    return {label: _mixture(rows) for label, rows in _rows(store, kind, labels, columns).items()}


def read_counts(store: Store, kind: MixtureKind, labels: range) -> dict[int, torch.Tensor]:
    """Images per component of the stored mixtures of some labels, (C,) each."""
    found = _rows(store, kind, labels, ["label", "component", "count"])
    return {label: torch.tensor(rows["count"].to_pylist()) for label, rows in found.items()}


def _rows(store: Store, kind: MixtureKind, labels: range, columns: list[str]) -> dict[int, pa.Table]:
    """Stored rows of each of some labels, by component."""
    tables = []
    for name in store.list(kind.folder):
        start, stop = (int(word) for word in name.removesuffix(".parquet").split("-")[1:])
        if start < labels.stop and labels.start < stop:
            tables.append(store.read_table(f"{kind.folder}/{name}", columns))
    return by_label(pa.concat_tables(tables).sort_by([("label", "ascending"), ("component", "ascending")]), labels)


def by_label(rows: pa.Table, labels: range) -> dict[int, pa.Table]:
    """Rows that are sorted by `label` => those of each of some labels."""
    starts = np.searchsorted(rows["label"].to_numpy(), np.arange(labels.start, labels.stop + 1))
    return {label: rows.slice(a, b - a) for label, (a, b) in zip(labels, pairwise(starts), strict=True)}


def _mixture(rows: pa.Table) -> Mixture:
    mean, medoid, variance = (torch.tensor(np.stack(rows[c].to_numpy())) for c in ("mean", "medoid", "variance"))
    factors = rows["factors"][0].as_py()
    return Mixture(
        torch.tensor(rows["count"].to_pylist()),
        mean,
        medoid,
        variance,
        torch.tensor(factors, dtype=torch.float32).reshape(len(factors), mean.shape[1]),
        torch.tensor(np.stack(rows["centre"].to_numpy())) if "centre" in rows.column_names else None,
    )
