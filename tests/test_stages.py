"""The stages' cores without Ray: the same classes that Ray Data schedules, called in this process."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import PIPELINE, WNIDS, make_images, write_imagefolder, write_parquet, write_webdataset
from safetensors.torch import load_file, save_file

from d3hr_ray.config import DataConfig, InversionConfig, ModelConfig, RunConfig, RunError, SearchConfig
from d3hr_ray.datasets.listing import Listing, list_images
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.layout import VERSIONS, latents_file
from d3hr_ray.methods.d3hr import start_run
from d3hr_ray.models.card import read_card
from d3hr_ray.models.loading import load_schedule
from d3hr_ray.numerics.ddim import invert
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.sets import sets_of
from d3hr_ray.stages import contents
from d3hr_ray.stages import invert as stage
from d3hr_ray.stages.fit import gaussian_table, merge_tree, partial_moments, run_fit, to_tensors
from d3hr_ray.stages.publish import repeats_text
from d3hr_ray.store import Store

CPU = Actors((1, 1), 0)
IMAGES = make_images(7)


@pytest.fixture(autouse=True)
def no_ray(here, monkeypatch):
    """Images are compared by threads, too."""
    monkeypatch.setattr(contents, "ray_map", thread_map)


def config(uri: str, model: str = PIPELINE, batch_size: int = 8, posterior="sample", **data) -> RunConfig:
    inversion = InversionConfig((20, 100), batch_size=batch_size, posterior=posterior)
    return RunConfig(DataConfig(uri, **{"shard_size": 8} | data), ModelConfig(model, "float32"), inversion)


def listing(made: RunConfig) -> Listing:
    return list_images(made.data, 1000, None)


def inverted(root: Path, made: RunConfig) -> Store:
    store = Store(str(root))
    stage.run_invert(store, made, read_card(made.model.name), listing(made), CPU)
    return store


def gaussians(store: Store, t: int = 100) -> pa.Table:
    moments = partial_moments(store, store.list("latents"), t)
    return gaussian_table(moments, t, list(WNIDS), sum(m.count for m in moments.values()))


def columns(table: pa.Table) -> np.ndarray:
    return np.stack([np.stack(table[c].to_pylist()) for c in ("mean", "variance")])


def test_latents_are_the_contracts_rows(tmp_path):
    store = inverted(tmp_path / "run", config(write_imagefolder(tmp_path / "data", IMAGES)))
    table = store.read_table("latents")
    assert table.schema.names == ["image_id", "label", "z_20", "z_100"]
    assert table.schema.field("z_100").type == pa.list_(pa.float16(), 256)
    assert table["label"].type == pa.int32()
    assert sorted(table["image_id"].to_pylist()) == [f"{w}/{n}.png" for w, n, _ in IMAGES]
    done = stage.finished(store).values()
    assert sum(c["accepted"] for c in done) == len(IMAGES) and all(c["rotated"] == 0 for c in done)


def test_latents_are_what_plain_code_makes(tmp_path, networks):
    """Mode posterior, one batch, against encode and invert called by hand."""
    made = config(write_imagefolder(tmp_path / "data", IMAGES), posterior="mode", batch_size=64, shard_size=64)
    table = inverted(tmp_path / "run", made).read_table("latents")
    found = listing(made)
    pixels = np.stack([stage_pixels(d) for d in found.source.read(found.entries)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    classes = torch.tensor([(1, 207, 999)[label] for label in table["label"].to_pylist()])
    with torch.inference_mode():
        latents = networks[0].encode(images, None)
        states = invert(networks[1].guided(classes, 1.0), latents, load_schedule(PIPELINE, 50), [100])
    assert torch.allclose(to_tensors(table, "z_100")[1].float(), states[100].flatten(1), atol=2e-3)


def stage_pixels(data: bytes) -> np.ndarray:
    from d3hr_ray.datasets.decode import decode

    return decode(data, 32)


@pytest.mark.parametrize("write", [write_webdataset, write_parquet])
def test_formats_give_the_same_gaussians_up_to_rounding(tmp_path, write):
    a = gaussians(inverted(tmp_path / "a", config(write_imagefolder(tmp_path / "folder", IMAGES))))
    b = gaussians(inverted(tmp_path / "b", config(write(tmp_path / "other", IMAGES[::-1]))))
    assert a["count"].to_pylist() == b["count"].to_pylist() == [7, 7, 7]
    assert np.abs(columns(a) - columns(b)).max() < 1e-3  # fp16 latents of size about 1


def test_batch_sizes_differ_by_rounding_only(tmp_path):
    uri = write_imagefolder(tmp_path / "data", IMAGES)
    a, b = (inverted(tmp_path / str(n), config(uri, batch_size=n)).read_table("latents") for n in (2, 8))
    assert a["image_id"].equals(b["image_id"])
    assert torch.allclose(to_tensors(a, "z_100")[1].float(), to_tensors(b, "z_100")[1].float(), atol=2e-3)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_deleted_parts_are_rebuilt_to_the_same_bytes(tmp_path):
    made = config(write_imagefolder(tmp_path / "data", IMAGES))
    inverted(tmp_path / "run", made)
    whole = snapshot(tmp_path / "run")
    for name in (
        "latents/part-000001.parquet",
        f".done/invert/{Store(str(tmp_path / 'run')).list('.done/invert')[0]}",
        "latents/part-000000.parquet",
    ):
        (tmp_path / "run" / name).unlink()
    untouched = (tmp_path / "run" / "latents/part-000002.parquet").stat().st_mtime_ns
    inverted(tmp_path / "run", made)
    assert snapshot(tmp_path / "run") == whole
    assert (tmp_path / "run" / "latents/part-000002.parquet").stat().st_mtime_ns == untouched


def spoil(root: Path) -> None:
    (root / WNIDS[0] / "0001.png").write_bytes(b"")
    (root / WNIDS[1] / "0002.png").write_bytes(b"not an image")
    good = (root / WNIDS[2] / "0003.png").read_bytes()
    (root / WNIDS[2] / "0003.png").write_bytes(good[: len(good) // 2])


def test_unreadable_images_are_counted_and_named(tmp_path):
    made = config(write_imagefolder(tmp_path / "data", IMAGES), max_rejected=0.2)
    spoil(tmp_path / "data")
    store = inverted(tmp_path / "run", made)
    rejected = {r["image_id"]: r["reason"] for r in store.read_table("rejected").to_pylist()}
    assert rejected.keys() == {f"{WNIDS[0]}/0001.png", f"{WNIDS[1]}/0002.png", f"{WNIDS[2]}/0003.png"}
    assert rejected[f"{WNIDS[0]}/0001.png"] == "empty file"
    assert len(store.read_table("latents")) == len(IMAGES) - 3
    assert gaussians(store)["count"].to_pylist() == [6, 6, 6]


def test_too_many_unreadable_images_fail_the_run_by_name(tmp_path):
    made = config(write_imagefolder(tmp_path / "data", IMAGES))
    spoil(tmp_path / "data")
    with pytest.raises(
        RunError, match=r"1 of 21 images cannot be used, more than --max-rejected 0\.01: n0144.*0001\.png"
    ):
        inverted(tmp_path / "run", made)


def test_a_file_that_vanishes_fails_the_run_by_name(tmp_path):
    made = config(write_imagefolder(tmp_path / "data", IMAGES))
    found = listing(made)
    (tmp_path / "data" / WNIDS[0] / "0001.png").unlink()
    with pytest.raises(RunError, match=r"shard 0: cannot read the images from .*0001\.png"):
        stage.run_invert(Store(str(tmp_path / "run")), made, read_card(PIPELINE), found, CPU)


def test_nan_in_latents_names_the_images_and_leaves_no_done_mark(tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(PIPELINE, broken)
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out_2.weight"][:] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    made = config(write_imagefolder(tmp_path / "data", IMAGES), model=str(broken))
    with pytest.raises(RunError, match=rf"NaN or inf in the latents at t=20 of 8 images: {WNIDS[0]}/0000\.png"):
        inverted(tmp_path / "run", made)
    assert Store(str(tmp_path / "run")).marks("invert") == {}


def test_lost_images_fail_the_run(tmp_path):
    made = config(write_imagefolder(tmp_path / "data", IMAGES))
    store = Store(str(tmp_path / "run"))
    for shard in range(3):
        store.mark("invert", shard, accepted=0, rejected=0)
    with pytest.raises(RunError, match=r"0 accepted \+ 0 rejected images are not the 21 listed"):
        inverted(tmp_path / "run", made)


def test_posterior_noise_depends_on_seed_and_image_only(tmp_path):
    uri = write_imagefolder(tmp_path / "data", IMAGES)
    made = config(uri, posterior="sample")
    tables = [
        inverted(tmp_path / str(i), c).read_table("latents")["z_20"].to_pylist()
        for i, c in enumerate([made, replace(made, seed=1), config(uri, limit_per_class=7)])
    ]
    assert tables[0] == tables[2] != tables[1]


def test_fit_equals_numpy_and_any_grouping(tmp_path):
    store = inverted(tmp_path / "run", config(write_imagefolder(tmp_path / "data", IMAGES)))
    files = store.list("latents")
    labels, z = to_tensors(store.read_table("latents"), "z_100")
    for groups in ([files], [[f] for f in files], [files[:1], files[1:]]):
        moments = merge_tree([partial_moments(store, g, 100) for g in groups])
        for label in range(3):
            own = z[labels == label].double().numpy()
            assert np.allclose(moments[label].mean_D, own.mean(0), rtol=1e-12, atol=1e-14)
            assert np.allclose(moments[label].variance(), own.var(0, ddof=1), rtol=1e-12)


def test_fit_refuses_small_classes_and_lost_images(tmp_path):
    store = inverted(tmp_path / "run", config(write_imagefolder(tmp_path / "data", IMAGES)))
    moments = partial_moments(store, store.list("latents"), 100)
    with pytest.raises(RunError, match="class 'extra' has 0 usable"):
        gaussian_table(moments, 100, [*WNIDS, "extra"], 21)
    with pytest.raises(RunError, match="holds 21 images at t=100, but 22 were accepted"):
        gaussian_table(moments, 100, list(WNIDS), 22)


def test_blocks_cover_every_label_once():
    plain = config("")
    for ipc in (1, 10, 300):
        (spec,) = sets_of(replace(plain, inversion=InversionConfig(), search=SearchConfig(ipc=(ipc,))))
        assert [label for block in spec.blocks(1000) for label in block] == list(range(1000))
        assert spec.name == f"d3hr-moments-t600-ipc{ipc}-seed0"
    assert [s.name for s in sets_of(replace(plain, method="dit", seed=2))] == ["dit-ipc10-seed2"]


@pytest.mark.parametrize(
    ("part", "file"), [("vae", "config.json"), ("transformer", "config.json"), ("scheduler", "scheduler_config.json")]
)
def test_a_model_folder_without_a_part_says_which_file(tmp_path, part, file):
    shutil.copytree(PIPELINE, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / part)
    with pytest.raises(ValueError, match=f"no usable {part}; it needs {part}/{file}"):
        read_card(str(tmp_path / "model"))


def test_a_model_that_does_not_predict_noise_is_refused(tmp_path):
    shutil.copytree(PIPELINE, tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(ValueError, match="'v_prediction'; only 'epsilon'"):
        load_schedule(str(tmp_path / "model"), 50)


def test_a_hub_model_out_of_reach_says_what_to_download():
    with pytest.raises(ValueError, match=r"transformer/config\.json.*--model FOLDER"):
        read_card("facebook/DiT-XL-2-256")


def test_an_image_that_fits_into_no_memory_is_rejected_after_the_batch_was_halved(tmp_path, monkeypatch):
    """Batches of more than 4 images do not fit, and the image of shard 1 that is named does not fit alone."""
    made = config(write_imagefolder(tmp_path / "data", IMAGES), max_rejected=0.1)
    whole, bad = stage.invert_images, []

    def tight(autoencoder, denoise, schedule, pixels, noise, timesteps, walk):
        if len(pixels) > 4 or (len(bad) and (pixels == bad[0]).all((1, 2, 3)).any()):
            raise MemoryError("no room")
        return whole(autoencoder, denoise, schedule, pixels, noise, timesteps, walk)

    bad.append(torch.from_numpy(stage_pixels(IMAGES[10][2]).copy()))
    monkeypatch.setattr(stage, "invert_images", tight)
    store = inverted(tmp_path / "run", made)
    name = f"{IMAGES[10][0]}/{IMAGES[10][1]}.png"
    assert store.read_table("rejected").to_pylist() == [
        {"image_id": name, "label": 1, "reason": "does not fit into memory, not even alone"}
    ]
    assert len(store.read_table("latents")) == len(IMAGES) - 1
    assert gaussians(store)["count"].to_pylist() == [7, 6, 7]


def test_images_none_of_which_fits_into_memory_are_all_rejected(tmp_path, monkeypatch):
    """As where one does not, since they have one size: the run says so, and that its classes are empty."""

    def tight(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(stage, "invert_images", tight)
    store = inverted(tmp_path / "run", config(write_imagefolder(tmp_path / "data", IMAGES), max_rejected=1.0))
    assert store.read_table("rejected")["reason"].to_pylist() == ["does not fit into memory, not even alone"] * 21
    assert not store.list("latents")
    with pytest.raises(RunError, match=r"class .* has 0 usable image\(s\)"):
        run_fit(store, (100,), list(WNIDS), 0)


def test_files_that_show_a_picture_twice_are_told_by_class():
    classes = (("few", 2), ("many", 10))
    rows = [{"class_name": name, "sha256": f"{name}{k % distinct}"} for name, distinct in classes for k in range(10)]
    text = repeats_text(pa.Table.from_pylist(rows))
    assert text == "class 'few' has 10 files of 2 pictures; give fewer --ipc, or more images of them"
    assert repeats_text(pa.Table.from_pylist(rows[10:])) == ""


def started(root: Path, made: RunConfig) -> Store:
    """As a job starts or resumes a run."""
    store = Store(str(root))
    start_run(store, made, read_card(made.model.name), listing(made), CPU, overwrite=False)
    return store


def whole(tmp_path: Path, write=write_imagefolder) -> RunConfig:
    """A run that has inverted all its images."""
    made = config(write(tmp_path / "data", IMAGES))
    started(tmp_path / "run", made)
    inverted(tmp_path / "run", made)
    return made


def touch(root: Path) -> None:
    for path in root.rglob("*.*"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def replaced(image: bytes) -> bytes:
    return image[:-1] + b"!"


WRITERS = {"imagefolder": write_imagefolder, "webdataset": write_webdataset, "parquet": write_parquet}


@pytest.mark.parametrize("form", WRITERS)
def test_images_replaced_in_place_are_refused_and_copies_of_the_same_are_not(tmp_path, form, monkeypatch):
    made = whole(tmp_path, WRITERS[form])
    touch(tmp_path / "data")
    started(tmp_path / "run", made)  # other times, the same bytes
    with monkeypatch.context() as patch:
        patch.setattr(contents, "read_content", None)
        started(tmp_path / "run", made)  # compared once, not at every resume
    wnid, name, data = IMAGES[8]
    WRITERS[form](tmp_path / "data", [*IMAGES[:8], (wnid, name, replaced(data)), *IMAGES[9:]])
    touch(tmp_path / "data")
    with pytest.raises(ValueError, match=r"are others now: .*\(written again\)"):
        started(tmp_path / "run", made)


def test_the_first_files_that_changed_are_named(tmp_path):
    made = whole(tmp_path)
    path = tmp_path / "data" / WNIDS[1] / "0001.png"
    touch(tmp_path / "data" / WNIDS[0])
    before = path.read_bytes()
    path.write_bytes(replaced(before))
    with pytest.raises(
        ValueError, match=f"are others now: 1 file has changed since: {WNIDS[1]}/0001.png .written again"
    ):
        started(tmp_path / "run", made)
    path.write_bytes(before)
    started(tmp_path / "run", made)  # put back
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / WNIDS[0] / name).write_bytes(before)
    path.unlink()
    with pytest.raises(ValueError, match="3 files have changed since") as error:
        started(tmp_path / "run", made)
    words = f"{WNIDS[0]}/a.png (new), {WNIDS[0]}/b.png (new), {WNIDS[1]}/0001.png (gone). --out"
    assert words in str(error.value)


def test_an_image_replaced_before_its_shard_is_done_mixes_nothing(tmp_path):
    made = whole(tmp_path)
    store = Store(str(tmp_path / "run"))
    store.delete(latents_file(2))
    path = tmp_path / "data" / WNIDS[2] / "0006.png"
    path.write_bytes(replaced(path.read_bytes()))
    started(tmp_path / "run", made)
    inverted(tmp_path / "run", made)
    assert len(store.list(".done/invert")) == 3  # one mark each, the last one of what was read last
    touch(tmp_path / "data")
    started(tmp_path / "run", made)


def test_a_run_that_kept_no_digests_goes_on_and_says_so(tmp_path, caplog):
    made = whole(tmp_path)
    store = Store(str(tmp_path / "run"))
    store.delete(VERSIONS)
    for shard, counts in store.marks("invert").items():
        store.unmark("invert", {shard})
        store.mark("invert", shard, accepted=counts["accepted"], rejected=counts["rejected"])
    started(tmp_path / "run", made)
    assert not caplog.messages
    touch(tmp_path / "data" / WNIDS[0])
    started(tmp_path / "run", made)
    assert "kept no digests of its images, so 1 of its shards are taken as they are" in caplog.text


def test_real_images_that_were_picked_are_refused_with_their_files(tmp_path):
    made = replace(config(write_imagefolder(tmp_path / "data", IMAGES)), method="random")
    store = started(tmp_path / "run", made)
    touch(tmp_path / "data")
    started(tmp_path / "run", made)  # nothing was picked yet
    store.write_bytes("distilled/random-ipc2/x.png", b"")
    touch(tmp_path / "data")
    with pytest.raises(ValueError, match="21 files have changed since"):
        started(tmp_path / "run", made)
