"""The library in one import: its page runs as written, its errors name arguments, and nothing of the user's changes."""

import os
import random
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import PIPELINE, ROOT, encode, make_images, write_imagefolder

import d3hr_ray as d3
from d3hr_ray.config import from_dict
from d3hr_ray.models.closed_form import GaussianDenoiser
from d3hr_ray.stages.fit import read_gaussians, to_tensors
from d3hr_ray.store import Store

PAGE = (ROOT / "docs" / "library.md").read_text()
TOUR = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def settings() -> dict[str, object]:
    """What is the user's: torch's threads, precision, gradients and random numbers, numpy's and Python's too."""
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "precision": (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_default_dtype()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "exactness": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "torch's draws": torch.get_rng_state().numpy().tobytes(),
        "numpy's draws": str(np.random.get_state()),
        "Python's draws": random.getstate(),
        "environment": {k: v for k, v in os.environ.items() if "THREADS" in k or k.startswith(("RAY_", "CUDA_"))},
        "folder": (os.getcwd(), tuple(sys.path)),
    }


@pytest.fixture(scope="module")
def model() -> d3.Model:
    return d3.load_model("digits", device="cpu")


@pytest.fixture(scope="module")
def latents(model) -> torch.Tensor:
    return torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))


def test_the_page_runs_as_written_and_changes_nothing_of_the_users(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(threads := torch.get_num_threads())
    before, names = settings(), {}
    for block in TOUR:
        exec(block, names)
    assert settings() == before and torch.get_num_threads() == threads
    assert (
        d3.matching_loss(names["matched"], names["gaussian"])
        < 0.1
        < 1
        < d3.matching_loss(names["searched"], names["gaussian"])
    )
    assert (names["back"] - names["latents"]).abs().mean() < 0.1 * names["latents"].abs().mean()
    assert names["loaded"].classes == ("eight",) and torch.equal(names["loaded"].pixels, names["distilled"].cpu())
    assert (tmp_path / "eights.png").is_file() and "round trip" in capsys.readouterr().out


def test_the_page_says_who_it_is_for_and_names_all_there_is():
    assert PAGE.startswith("For ") and len(TOUR) >= 6
    assert not [name for name in d3.__all__ if name not in PAGE and name != "RunError"]
    assert {name for name in re.findall(r"\bd3\.(\w+)", PAGE)} <= set(d3.__all__)


@pytest.mark.slow
def test_a_new_process_keeps_its_settings_and_starts_no_ray():
    """In a process of its own: what is imported is imported for good."""
    code = """
import sys
import torch
import d3hr_ray as d3
before = torch.get_num_threads(), torch.get_rng_state().tolist(), torch.get_float32_matmul_precision()
d3.load_set, d3.fit_gaussian, d3.random_search, d3.load_model, d3.RunError
model = d3.load_model("digits", device="cpu")
assert before == (torch.get_num_threads(), torch.get_rng_state().tolist(), torch.get_float32_matmul_precision())
assert "ray" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_alone_takes_nothing_heavy():
    code = """
import sys
import d3hr_ray as d3
assert set(d3.__all__) <= set(dir(d3))
heavy = {"torch", "numpy", "ray", "diffusers", "pyarrow", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_there_documented_and_typed():
    assert (ROOT / "d3hr_ray" / "py.typed").is_file()
    for name in d3.__all__:
        found = getattr(d3, name)
        assert found.__doc__ and (isinstance(found, type) or "return" in found.__annotations__), name
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        d3.load_modle  # noqa: B018


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 50), ("adams", 20)])
@pytest.mark.parametrize("t", [100, 400])
def test_sampling_undoes_inversion(solver, steps, t):
    model = d3.load_model("digits", steps=steps, solver=solver, device="cpu")
    x = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(1)) * 0.5
    noised = model.invert(x, [0, 3, 3, 9], t)
    back = model.sample(noised, [0, 3, 3, 9], t)
    assert (back - x).pow(2).mean().sqrt() < 0.15 * x.std()
    assert not torch.allclose(noised, x, atol=0.05)


def test_a_trajectory_is_what_inverting_to_each_t_gives(model, latents):
    states = model.trajectory(latents, 1, (0, 200, 60))
    assert torch.equal(states[0], latents)
    for t in (200, 60):
        assert torch.equal(states[t], model.invert(latents, 1, t))


def test_an_exact_denoiser_is_inverted_to_the_known_law(model):
    """Data of N(m, s^2): at t the noised latents are normal with the mean sqrt(a) m and the variance a s^2 + 1 - a."""
    law = GaussianDenoiser(model.schedule, torch.tensor(0.5), torch.tensor(0.3))

    class Exact:
        transformer, latent_shape, null_class = model.denoiser.transformer, model.latent_shape, 10

        def guided(self, classes, scale):
            return law

    exact = d3.Model(model.autoencoder, Exact(), model.schedule, "ddim", model.image_size, model.class_names)
    x = 0.5 + 0.3 * torch.randn(400, *model.latent_shape, generator=torch.Generator().manual_seed(2))
    noised = exact.invert(x, 0, 600)
    assert (noised - law.transport(x, 0, 600)).square().mean().sqrt() < 0.08  # first order, 30 steps
    fitted, a = d3.fit_gaussian(noised), model.schedule.alpha(600)
    assert abs(float(fitted.mean.mean()) - a**0.5 * 0.5) < 0.06
    assert abs(float(fitted.std.mean()) - (a * 0.09 + 1 - a) ** 0.5) < 0.06


def test_results_carry_no_gradients_but_may_take_part_in_them(model, latents):
    noised = model.invert(latents.requires_grad_(), 0, 60)
    assert not noised.requires_grad and not noised.is_inference()
    (noised * torch.ones(1, requires_grad=True)).sum().backward()
    latents.requires_grad_(False)


def test_encoding_takes_the_callers_noise(model):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    mode, noise = model.encode(images), torch.randn(2, *model.latent_shape)
    assert torch.equal(mode, model.encode(images)) and torch.equal(mode, model.encode(images, noise * 0))
    assert torch.equal(model.encode(images, noise), model.encode(images, noise))
    assert not torch.equal(model.encode(images, noise), mode)
    assert model.decode(mode).shape == images.shape


@pytest.mark.parametrize("shape", [(8, 4, 4), (5,), ()])
def test_matched_latents_have_the_shape_and_the_moments_of_their_gaussian(shape):
    samples = torch.randn(40, *shape, generator=torch.Generator().manual_seed(4)) * 2 + 1
    gaussian = d3.fit_gaussian(samples)
    torch.testing.assert_close(gaussian.mean, samples.double().mean(0).float())
    torch.testing.assert_close(gaussian.std, samples.double().std(0).float())
    matched = d3.match_moments(gaussian, 6)
    assert matched.shape == (6, *shape) and matched.dtype == torch.float32
    torch.testing.assert_close(matched.mean(0), gaussian.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(matched.std(0), gaussian.std, atol=1e-5, rtol=1e-5)
    assert torch.equal(matched, d3.match_moments(gaussian, 6))
    assert not torch.equal(matched, d3.match_moments(gaussian, 6, label=1))
    assert not torch.equal(matched, d3.match_moments(gaussian, 6, seed=1))
    assert torch.equal(d3.match_moments(gaussian, 1)[0], gaussian.mean)


@pytest.mark.parametrize("n", [1, 4])
def test_more_candidates_never_lose(n):
    gaussian = d3.fit_gaussian(torch.randn(30, 16, 8, generator=torch.Generator().manual_seed(5)))
    losses = [d3.matching_loss(d3.random_search(gaussian, n, m), gaussian) for m in (1, 20, 400)]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    assert d3.matching_loss(d3.match_moments(gaussian, n), gaussian) < losses[-1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, x: d3.load_model("digit"),
            r"model digit: no such folder; .*\(digits, digits-affine, fashion-mnist\)",
        ),
        (lambda m, x: d3.load_model("./nowhere"), "model ./nowhere: no such folder"),
        (lambda m, x: d3.load_model("digits", steps=2000), "steps = 2000 is more than the model's 1000"),
        (lambda m, x: m.invert(x, 0, 610), "t = 610 is not on the 50-step grid; its neighbours are 600 and 620"),
        (lambda m, x: m.sample(x, 0, 5000), "t = 5000 is outside the schedule"),
        (lambda m, x: m.trajectory(x, 0, [-20]), "t = -20 is outside"),
        (lambda m, x: m.invert(x, 10, 600), "class 10 is none of the model's: ids are 0 to 9"),
        (lambda m, x: m.invert(x, [0, 1, -1], 600), "class -1"),
        (lambda m, x: m.sample(x, [0, 1], 600), r"classes \(2,\) for 3 latents"),
        (lambda m, x: m.sample(x, torch.zeros(3), 600), "classes"),
        (lambda m, x: m.sample(x[0], 0, 600), r"latents have the shape \(8, 4, 4\); this model takes \(B, 8, 4, 4\)"),
        (lambda m, x: m.decode(x[:, :, :2]), r"this model takes \(B, 8, 4, 4\)"),
        (lambda m, x: m.encode(torch.zeros(2, 3, 32, 32)), r"this model takes \(B, 3, 16, 16\)"),
        (lambda m, x: m.encode(torch.zeros(2, 16, 16, 3, dtype=torch.uint8)), "images are torch.uint8; .*to_images"),
        (lambda m, x: m.encode(torch.zeros(2, 3, 16, 16), x), r"this model takes \(2, 8, 4, 4\)"),
        (lambda m, x: d3.fit_gaussian(x[:1]), "at least 2"),
        (lambda m, x: d3.fit_gaussian(x / 0), "NaN or inf"),
        (lambda m, x: d3.match_moments(d3.fit_gaussian(x), 0), "n = 0; give 1 or more"),
        (lambda m, x: d3.random_search(d3.fit_gaussian(x), 2, 0), "candidates = 0"),
        (lambda m, x: d3.matching_loss(x[:, 0], d3.fit_gaussian(x)), "a Gaussian of"),
    ],
)
def test_errors_name_the_argument_and_the_fix(model, latents, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(model, latents)
    assert "--" not in str(caught.value)


def test_a_folder_of_anyone_is_a_set(tmp_path):
    images = make_images(2, side=20)
    write_imagefolder(tmp_path / "theirs" / "train", images)
    found = d3.load_set(tmp_path / "theirs")
    assert len(found) == 6 and found.pixels.shape == (6, 20, 20, 3) and found.pixels.dtype == torch.uint8
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2] and len(found.classes) == 3
    assert torch.equal(d3.to_pixels(found.images), found.pixels)
    assert found.images.min() >= -1 and found.images.max() <= 1
    assert d3.load_set(str(tmp_path / "theirs"), side=8).pixels.shape == (6, 8, 8, 3)


def test_what_is_no_set_is_said(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=f"^{path}: no set in it"):
            d3.load_set(path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises((ValueError, d3.RunError), match=r"no image|not an image") as caught:
        d3.load_set(tmp_path, side=8)
    assert "--" not in str(caught.value)


def test_a_run_folders_sets_are_read_and_made_alike(digits):
    """What the jobs wrote is what the library makes of the same latents, Gaussians and subsets."""
    with pytest.raises(ValueError, match="holds 4 sets; give the path of one of them: d3hr-moments-t100-ipc1-seed0"):
        d3.load_set(digits)
    found = d3.load_set(digits / "distilled" / "d3hr-moments-t100-ipc5-seed0")
    assert found.pixels.shape == (50, 16, 16, 3) and found.labels.bincount().tolist() == [5] * 10
    assert found.classes == tuple("0123456789")

    store, label = Store(str(digits)), 3
    config = from_dict(store.read_json("run.json")["config"])
    model = d3.load_model("digits", device="cpu")
    labels, latents = to_tensors(store.read_table("latents"), "z_100")
    gaussian = d3.fit_gaussian(latents[labels == label].reshape(-1, *model.latent_shape))
    mean, std = read_gaussians(store, 100)
    torch.testing.assert_close(gaussian.mean.flatten(), mean[label])
    torch.testing.assert_close(gaussian.std.flatten(), std[label])
    matched = d3.match_moments(gaussian, 5, label=label)
    made = d3.to_pixels(model.decode(model.sample(matched, label, 100, guidance=config.synthesis.guidance)))
    apart = (made.int() - found.pixels[found.labels == label].int()).abs()
    assert apart.max() <= 2 and (apart == 0).float().mean() > 0.99


def test_a_set_that_was_changed_is_refused(digits, tmp_path):
    import shutil

    copy = tmp_path / "changed"
    shutil.copytree(digits / "distilled" / "d3hr-moments-t100-ipc1-seed0", copy)
    next((copy / "train").rglob("*.png")).write_bytes(encode(np.zeros((16, 16, 3), np.uint8)))
    with pytest.raises(d3.RunError, match="is not the file that was made"):
        d3.load_set(copy)


def test_other_models_load_by_folder():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model = d3.load_model(PIPELINE, device="cpu")
    assert model.latent_shape == (4, 8, 8) and model.num_classes == 1000 and model.image_size == 32
    assert model.class_names is None and model.device.type == "cpu"
