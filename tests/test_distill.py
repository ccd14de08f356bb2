"""jobs/distill.py on a real Ray: the embedded digits, the authors' golden data, resume, and layouts of the pool."""

import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from conftest import DIGITS, GOLDEN, PIPELINE, WNIDS, encode, make_images, run, snapshot, units_here, write_imagefolder
from PIL import Image
from torchvision.datasets import ImageFolder

from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.parsing import parse
from d3hr_ray.config import DataConfig, InversionConfig, ModelConfig, RunConfig
from d3hr_ray.datasets.classes import ClassMap
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.methods import d3hr
from d3hr_ray.methods.inputs import count_images, list_data, read_model
from d3hr_ray.methods.plan import plan
from d3hr_ray.models.card import read_card
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.stages.fit import run_fit, to_tensors
from d3hr_ray.stages.invert import InvertShard, run_invert
from d3hr_ray.store import Store
from jobs import distill

HOUSE = GOLDEN.parent / "house"  # a run of DIGITS by the version of 26 November 2026, before the code was restructured


def test_the_run_folder_is_the_contracts(digits):
    record = json.loads((digits / "run.json").read_text())
    assert record["finished"] and record["seed"] == 0 and set(record["versions"]) >= {"ray", "torch", "diffusers"}
    assert record["counts"] == {"accepted": 120, "rejected": 0}
    classes = pq.read_table(digits / "classes.parquet").to_pylist()
    assert classes[3] == {"label": 3, "name": "3", "wnid": None, "model_class": 3}
    gaussians = pq.read_table(digits / "gaussians")
    assert gaussians.schema.names == ["label", "timestep", "count", "mean", "variance"]
    assert sorted(set(gaussians["timestep"].to_pylist())) == [100, 200]
    assert sum(gaussians["count"].to_pylist()) == 2 * 120
    latents = pq.read_table(digits / "latents")
    assert latents.schema.names == ["image_id", "label", "z_100", "z_200"]
    sets = {f"d3hr-moments-t{t}-ipc{n}-seed0" for t in (100, 200) for n in (1, 5)}
    assert {p.name for p in (digits / "distilled").iterdir()} == sets == set(record["sets"])
    subset = pq.read_table(digits / "subsets" / "d3hr-moments-t200-ipc5-seed0")
    assert subset.schema.names == ["label", "index", "seed", "score", "latent"]
    assert len(subset) == 50
    report = {p.name for p in (digits / "report").iterdir()}
    assert report >= {f"{name}.png" for name in sets} | {"normality.csv", "normality.png", "tsne.png", "real.parquet"}


def test_gaussians_are_the_latents_moments(digits):
    labels, z = to_tensors(pq.read_table(digits / "latents"), "z_200")
    rows = [r for r in pq.read_table(digits / "gaussians").to_pylist() if r["timestep"] == 200]
    for r in rows:
        own = z[labels == r["label"]].double()
        assert r["count"] == len(own) == 12
        assert np.allclose(r["mean"], own.mean(0), rtol=1e-6, atol=1e-7)
        assert np.allclose(r["variance"], own.var(0), rtol=1e-6)


def test_moments_loss_is_under_a_ten_thousandth_of_a_random_draws(digits):
    table = np.genfromtxt(digits / "report" / "matching-d3hr-moments-t200-ipc5-seed0.csv", delimiter=",", names=True)
    assert len(table) == 10
    assert (table["loss"] < 1e-4 * table["random_loss"]).all()


def test_a_set_loads_with_torchvision_and_hugging_face(digits):
    folder = digits / "distilled" / "d3hr-moments-t200-ipc5-seed0"
    images = ImageFolder(str(folder / "train"))
    assert len(images) == 50 and images.classes == [str(i) for i in range(10)]
    assert images[0][0].size == (16, 16)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert len(loaded) == 50
    assert sorted(loaded["label"]) == sorted(images.targets)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["files"]) == 50 and manifest["config"]["inversion"]["timesteps"] == [200]


def test_the_sets_images_show_their_class(digits):
    """The class mean at IPC 1, decoded, is nearer to its own class's mean image than to any other's."""
    means = {label: [] for label in range(10)}
    found = list_images(DataConfig("digits"), 10, None)
    for data, label in zip(found.source.read(found.entries), found.entries["label"].to_pylist(), strict=True):
        means[label].append(np.frombuffer(data[-768:], np.uint8).astype(float))
    means = np.stack([np.mean(means[label], 0) for label in range(10)])
    made = [Image.open(digits / f"distilled/d3hr-moments-t200-ipc1-seed0/train/{i}/0.png") for i in range(10)]
    pixels = np.stack([np.asarray(image, float).ravel() for image in made])
    assert np.linalg.norm(pixels[:, None] - means, axis=2).argmin(1).tolist() == list(range(10))


def test_a_run_writes_what_it_wrote_in_older_versions(digits):
    """Records to the letter: an older version's folder resumes. Pixels to one of 255 levels: CPUs round differently."""
    whole = json.loads((HOUSE / "records.json").read_text())
    record = json.loads((digits / "run.json").read_text())
    assert {key: record[key] for key in whole["run"]} == whole["run"]
    pixels = np.load(HOUSE / "images.npz")
    for name, old in whole["manifests"].items():
        folder = digits / "distilled" / name
        new = json.loads((folder / "manifest.json").read_text())
        rows = pq.read_table(folder / "metadata.parquet").sort_by([("label", "ascending"), ("index", "ascending")])
        made = np.stack([np.asarray(Image.open(folder / file), int) for file in rows["file_name"].to_pylist()])
        assert np.abs(made - pixels[name]).max() <= 1
        alike = np.array_equal(made, pixels[name])
        assert {key: new[key] for key in old if key != "set_hash" or alike} == {
            key: old[key] for key in old if key != "set_hash" or alike
        }


@pytest.mark.slow
def test_a_rerun_rebuilds_what_is_missing_to_the_same_bytes(digits, here, monkeypatch):
    """And what this process makes is what Ray's actors made."""
    whole = snapshot(digits)
    (digits / "latents" / "part-000000.parquet").unlink()
    (digits / "gaussians" / "t0100.parquet").unlink()
    (digits / "subsets" / "d3hr-moments-t100-ipc5-seed0" / "part-000000.parquet").unlink()
    (digits / "distilled" / "d3hr-moments-t100-ipc1-seed0" / "train" / "7" / "0.png").unlink()
    run(monkeypatch, f"{DIGITS} --out {digits}")
    assert snapshot(digits) == whole


def test_status_says_what_is_done_and_left_without_ray(digits, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("--status started Ray"))
    shutil.copytree(digits, tmp_path / "run")
    run(monkeypatch, f"--status {tmp_path / 'run'}")
    said = capsys.readouterr().out
    assert "finished 20" in said and "left: nothing" in said and "120 of         120 images" in said
    (tmp_path / "run" / "gaussians" / "t0100.parquet").unlink()
    (tmp_path / "run" / ".done" / "synthesize" / "d3hr-moments-t200-ipc5-seed0" / "000000.parquet").unlink()
    run(monkeypatch, f"--status {tmp_path / 'run'}")
    left = capsys.readouterr().out.splitlines()[-1]
    assert left == "left: fit 1 timesteps; synthesize d3hr-moments-t200-ipc5-seed0 50 images"


@pytest.mark.slow
def test_a_single_draw_is_a_baseline_of_the_same_gaussians(digits, here, monkeypatch, tmp_path):
    run(
        monkeypatch,
        f"--from-gaussians {digits} --method gaussian --timesteps 200 --ipc 2 --actors 1 1 --out {tmp_path / 'one'}",
    )
    images = ImageFolder(str(tmp_path / "one" / "distilled" / "gaussian-t200-ipc2-seed0" / "train"))
    assert len(images) == 20


def test_more_sets_come_from_gaussians_without_the_data(digits, here, monkeypatch, capsys, tmp_path):
    out = tmp_path / "more"
    more = f"--from-gaussians {digits} --timesteps 200 --ipc 3 --search random --candidates 700 --actors 1 1"
    run(monkeypatch, f"{more} --out {out}")
    assert "d3hr-random-t200-ipc3-seed0: 30 images" in capsys.readouterr().out
    assert not (out / "latents").exists()
    matched = np.genfromtxt(out / "report" / "matching-d3hr-random-t200-ipc3-seed0.csv", delimiter=",", names=True)
    assert (matched["loss"] < matched["random_loss"]).mean() >= 0.7  # chosen with the skewness term, measured without
    with pytest.raises(SystemExit):
        run(monkeypatch, f"--from-gaussians {digits} --timesteps 300 --ipc 3 --out {out}")
    assert "no Gaussians at t=300 (there: 100, 200)" in capsys.readouterr().err
    other = pq.read_table(digits / "gaussians" / "t0200.parquet").slice(1)
    pq.write_table(other, out / "gaussians" / "t0200.parquet")
    with pytest.raises(SystemExit):
        run(monkeypatch, f"{more} --out {out}")
    assert "its gaussians/t0200.parquet is another than" in capsys.readouterr().err


def gaussians(out: Path, t: int) -> tuple[list[int], np.ndarray]:
    """Counts, and means and variances, of each class in its order."""
    rows = pq.read_table(out / "gaussians" / f"t{t:04d}.parquet").sort_by("label").to_pylist()
    return [r["count"] for r in rows], np.array([[r["mean"], r["variance"]] for r in rows])


@pytest.mark.slow
def test_a_run_of_more_images_takes_what_is_inverted(digits, here, monkeypatch, capsys, tmp_path):
    """Of a run that shows no real images, which neither does, nor one that is made from its Gaussians."""
    out, old = tmp_path / "grown", shutil.copytree(digits, tmp_path / "old")
    record = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps(record | {"real_images": False}))
    run(monkeypatch, f"--extend {old} --limit-per-class 13 --timesteps 200 --ipc 1 --actors 1 1 --out {out}")
    assert f"120 images are taken from {old}, 10 are inverted" in capsys.readouterr().err
    assert not (out / "report" / "real.parquet").exists()
    assert gaussians(out, 200)[0] == [13] * 10
    manifest = json.loads((out / "distilled" / "d3hr-moments-t200-ipc1-seed0" / "manifest.json").read_text())
    extends = manifest["inputs"]["extends"]
    assert (extends["run"], extends["reused"], extends["inverted"]) == (str(old), 120, 10)
    run(monkeypatch, f"--status {out}")
    said = capsys.readouterr().out
    assert "left: nothing" in said and "reuse" in said
    more = f"--from-gaussians {out} --ipc 2 --actors 1 1 --out {tmp_path / 'more'}"
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(d3hr, "make_sets", MagicMock(side_effect=KeyboardInterrupt))
        run(monkeypatch, more)
    assert json.loads((tmp_path / "more" / "run.json").read_text())["real_images"] is False  # before it has made any
    run(monkeypatch, more)
    assert json.loads((tmp_path / "more" / "run.json").read_text())["real_images"] is False
    with pytest.raises(SystemExit):
        run(monkeypatch, f"--extend {old} --timesteps 300 --ipc 1 --out {out}")
    assert "stored no latents there (it has t = 100, 200)" in capsys.readouterr().err


TRAINING = "--preset digits --timesteps 100 --ipc 1 --actors 1 1"


@pytest.fixture(scope="module")
def whole(ray_session, tmp_path_factory) -> Path:
    """A run on all 1,297 digits."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        units_here(monkeypatch)
        run(monkeypatch, f"{TRAINING} --out {out}")
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "reused"),
    [
        ("--limit-per-class 90", "--limit-per-class 1000", 900),
        ("--classes 0 1 2 4 5 6 7 8 9", "--classes 0 1 2 3 4 5 6 7 8 9", 1165),
    ],
)
def test_digits_in_two_parts_have_the_gaussians_of_all(whole, here, monkeypatch, tmp_path, first, then, reused):
    """In the batches that are the default; a class that comes later changes the labels of those after it."""
    parts, grown = tmp_path / "parts", tmp_path / "grown"
    plain, inverted = InvertShard.invert, []

    def noting(self, pixels, accepted, misfits):
        inverted.extend(accepted["image_id"].to_pylist())
        return plain(self, pixels, accepted, misfits)

    monkeypatch.setattr(InvertShard, "invert", noting)
    run(monkeypatch, f"{TRAINING} {first} --out {parts}")
    run(monkeypatch, f"--extend {parts} {then} --actors 1 1 --out {grown}")
    assert len(inverted) == len(set(inverted)) == 1297
    assert json.loads((grown / "run.json").read_text())["inputs"]["extends"]["reused"] == reused
    (counts, values), (all_counts, all_values) = gaussians(grown, 100), gaussians(whole, 100)
    assert counts == all_counts and np.abs(values - all_values).max() < 1e-6


@pytest.mark.slow
def test_mixtures_come_from_stored_latents(digits, here, monkeypatch, capsys, tmp_path):
    """One component per image is its cluster's mean; without latents/ of the cluster's timestep the run is refused."""
    command = f"--from-gaussians {digits} --timesteps 200 --ipc 3 --components ipc --actors 1 1"
    run(monkeypatch, f"{command} --cluster-timestep 100 --rank 2 --out {tmp_path / 'k'}")
    subset = pq.read_table(tmp_path / "k" / "subsets" / "d3hr-moments-k3-c100-r2-t200-ipc3-seed0").to_pylist()
    mixtures = pq.read_table(tmp_path / "k" / "mixtures" / "t0200-c0100-k3-r2-seed0").to_pylist()
    assert [r["latent"] for r in subset] == [m["mean"] for m in mixtures]
    assert sum(m["count"] for m in mixtures) == 120
    rows = pq.read_table(tmp_path / "k/distilled/d3hr-moments-k3-c100-r2-t200-ipc3-seed0/metadata.parquet").to_pylist()
    assert [r["weight"] for r in rows] == pytest.approx([m["count"] / 4 for m in mixtures])  # of 12 images, in threes
    with pytest.raises(SystemExit):
        run(monkeypatch, f"{command} --cluster-timestep 300 --out {tmp_path / 'none'}")
    assert "has none at t=300 (there: 100, 200)" in capsys.readouterr().err
    assert not (tmp_path / "none" / "run.json").exists()  # and nothing stands in the way of another --cluster-timestep


@pytest.mark.slow
def test_official_fidelity_gives_the_golden_latents_end_to_end(
    ray_session, here, golden, monkeypatch, tmp_path, capsys
):
    """The authors' 24 images as PNG files, through the whole job, against their inverted latents and moments."""
    wnid = {1: WNIDS[0], 207: WNIDS[1], 999: WNIDS[2]}
    images = [
        (wnid[int(label)], f"{i:04d}", encode(pixels))
        for i, (pixels, label) in enumerate(zip(golden["images"], golden["labels"], strict=True))
    ]
    data, out = write_imagefolder(tmp_path / "data", images), tmp_path / "run"
    command = (
        f"--preset imagenet1k --fidelity official --data {data} --model {PIPELINE} --posterior mode --ipc 5 "
        f"--timesteps 600 --candidates 100 --dtype float32 --actors 1 1 --out {out}"
    )
    run(monkeypatch, command)
    table = pq.read_table(out / "latents")
    order = np.argsort([int(Path(i).stem) for i in table["image_id"].to_pylist()])
    at_600 = list(golden["timesteps"]).index(600)
    theirs = torch.from_numpy(golden["inverted_cfg4"][at_600]).flatten(1)
    ours = to_tensors(table, "z_600")[1][order].float()
    assert float((ours - theirs).norm() / theirs.norm()) < 5e-4  # fp16 storage; 1e-6 before it, see test_golden
    rows = pq.read_table(out / "gaussians").to_pylist()
    for r, model_class in zip(rows, (1, 207, 999), strict=True):
        mean = golden["class_mean"][list(golden["class_ids"]).index(model_class), at_600]
        assert np.abs(np.array(r["mean"]) - mean).max() < 2e-3
    made = Image.open(out / f"distilled/d3hr-random-t600-ipc5-seed0/train/{WNIDS[0]}/4.png")
    assert made.size == (224, 224)
    image = Path(data, images[0][0], f"{images[0][1]}.png")
    image.touch()
    run(monkeypatch, command)  # the same bytes, written again: compared, and taken
    image.write_bytes(images[0][2][:-1] + b"!")
    with pytest.raises(SystemExit):
        run(monkeypatch, command)
    assert f"{images[0][0]}/{images[0][1]}.png (written again)" in capsys.readouterr().err


def test_too_few_images_to_pick_are_said_before_ray_starts(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(distill, "connect", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"--method random --limit-per-class 40 --ipc 10 100 --out {tmp_path / 'run'}")
    assert stop.value.code == 2
    assert "class '0' has 40 images, fewer than --ipc 100; give 40 at most" in capsys.readouterr().err


def test_dit_needs_a_model_and_no_images():
    """Its classes are the data's if there is any, else the model's; the same noise makes its images either way."""

    def classes(*argv: str) -> ClassMap:
        config = build_config(parse(DistillFlags, "", ["--method", "dit", "--model", "digits", *argv]))
        card, grid = read_model(config, planning=True)
        assert "synthesize" in plan(config, card, grid, *count_images(config, card, "cifar10"), 1.0)
        return list_data(config, card).classes

    whole = classes("--preset", "cifar10")
    assert len(whole) == 10 and whole == classes("--preset", "digits")
    assert classes("--preset", "cifar10", "--classes", "7", "3").model_classes == (7, 3)
    with pytest.raises(ValueError, match="--data is needed"):
        build_config(parse(DistillFlags, "", ["--method", "random", "--model", "digits", "--preset", "cifar10"]))


def layout(root: Path, actors: int) -> dict[str, bytes]:
    images = make_images(16)
    uri = write_imagefolder(root / "data", images)
    config = RunConfig(
        DataConfig(uri, shard_size=6), ModelConfig(PIPELINE, "float32"), InversionConfig((100,), batch_size=4)
    )
    store, card = Store(str(root / "run")), read_card(PIPELINE)
    run_invert(store, config, card, list_images(config.data, 1000, None), Actors((actors, actors), 0))
    run_fit(store, (100,), list(WNIDS), len(images))
    return snapshot(root / "run")


@pytest.mark.slow
def test_1_and_2_actors_give_the_same_bytes(ray_session, tmp_path):
    one, two = (layout(tmp_path / str(n), n) for n in (1, 2))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dit", "random"])
def test_baselines(ray_session, here, method, monkeypatch, tmp_path):
    out = tmp_path / method
    run(
        monkeypatch,
        f"--preset digits --method {method} --limit-per-class 12 --timesteps 100 --ipc 2 --actors 1 1 --out {out}",
    )
    (name,) = (p.name for p in (out / "distilled").iterdir())
    assert name == f"{method}-ipc2-seed0"
    assert len(ImageFolder(str(out / "distilled" / name / "train"))) == 20
    assert (out / "report" / f"{name}.png").exists()
