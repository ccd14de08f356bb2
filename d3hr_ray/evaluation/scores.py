"""Scores of a distilled set that need no training, and its redundancy, which needs a little.

Features and confidence are a classifier's, on real images of the same classes; moments are those in the run folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from d3hr_ray.datasets.images import Images
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation.comparison import MADE_FROM, list_real, look_beside
from d3hr_ray.evaluation.sets import DistilledSet, find_sets, image_side, load_set
from d3hr_ray.layout import CLASSES, MANIFEST, run_at
from d3hr_ray.models.autoencoder import Autoencoder, to_images, to_pixels
from d3hr_ray.models.classifiers import BATCH, enough_steps, predict, train_convnet
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.numerics import distances
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.numerics.solvers import INVERT
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.progress import progress
from d3hr_ray.runtime.tasks import ray_map
from d3hr_ray.sets import SetSpec, spec_of
from d3hr_ray.stages.judge import Judge, judge_name, load_classifier
from d3hr_ray.stages.measures import moment_scores
from d3hr_ray.stages.networks import open_model, open_networks
from d3hr_ray.stages.sampling import sampling_walk
from d3hr_ray.store import Store

COLUMNS = (
    "mean_error", "std_error", "frechet", "kernel", "coverage", "confidence", "on_class", "diversity", "round_trip",
)  # fmt: skip
REDUNDANCY = "redundancy"  # the one that trains, and is only there if it was asked for
MOST_REAL = 20_000
LEAST = 2  # images of each class in a part
Model = tuple[Schedule, Autoencoder, Denoiser]
SETTING = ("guidance", "inversion_guidance", "fidelity", "settings", "config")  # of a set, in its row


@dataclass(frozen=True)
class Measured:
    """What a classifier sees in images: (N, F) features, (N, K) probabilities, (N,) labels."""

    features_NF: torch.Tensor
    probabilities_NK: torch.Tensor
    labels_N: torch.Tensor


def measure(judge: Judge, pixels: np.ndarray, labels: np.ndarray) -> Measured:
    """Pixels (N, H, W, 3) uint8 => what the classifier sees. Features are the inputs of its last linear layer."""
    last = [m for m in judge.net.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        parts = [judge.probabilities(to_images(p)) for p in torch.from_numpy(pixels).split(256)]
    finally:
        hook.remove()
    return Measured(torch.cat(seen), torch.cat(parts), torch.from_numpy(labels))


def feature_scores(real: Measured, made: Measured) -> dict[str, float]:
    """Frechet and kernel distance over all classes; coverage and diversity per class, averaged; confidence."""
    classes = made.labels_N.unique().tolist()
    pairs = [(real.features_NF[real.labels_N == c], made.features_NF[made.labels_N == c]) for c in classes]
    own = made.probabilities_NK.gather(1, made.labels_N[:, None])[:, 0]
    return {
        "frechet": distances.frechet(real.features_NF, made.features_NF),
        "kernel": distances.kernel_distance(real.features_NF, made.features_NF),
        "coverage": float(np.mean([distances.coverage(r, m) for r, m in pairs])),
        "confidence": float(own.mean()),
        "on_class": float((made.probabilities_NK.argmax(1) == made.labels_N).double().mean()),
        "diversity": float(np.mean([distances.diversity(m) for _, m in pairs])),
    }


def round_trip(spec: SetSpec, model: Model, pixels: np.ndarray, model_classes: Sequence[int], device: str) -> float:
    """PSNR in dB of the set's own images after VAE, inversion, sampling and decoding, as the set was made."""
    config, (schedule, autoencoder, denoiser) = spec.config, model
    t = schedule.grid[-1] if spec.timestep is None else spec.timestep
    invert = INVERT[config.inversion.solver]
    sample, start = sampling_walk(config, schedule, spec.timestep)
    squares = []
    with torch.inference_mode():
        for at in range(0, len(pixels), 64):
            part = torch.from_numpy(pixels[at : at + 64])
            ids = torch.tensor(list(model_classes[at : at + 64]), device=device)
            latents = autoencoder.encode(to_images(part).to(device), None)
            noised = invert(denoiser.guided(ids, config.inversion.guidance), latents, schedule, (t,))[t]
            back = sample(denoiser.guided(ids, config.synthesis.guidance), noised, schedule, start)
            made = to_pixels(autoencoder.decode(back)).cpu()
            squares.append((made.double() - part.double()).square().flatten(1).mean(1))
    return float(10 * torch.log10(255**2 / torch.cat(squares).mean()))


def redundancy(images: Images, parts: int, device: str = "cpu") -> float:
    """How much of a set is in a part of it: mean top-1 of ConvNets trained on one part each and tested on the others.

    A diagnostic of learnability-guided distillation (LGD), which splits 50 images per class in five. Parts have every
    `parts`-th image of each class, 2 at least. Near 1 the parts say the same; NaN for a set with too few images.
    """
    place = np.empty(len(images), np.int64)
    for label in np.unique(images.labels):
        own = images.labels == label
        if own.sum() < LEAST * parts:
            return float("nan")
        place[own] = np.arange(own.sum()) % parts
    found = []
    for part in range(parts):
        own = place == part
        pixels, labels = images.pixels[own], images.labels[own]
        steps, batch = enough_steps(len(pixels)), min(BATCH, len(pixels))
        net = train_convnet(pixels, labels, len(images.classes), steps, batch_size=batch, seed=part, device=device)
        found.append(float((predict(net, images.pixels[~own], device=device) == images.labels[~own]).mean()))
    return float(np.mean(found))


def score_set(
    found: DistilledSet,
    run: Store,
    spec: SetSpec,
    judge: Judge,
    real: Measured,
    model: Callable[[], Model],
    device: str,
    parts: int,
) -> dict[str, float]:
    """All scores of one of our sets; its `model` is opened when the images have been judged.

    Redundancy is one if `parts` are not 0.
    """
    images = found.images.load()
    made = measure(judge, images.pixels, images.labels)
    table = run.read_table(CLASSES).sort_by("label")
    ids = [table["model_class"][int(label)].as_py() for label in images.labels]
    return {
        **moment_scores(run, spec),
        **feature_scores(real, made),
        "round_trip": round_trip(spec, model(), images.pixels, ids, device),
        **({REDUNDANCY: redundancy(images, parts, device)} if parts else {}),
    }


@dataclass(frozen=True)
class Scoring:
    """Sets with their run folders and manifests, and the classifier that sees them."""

    sets: tuple[DistilledSet, ...]
    runs: tuple[Store, ...]
    manifests: tuple[dict[str, Any], ...]
    judge: Judge
    device: str

    @staticmethod
    def open(paths: tuple[str, ...], classifier: str | None) -> "Scoring":
        """Load sets of ours, all at the size of the first. The classifier normalises, whatever made the sets.

        Raises ValueError for sets of others, for sets that do not belong together, and for a classifier that cannot
        judge them.
        """
        stores = find_sets(paths)
        for store in stores:
            if not store.exists(MANIFEST):
                raise ValueError(f"--distilled {store.uri} has no manifest.json: only sets of this project are scored")
        manifests = tuple(store.read_json(MANIFEST) for store in stores)
        runs = tuple(map(run_at, stores))
        side = image_side(stores[0])
        sets = tuple(load_set(store, side) for store in stores)
        check_alike(stores, sets, manifests)
        config = spec_of(manifests[0]["config"]).config
        config = replace(config, cao2=replace(config.cao2, classifier=classifier or config.cao2.classifier))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        judge = load_classifier(judge_name(config), runs[0].read_table(CLASSES).sort_by("label"), device, side)
        return Scoring(sets, runs, manifests, judge, device)

    def real(self, per_class: int) -> Measured:
        """What the classifier sees in the first real training images of each class, MOST_REAL in all."""
        first = self.sets[0]
        per_class = max(2, min(per_class, MOST_REAL // len(first.images.classes)))
        source = first.source
        assert source is not None, "sets of ours know their source"
        listing = list_real(source, first.images.classes, first.wnids, f"real images, {MADE_FROM}:")
        listing = replace(listing, look=look_beside(self.sets))
        labels = listing.entries["label"].to_numpy()
        rows = [np.flatnonzero(labels == label)[:per_class] for label in range(len(first.images.classes))]
        reading = Reading.of(listing, first.images.classes, first.images.side, np.concatenate(rows))
        real = reading.load(each=ray_map)
        for line in real.notes:
            LOG.warning(line)
        return measure(self.judge, real.pixels, real.labels)


def columns_of(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The scores that rows have."""
    return (*COLUMNS, *([REDUNDANCY] if any(REDUNDANCY in row for row in rows) else []))


def check_alike(stores: Sequence[Store], sets: Sequence[DistilledSet], manifests: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError for a set that cannot be scored with the first one's real images and classifier."""
    traits = [
        {
            "other classes": found.images.classes,
            "other real images": (found.about["data"]["uri"], found.about["data"]["limit_per_class"]),
            "another model": manifest["inputs"]["model"],
        }
        for found, manifest in zip(sets, manifests, strict=True)
    ]
    for store, own in zip(stores, traits, strict=True):
        if differing := [words for words, value in own.items() if value != traits[0][words]]:
            raise ValueError(
                f"--distilled {store.uri} has {' and '.join(differing)} than {stores[0].uri}; score them in separate "
                "calls"
            )


def score_all(scoring: Scoring, real: Measured, parts: int = 0) -> list[dict[str, Any]]:
    """A row of scores per set, with redundancy between `parts` of it if they are not 0. Networks are opened once."""
    rows, networks = [], cache(open_networks)
    few = sorted({found.name for found in scoring.sets if parts and found.about["ipc"] < LEAST * parts})
    if few:
        LOG.warning(f"--redundancy {parts} needs {LEAST * parts} images per class: none for {', '.join(few)}")
    with progress(len(scoring.sets), "score", "set") as bar:
        for found, run, manifest in zip(scoring.sets, scoring.runs, scoring.manifests, strict=True):
            spec = spec_of(manifest["config"])
            model = partial(open_model, spec.config, scoring.device, networks)
            scores = score_set(found, run, spec, scoring.judge, real, model, scoring.device, parts)
            bar.update()
            words = {"set": found.name, "seed": found.set_seed, "ipc": found.about["ipc"], "set_hash": found.set_hash}
            rows.append(words | {key: found.about[key] for key in SETTING} | scores)
    return rows
