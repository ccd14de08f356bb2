"""Pretraining: resume and repetition give the same bytes; streams are complete, seeded and bounded; fine-tuning."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PIPELINE, WNIDS, make_images, wait_for, write_imagefolder
from tqdm import tqdm

from d3hr_ray import lock
from d3hr_ray.config import DataConfig, RunError
from d3hr_ray.models.card import read_card
from d3hr_ray.models.classifiers import enough_steps
from d3hr_ray.models.loading import load_networks, load_schedule
from d3hr_ray.pretraining import check, claim, phases, watch
from d3hr_ray.pretraining.claim import list_classes, prepare, start_anew
from d3hr_ray.pretraining.launch import pretrain
from d3hr_ray.pretraining.networks import build
from d3hr_ray.pretraining.objectives import DitObjective
from d3hr_ray.pretraining.optimise import Loop, rate
from d3hr_ray.pretraining.settings import WRITTEN, Architecture, Phase, PretrainConfig
from d3hr_ray.pretraining.state import State
from d3hr_ray.pretraining.stream import ImageStream
from d3hr_ray.store import Store

ROOT = Path(__file__).parent.parent
SHAPE = Architecture(16, 4, (8, 16), 1, patch_size=4, dit_layers=1, dit_heads=1, dit_width=16)
TINY = PretrainConfig(
    DataConfig("digits"),
    SHAPE,
    vae=Phase(6, 8, 1e-3, warmup=2),
    dit=Phase(6, 8, 1e-3, warmup=2),
    log_every=1,
    checkpoint_every=2,
)


def files(folder):
    """What must be equal: everything but the record of how long it took."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != "training.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert train(TINY, out)
    return out


def train(config, out):
    """What the job does; False if there is nothing left to do."""
    listing = prepare(config, str(out))
    if listing is None:
        return False
    pretrain(config, listing, str(out), "test")
    return True


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test catches it."""


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "step"), [("vae", 2), ("vae", 6), ("dit", 4)])
def test_a_killed_run_resumes_to_the_same_bytes(trained, tmp_path, monkeypatch, phase, step):
    save = Loop._save

    def save_and_die(self, progress, *rest):
        save(self, progress, *rest)
        if (self.name, progress.step) == (phase, step):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save", save_and_die)
        with pytest.raises(Killed):
            train(TINY, tmp_path)
    assert not (tmp_path / "training.json").exists()
    assert train(TINY, tmp_path)
    assert files(tmp_path) == files(trained)


def test_a_complete_run_is_left_alone_and_other_settings_are_refused(trained):
    assert not train(TINY, trained)
    with pytest.raises(ValueError, match=r"seed: 0 -> 1.*--overwrite"):
        train(replace(TINY, seed=1), trained)


def test_a_complete_run_is_not_called_so_where_its_images_have_changed(trained, tmp_path):
    data = write_imagefolder(tmp_path / "data", make_images(4))
    config = replace(TINY, data=DataConfig(data), vae=replace(TINY.vae, steps=1), dit=replace(TINY.dit, steps=1))
    assert train(config, tmp_path / "out") and not train(config, tmp_path / "out")
    write_imagefolder(tmp_path / "data", [(WNIDS[0], "more", make_images(1)[0][2])])
    with pytest.raises(ValueError, match=r"was trained on other images than lie at --data .*--overwrite to train anew"):
        train(config, tmp_path / "out")
    (tmp_path / "data").rename(tmp_path / "gone")
    assert not train(config, tmp_path / "out"), "it needs them no more"


def test_the_dits_second_half_sees_the_scale_of_its_first(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(phases.Worker, "_train_dit", lambda self: [])
    store = Store(str(tmp_path))
    store.write_json(phases.SCALE, {"latent_std": 4.0})
    worker = phases.Worker(TINY, build(TINY, tuple("0123456789")), None, store, phases.World())
    assert worker._kept_std() == 4.0
    monkeypatch.setattr(phases.Worker, "_latent_std", lambda self, rows: float(len(rows)))
    worker.stream = ImageStream(list_classes(DataConfig("digits")), 16, 0)
    store.delete(phases.SCALE)
    assert worker._kept_std() == store.read_json(phases.SCALE)["latent_std"] == 1297


def test_the_folder_loads_as_any_other_model(trained):
    card = read_card(str(trained))
    assert card.class_names == tuple("0123456789")
    assert (card.latent_shape, card.image_size, card.num_classes) == ((4, 8, 8), 16, 10)
    autoencoder, denoiser = load_networks(str(trained), torch.float32, "cpu")
    assert denoiser.null_class == 10
    assert load_schedule(str(trained), 50).grid[-1] == 980
    scheduler = json.loads((trained / "scheduler" / "scheduler_config.json").read_text())
    expected = {"beta_schedule": "linear", "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0}
    assert expected.items() <= scheduler.items() and scheduler["timestep_spacing"] == "leading"
    assert autoencoder.scale != 1
    record = json.loads((trained / "training.json").read_text())
    assert record["rejected"] == 0 and record["images"] == 1297
    assert len((trained / "curves.csv").read_text().splitlines()) == 13


def test_a_run_is_not_resumed_on_other_images(tmp_path):
    assert prepare(TINY, str(tmp_path)) is not None
    with pytest.raises(ValueError, match=r"limit_per_class: None -> 5"):
        prepare(replace(TINY, data=DataConfig("digits", limit_per_class=5)), str(tmp_path))


def test_files_that_changed_before_a_resume_are_told(tmp_path, monkeypatch):
    write_imagefolder(tmp_path / "data", make_images(40))
    config, out = replace(TINY, data=DataConfig(str(tmp_path / "data"))), str(tmp_path / "out")
    assert prepare(config, out).notes == ()
    image = tmp_path / "data" / WNIDS[0] / "0003.png"
    os.utime(image, ns=(0, 0))
    (note,) = prepare(config, out).notes
    assert f"1 file has changed since: {WNIDS[0]}/0003.png (written again); training goes on" in note
    monkeypatch.chdir(tmp_path)
    assert prepare(replace(config, data=DataConfig("data/")), out).notes == ()  # the same place, written otherwise
    image.unlink()
    with pytest.raises(ValueError, match=r"0003.png \(gone\)"):
        prepare(config, out)


def test_overwrite_deletes_no_model_of_others_and_not_the_one_it_begins_with(tmp_path):
    theirs = shutil.copytree(PIPELINE, tmp_path / "theirs")
    before = sorted(path.name for path in theirs.iterdir())
    with pytest.raises(ValueError, match=r"--overwrite: .* holds no model of pretrain.py; empty it yourself"):
        start_anew(str(theirs))
    with pytest.raises(ValueError, match=r"--overwrite would delete --init .*, which is --out; give another --out"):
        start_anew(f"{theirs}/", str(theirs))
    assert sorted(path.name for path in theirs.iterdir()) == before
    start_anew(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_overwrite_goes_on_where_it_was_killed_and_beside_a_folder_of_ones_own(trained, tmp_path):
    """What says whose files they are is deleted last."""
    out = tmp_path / "model"
    for left in ({"training.json", ".training"}, {".training"}, set()):
        shutil.copytree(trained, out, dirs_exist_ok=True)
        (out / "notes").mkdir(exist_ok=True)
        (out / ".training").mkdir(exist_ok=True)
        for name in {"training.json", ".training"} - left:
            shutil.rmtree(out / name) if name == ".training" else (out / name).unlink()
        if left:
            start_anew(str(out))
            assert {path.name for path in out.iterdir()} - {".tmp"} == {"notes"}
            prepare(TINY, str(out))
            shutil.rmtree(out / ".training")
        else:
            with pytest.raises(ValueError, match=r"holds no model of pretrain\.py"):
                start_anew(str(out))


def test_overwrite_deletes_only_what_training_wrote(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "training.json").write_text("{}")
    start_anew(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="holds files of something else"):
        train(TINY, tmp_path)


def test_fine_tuning_keeps_the_vae_and_refits_the_classes(trained, tmp_path):
    config = replace(
        TINY, init=str(trained), data=DataConfig("digits", classes=("7", "3", "5")), vae=replace(TINY.vae, steps=0)
    )
    before = build(replace(config, data=DataConfig("digits")), list("0123456789")).transformer
    fitted = build(config, ["7", "3", "unheard of"]).transformer
    old, new = (t.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight for t in (before, fitted))
    assert torch.equal(new, old[[7, 3, 10, 10]])
    assert train(config, tmp_path)
    assert read_card(str(tmp_path)).class_names == ("7", "3", "5")
    weights = "diffusion_pytorch_model.safetensors"
    assert files(tmp_path / "vae")[weights] == files(trained / "vae")[weights]
    assert files(tmp_path / "transformer")[weights] != files(trained / "transformer")[weights]


def test_fine_tuning_starts_from_imagenets_classes_by_any_of_their_spellings():
    """Hugging Face has two cranes; which is which is told by the names beside it."""
    start = replace(TINY, init=PIPELINE)
    fitted = build(start, ["crane", "crane2", "stingray"]).transformer
    whole = load_networks(PIPELINE, torch.float32, "cpu")[1].transformer
    new, old = (t.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight for t in (fitted, whole))
    assert torch.equal(new, old[[134, 517, 6, 1000]])


def test_the_objective_is_the_mean_error_of_the_noise():
    transformer = build(TINY, list("0123456789")).transformer
    objective = DitObjective(transformer, torch.tensor([0.9, 0.1]))
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 10, 3])
    loss = objective(torch.zeros_like(noise), noise, torch.tensor([0, 1, 1]), classes)["loss"]
    assert torch.allclose(loss, noise.square().mean())  # a new DiT predicts 0
    assert not transformer.training  # in train mode diffusers drops labels on its own


def test_the_learning_rate_rises_then_falls_to_zero():
    phase = Phase(100, 1, 1.0, warmup=10)
    rates = [rate(step, phase) for step in range(101)]
    assert rates[0] < 0.11 and max(rates) > 0.97 and rates[100] < 1e-9


def test_too_many_unreadable_images_fail_the_run_and_name_one(cats_and_dogs, tmp_path_factory):
    out = tmp_path_factory.mktemp("rejected")
    with pytest.raises(RunError, match=r"2 of 80 images.*cat/02.png.*--max-rejected"):
        train(replace(TINY, data=DataConfig(cats_and_dogs)), out / "a")
    assert train(replace(TINY, data=DataConfig(cats_and_dogs, max_rejected=0.1)), out / "b")
    assert json.loads((out / "b" / "training.json").read_text())["rejected"] == 2
    assert read_card(str(out / "b")).class_names == ("cat", "dog")


@pytest.fixture
def drawn(monkeypatch):
    """What progress bars draw, every state of them."""
    text = io.StringIO()

    def draw(total, title, unit, hide=False, done=0):
        return tqdm(total=total, desc=title, unit=f" {unit}", initial=done, file=text, mininterval=0, miniters=1)

    monkeypatch.setattr(watch, "make_bar", draw)
    monkeypatch.setattr(claim, "progress", draw)
    return text


def test_training_shows_images_parameters_steps_and_loss(trained, tmp_path, drawn):
    config = replace(TINY, dit=replace(TINY.dit, steps=1), checkpoint_every=1)
    train(config, tmp_path)
    sizes = json.loads((tmp_path / "training.json").read_text())["parameters"]
    for shown in (
        r"reading 1,297 images: 100%.* 1297/1297 ",
        rf"vae of {sizes['vae']:,} parameters: +0%.* 0/6 ",
        rf"vae of {sizes['vae']:,} parameters, loss 0\.\d+: 100%.* 6/6 .*step",
        r"scale of the latents: 100%.* 1297/1297 ",
        rf"dit of {sizes['transformer']:,} parameters, loss \d\.\d+: 100%.* 1/1 .*step",
    ):
        assert re.search(shown, drawn.getvalue()), shown


def test_listing_is_shown(cats_and_dogs, drawn):
    list_classes(DataConfig(cats_and_dogs))
    assert re.search(r"listing: 100%.* 2/2 ", drawn.getvalue())


def test_a_driver_shows_what_a_distant_worker_tells(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(watch, "POLL", (0.01, 0.01))
    store = Store(str(tmp_path))
    store.write_json(watch.FILE, {"of": "a run before"})
    with watch.following(store):
        tell = watch.to_driver(store)
        tell(State("vae", 0, 9, "step"))
        tell(State("vae", 9, 9, "step", torch.tensor(0.25)))
    assert "vae, loss 0.25: 100%" in drawn.getvalue()


def test_a_phase_that_starts_again_gets_a_new_bar(drawn):
    with watch.showing() as tell:
        for done in (0, 5, 2, 5):
            tell(State("vae", done, 5, "step"))
    assert drawn.getvalue().count("5/5") >= 2 and "2/5" not in drawn.getvalue().partition("5/5")[0]


def test_a_check_draws_as_many_samples_as_asked_and_tells_how_far_it_is(trained, monkeypatch):
    monkeypatch.setattr(check, "enough_steps", lambda images: 2)
    told = []
    quality = check.measure(str(trained), DataConfig("digits"), DataConfig("digits/test"), 5, tell=told.append)
    assert [k for k, right in enumerate(quality.accuracy_per_class) if right is not None] == [0, 2, 4, 6, 8]
    assert quality.sample_accuracy * 5 == sum(right or 0 for right in quality.accuracy_per_class)
    ends = {state.phase: (state.done, state.total) for state in told}
    assert ends == {
        "reading 1,297 images": (1297, 1297),
        "reading 500 images": (500, 500),
        "training a classifier": (2, 2),
        "sampling": (5, 5),
        "reconstructing": (500, 500),
    }


def test_a_classifier_trains_for_as_long_as_its_images_last():
    steps = [enough_steps(images) for images in (3, 120, 640, 1297, 10_376, 60_000, 1_281_167)]
    assert steps == [200, 200, 400, 800, 800, 3750, 4000]


def test_samples_are_spread_over_the_classes():
    assert check.spread(500, 10).tolist() == np.repeat(range(10), 50).tolist()
    assert check.spread(3, 1000).tolist() == [0, 333, 666]


def job_main(monkeypatch, *args):
    """jobs/pretrain.py in this process."""
    from jobs import pretrain as job

    monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, args)])
    job.main()


def test_a_second_driver_of_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with lock.driving(Store(str(tmp_path))), pytest.raises(RunError, match=f"--out {tmp_path} is in use by process"):
        job_main(monkeypatch, *SMALL, "--out", tmp_path, "--overwrite")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--check", "digits", "--check-samples", "0"), "--check-samples 0 must be at least 1"),
        (("--check-samples", "9"), "--check-samples needs --check"),
        (("--teacher", "x"), "--teacher needs --check"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(flags, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        job_main(monkeypatch, *flags)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 18}, "--image-size 18"),
        ({"dit_width": 17, "dit_heads": 2}, "--dit-width 17"),
        ({"dit_width": 90, "dit_heads": 3}, "--dit-width 90 is no multiple of 4"),
        ({"vae_channels": (12,)}, "--vae-channels 12"),
    ],
)
def test_impossible_shapes_are_refused_by_flag(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SHAPE, **change)


SMALL = [
    "--batch-size", "8", "--vae-channels", "8", "16", "--dit-width", "32", "--dit-layers", "1",
    "--checkpoint-every", "50",
]  # fmt: skip


@pytest.mark.slow
def test_two_workers_train_one_model_from_relative_paths(ray_session, tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    job_main(monkeypatch, *SMALL, "--vae-steps", 50, "--dit-steps", 50, "--workers", 2, "--out", "out")
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["workers"] == 2 and record["final"]["dit"]["loss"] < 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(WRITTEN)
    load_networks(str(tmp_path / "out"), torch.float32, "cpu")
    assert re.search(r"dit of [\d,]+ parameters, loss .* 50/50 ", drawn.getvalue())  # as rank 0 told the driver


@pytest.mark.slow
def test_kill_9_and_the_same_command_end_at_the_same_bytes(tmp_path, monkeypatch, drawn):
    flags = [*SMALL, "--vae-steps", "100", "--dit-steps", "150", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *flags, str(killed)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for((killed / ".training" / "dit.pt").exists, process, seconds=300)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()  # closes its pipes
    assert not (killed / "training.json").exists()
    job_main(monkeypatch, *flags, killed)  # its lock is that of a dead driver
    assert "vae of" in drawn.getvalue() and " 1/100 " not in drawn.getvalue()  # the VAE was trained before
    job_main(monkeypatch, *flags, whole)
    assert files(killed) == files(whole)
