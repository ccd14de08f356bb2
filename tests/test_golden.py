"""`--fidelity official` against the D3HR authors' own functions (tests/golden/README.md)."""

import numpy as np
import pytest
import torch
from conftest import PIPELINE

from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.models.loading import load_schedule
from d3hr_ray.numerics.ddim import invert, sample
from d3hr_ray.numerics.groups import scores
from d3hr_ray.numerics.moments import Moments


@pytest.fixture(scope="module")
def schedule():
    return load_schedule(PIPELINE, 50)


@pytest.fixture(scope="module")
def classes(golden):
    return torch.from_numpy(golden["labels"]).long()


def relative(ours: torch.Tensor, theirs: np.ndarray) -> float:
    theirs = torch.from_numpy(theirs)
    return float((ours - theirs).norm() / theirs.norm())


@torch.inference_mode()
def test_encoder_mode(golden, networks):
    ours = networks[0].encode(to_images(torch.from_numpy(golden["images"])), None)
    assert relative(ours, golden["latents_mode_scaled"]) < 1e-5


@pytest.mark.parametrize(("name", "guidance"), [("inverted_cfg4", 4.0), ("inverted_noguidance", 1.0)])
@torch.inference_mode()
def test_inverted_latents_at_every_stored_step(golden, networks, schedule, classes, name, guidance):
    timesteps = [int(t) for t in golden["timesteps"]]
    latents = torch.from_numpy(golden["latents_mode_scaled"])
    states = invert(networks[1].guided(classes, guidance), latents, schedule, timesteps)
    errors = [relative(states[t], golden[name][k]) for k, t in enumerate(timesteps)]
    assert max(errors) < 1e-4


def test_class_moments(golden):
    labels, ids = torch.from_numpy(golden["labels"]), golden["class_ids"]
    for c, class_id in enumerate(ids):
        for k in range(len(golden["timesteps"])):
            z = torch.from_numpy(golden["inverted_cfg4"][k]).flatten(1)[labels == int(class_id)]
            moments = Moments.of(z)
            assert relative(moments.mean_D.float(), golden["class_mean"][c, k]) < 1e-4
            assert relative(moments.variance().float(), golden["class_var"][c, k]) < 1e-4


@pytest.mark.parametrize(("name", "start"), [("decoded_start18", 620), ("decoded_start19", 600)])
@torch.inference_mode()
def test_decoded_images(golden, networks, schedule, classes, name, start):
    """Start 18 is one grid step above the latents' t = 600, as shipped; start 19 is exact."""
    latents = torch.from_numpy(golden["inverted_cfg4"][list(golden["timesteps"]).index(600)])
    denoise = networks[1].guided(classes, 4.0)
    images = networks[0].decode(sample(denoise, latents, schedule, start, floor=1))
    ours = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((ours - torch.from_numpy(golden[name])).abs().max()) < 1e-3


def test_search_scores_of_all_candidates(golden):
    mean, std, candidates = (torch.from_numpy(golden[f"search_{k}"]) for k in ("mean", "std", "candidates"))
    ours = scores(candidates, mean, std, 0.1, "features")
    assert torch.allclose(ours, torch.from_numpy(golden["search_scores"]), rtol=1e-4, atol=0)
