"""The embedded models do what they are shipped for, measured on digits that they never saw."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from d3hr_ray.config import DataConfig, ModelConfig, RunConfig
from d3hr_ray.datasets.digits import NAMES
from d3hr_ray.datasets.named import PLACES
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.models.card import ASSETS, read_card
from d3hr_ray.models.loading import load_networks
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.pretraining.check import load_set, measure, psnr, reconstruct
from d3hr_ray.stages.judge import load_judge


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_folder_is_small_and_holds_what_training_promises(name):
    weights = list((ASSETS / name).rglob("*.safetensors"))
    assert sum(p.stat().st_size for p in weights) < 8_000_000
    record = json.loads((ASSETS / name / "training.json").read_text())
    assert record["command"] == f"python jobs/pretrain.py --preset {name} --out d3hr_ray/assets/{name}"
    assert record["rejected"] == 0 and record["settings"]["data"]["uri"] == name
    assert {"curves.csv", "curves.png"} <= {p.name for p in (ASSETS / name).iterdir()}
    assert not [p for p in Path(ASSETS / name).rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]


@pytest.mark.slow
def test_reconstruction_of_unseen_digits_and_unit_latents(name):
    card = read_card(name)
    pixels, labels = load_set(DataConfig(f"{name}/test"), card)
    autoencoder, _ = load_networks(name, torch.float32, "cpu")
    assert psnr(pixels, reconstruct(autoencoder, pixels)) >= 28
    noise = normal((len(pixels), *card.latent_shape), "test")
    with torch.inference_mode():
        latents = autoencoder.encode(to_images(torch.from_numpy(pixels)), noise)
    assert 0.95 <= float(latents.std()) <= 1.05
    assert np.bincount(labels).min() >= 40


def test_its_classifier_knows_unseen_digits(name):
    """What judges CaO2's pools: `jobs/evaluate.py --teacher train` on the training split."""
    card = read_card(name)
    classes = pa.table({"name": list(card.class_names), "wnid": pa.nulls(10, pa.string())})
    judge = load_judge(RunConfig(DataConfig(name), ModelConfig(name), method="cao2"), classes, "cpu")
    pixels, labels = load_set(DataConfig(f"{name}/test"), card)
    seen = judge.probabilities(to_images(torch.from_numpy(pixels))).argmax(1).numpy()
    assert (seen == labels).mean() >= 0.98


@pytest.mark.skipif(not Path(PLACES[0]).is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_its_classifier_knows_unseen_garments():
    card = read_card("fashion-mnist")
    classes = pa.table({"name": list(card.class_names), "wnid": pa.nulls(10, pa.string())})
    judge = load_judge(RunConfig(DataConfig("x"), ModelConfig("fashion-mnist"), method="cao2"), classes, "cpu")
    pixels, labels = load_set(replace(DataConfig("fashion-mnist/test"), limit_per_class=100), card)
    seen = judge.probabilities(to_images(torch.from_numpy(pixels))).argmax(1).numpy()
    assert len(labels) == 1000 and (seen == labels).mean() >= 0.86  # of all 89.9 %


@pytest.mark.slow
def test_samples_show_their_class(name):
    quality = measure(name, DataConfig(name), DataConfig(f"{name}/test"))
    assert quality.psnr >= 28
    assert quality.classifier_accuracy >= 0.98
    assert quality.sample_accuracy >= 0.99
