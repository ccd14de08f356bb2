"""invert: image shards => latents/, one Parquet file per shard, one column per stored timestep.

A shard is read and decoded by a CPU task, then encoded and inverted by an actor, which writes the shard's files and,
last, its done mark. What a shard holds and how it is cut into batches depends on the listing alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.config import RunConfig, RunError
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import STORED, Seen, look_of
from d3hr_ray.layout import REJECTED, SEEN, finished, keys_file, latents_file, probes_file, rejected_file
from d3hr_ray.models.accelerate import to_device
from d3hr_ray.models.autoencoder import Autoencoder, to_images
from d3hr_ray.models.card import ModelCard, portable
from d3hr_ray.numerics import ddim
from d3hr_ray.numerics.ddim import Denoise
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.numerics.solvers import INVERT
from d3hr_ray.runtime.actors import Actors, run_units, unit_result
from d3hr_ray.runtime.batching import run_batches
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.telemetry import describe
from d3hr_ray.stages.networks import open_model
from d3hr_ray.stages.read import ReadShard, content_of, open_message, shard_unit
from d3hr_ray.stages.shards import shards_of
from d3hr_ray.store import Store

Invert = Callable[[Denoise, torch.Tensor, Schedule, tuple[int, ...]], dict[int, torch.Tensor]]
PROBE_CLASSES, PROBE_IMAGES = 10, 200  # whose VAE latents are kept too, to show normality before and after


def run_invert(store: Store, config: RunConfig, card: ModelCard, listing: Listing, actors: Actors) -> None:
    """Invert every shard that is not done. Raises RunError if images are lost or too many are unreadable."""
    shards = shards_of(store, replace(listing, entries=_with_probes(listing.entries)), config.data.shard_size)
    done = finished(store)
    _check_looks(config, done)
    units = [shard_unit(i, entries) for i, entries in enumerate(shards) if i not in done]
    inverted = sum(len(shards[i]) for i in done)
    for stage in ("invert", SEEN):  # a shard whose files are lost gets other marks
        store.unmark(stage, {unit["shard"] for unit in units})
    if units:
        read = ReadShard(listing.source, card.image_size, look_of(config.fidelity))
        config = replace(config, model=replace(config.model, name=portable(config.model.name)))
        job = InversionJob(store, config, listing.classes.model_classes, actors.device)
        steps: list[tuple[Any, dict[str, Any]]] = [
            (read, {"num_cpus": 1}),
            (InvertShard, {"fn_constructor_args": (job,), **actors.options(len(units))}),
        ]
        rejected = sum(done[i]["rejected"] for i in done)
        for row in run_units(units, steps, "invert", "image", len(listing), inverted):
            rejected += row["rejected"]
            _check_rejected(store, config, rejected, len(listing))
    _check_counts(store, config, listing, len(shards))
    for line in Seen.total(finished(store).values()).describe(look_of(config.fidelity)) if units else []:
        LOG.warning(line)


def _with_probes(entries: pa.Table) -> pa.Table:
    """Mark the first images of the first classes as probes."""
    labels = entries["label"].to_numpy()
    probe = np.zeros(len(labels), bool)
    for label in range(PROBE_CLASSES):
        probe[np.flatnonzero(labels == label)[:PROBE_IMAGES]] = True
    return entries.append_column("probe", pa.array(probe))


def _check_counts(store: Store, config: RunConfig, listing: Listing, shards: int) -> None:
    """Accepted + rejected = listed, and the rejected are few."""
    done = finished(store)
    _check_looks(config, done)
    counts = done.values()
    accepted, rejected = (sum(c[k] for c in counts) for k in ("accepted", "rejected"))
    if accepted + rejected != len(listing) or len(counts) != shards:
        raise RunError(
            f"invert: {accepted} accepted + {rejected} rejected images are not the {len(listing)} listed; "
            "run the same command again to complete the missing shards"
        )
    _check_rejected(store, config, rejected, len(listing))


def _check_looks(config: RunConfig, done: dict[int, dict[str, int]]) -> None:
    """Raise RunError for shards of two kinds: what older versions read lies on its side and shows hidden colours."""
    old = [shard for shard, counts in done.items() if "rotated" not in counts]
    seen = Seen.total(done.values())
    if old and look_of(config.fidelity) != STORED and seen.rotated + seen.transparent:
        raise RunError(
            f"invert: {len(old)} shards are of a version that left EXIF rotations and transparency aside, and these "
            f"images have some ({seen.rotated} and {seen.transparent} in the other shards); start anew with --overwrite"
        )


def _check_rejected(store: Store, config: RunConfig, rejected: int, listed: int) -> None:
    """Raise RunError, naming the first files, as soon as too many images are rejected."""
    if rejected > config.data.max_rejected * listed:
        first = store.read_table(REJECTED).slice(0, 5).to_pylist()
        names = "; ".join(f"{r['image_id']} ({r['reason']})" for r in first)
        raise RunError(
            f"invert: already {rejected} of {listed} images cannot be used, more than --max-rejected "
            f"{config.data.max_rejected:g}: {names}; mend them and use --overwrite, or allow more"
        )


@dataclass(frozen=True)
class InversionJob:
    """What an actor must know to invert shards; small, because it travels to every actor."""

    store: Store
    config: RunConfig
    model_classes: tuple[int, ...]
    device: str


class InvertShard:
    """Actor: holds the networks, inverts one shard per call and writes its files."""

    def __init__(self, job: InversionJob) -> None:
        self.job = job
        self.schedule, self.autoencoder, self.denoiser = open_model(job.config, job.device)
        self.model_classes = torch.tensor(job.model_classes)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row of ReadShard => `unit_result`, after the files are written."""
        shard, error = batch["shard"][0].as_py(), batch["error"][0].as_py()
        count = lost = 0
        if error is None:
            pixels, accepted, rejected = open_message(batch)
            describe(run=self.job.store.uri, shard=shard, labels=sorted(set(accepted["label"].to_pylist())))
            try:
                lost = self.write(shard, pixels, accepted, rejected.drop_columns("key"), content_of(accepted, rejected))
                count = len(accepted) + len(rejected)
            except (ValueError, OSError) as problem:
                error = str(problem)
        return unit_result(count, f"shard {shard}: {error}" if error else None, lost)

    def write(self, shard: int, pixels: np.ndarray, accepted: pa.Table, rejected: pa.Table, content: int) -> int:
        """Invert and write one shard; its done mark, which keeps the content of its images, comes last.

        Files of an earlier, killed try are replaced.

        Returns how many images it rejected: those that could not be read, and those that do not fit into memory.
        """
        store, misfits = self.job.store, list[int]()
        states = self.invert(pixels, accepted, misfits) if len(accepted) else {}
        accepted, rejected = _without(accepted, misfits, rejected)
        if len(accepted):
            table = accepted.select(["image_id", "label"])
            for t in self.job.config.inversion.stored:
                table = table.append_column(f"z_{t}", _column(states[t], accepted["image_id"], t))
            store.write_table(latents_file(shard), table)
            store.write_table(keys_file(shard), accepted.select(["image_id", "key"]))
            self._write_probe(shard, accepted, states[0])
        else:
            for name in (latents_file, keys_file, probes_file):
                store.delete(name(shard))
        if len(rejected):
            store.write_table(rejected_file(shard), rejected)
        else:
            store.delete(rejected_file(shard))
        store.mark(SEEN, shard, **Seen.in_table(accepted).plain())
        store.mark("invert", shard, accepted=len(accepted), content=content, rejected=len(rejected))
        return len(rejected)

    def invert(self, pixels: np.ndarray, accepted: pa.Table, misfits: list[int]) -> dict[int, np.ndarray]:
        """Pixels => {t: (N, D) float32} in fixed batches; t = 0 is the VAE's latents.

        Images that do not fit into memory one by one are left out and their rows added to `misfits`.
        """
        inversion, seed = self.job.config.inversion, self.job.config.seed
        labels = torch.from_numpy(accepted["label"].to_numpy().astype(np.int64))
        keys = accepted["key"].to_pylist()
        shape, device = self.denoiser.latent_shape, self.job.device

        def work(rows: slice) -> dict[int, np.ndarray]:
            noise = None
            if inversion.posterior == "sample":
                noise = to_device(torch.stack([normal(shape, "posterior", seed, k) for k in keys[rows]]), device)
            images = to_device(torch.from_numpy(pixels[rows].copy()), device)
            denoise = self.denoiser.guided(self.model_classes[labels[rows]].to(device), inversion.guidance)
            walk = INVERT[inversion.solver]
            return invert_images(self.autoencoder, denoise, self.schedule, images, noise, inversion.stored, walk)

        parts = run_batches(work, len(accepted), inversion.batch_size, misfits)
        return {t: np.concatenate([part[t] for part in parts]) for t in parts[0]} if parts else {}

    def _write_probe(self, shard: int, accepted: pa.Table, latents: np.ndarray) -> None:
        chosen = np.flatnonzero(accepted["probe"].to_numpy())
        if not len(chosen):
            self.job.store.delete(probes_file(shard))
            return
        table = accepted.select(["image_id", "label"]).take(chosen)
        column = _column(latents[chosen], table["image_id"], 0)
        self.job.store.write_table(probes_file(shard), table.append_column("z_0", column))


def _without(accepted: pa.Table, misfits: list[int], rejected: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Accepted and rejected entries after the misfits have gone over."""
    if not misfits:
        return accepted, rejected
    moved = accepted.take(misfits).select(["image_id", "label"])
    reasons = pa.array(["does not fit into memory, not even alone"] * len(moved))
    lost = set(misfits)
    kept = accepted.filter(pa.array([row not in lost for row in range(len(accepted))], pa.bool_()))
    return kept, pa.concat_tables([rejected, moved.append_column("reason", reasons).cast(rejected.schema)])


def invert_images(
    autoencoder: Autoencoder,
    denoise: Denoise,
    schedule: Schedule,
    pixels: torch.Tensor,
    noise: torch.Tensor | None,
    timesteps: tuple[int, ...],
    walk: Invert = ddim.invert,
) -> dict[int, np.ndarray]:
    """Pixels (B, H, W, 3) uint8 => {t: (B, D) float32} for t = 0, the VAE's latents, and each stored timestep."""
    with torch.inference_mode():
        latents = autoencoder.encode(to_images(pixels), noise)
        states = {0: latents} | walk(denoise, latents, schedule, timesteps)
        return {t: x.flatten(1).cpu().numpy() for t, x in states.items()}


def _column(latents: np.ndarray, ids: pa.ChunkedArray, t: int) -> pa.FixedSizeListArray:
    """(N, D) => a fixed-size float16 list per image. Raises ValueError naming images with NaN or inf."""
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(latents, np.float32).astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(half).all(1))
    if len(bad):
        names = ", ".join(ids[int(i)].as_py() for i in bad[:5])
        raise ValueError(
            f"NaN or inf in the latents at t={t} of {len(bad)} images: {names}; check the model, or use --dtype float32"
        )
    return pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1])
