"""--extend: a grown set is made from the latents of a run of the smaller one, and equals a run on everything."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PIPELINE, WNIDS, make_images, write_imagefolder, write_parquet, write_webdataset

from d3hr_ray.config import DataConfig, InversionConfig, ModelConfig, RunConfig, RunError
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.layout import CLASSES, KEYS, LATENTS, RUN, finished
from d3hr_ray.methods import d3hr
from d3hr_ray.methods.growing import check_extended
from d3hr_ray.methods.inputs import count_images
from d3hr_ray.methods.plan import plan
from d3hr_ray.models.card import read_card
from d3hr_ray.report.status import status
from d3hr_ray.runs import read_run
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.stages import contents, fit, growth, invert, reuse
from d3hr_ray.store import Store

CPU = Actors((1, 1), 0)
IMAGES = make_images(9)
FEWER = [image for image in IMAGES if image[1] < "0006"]


@pytest.fixture(autouse=True)
def no_ray(here, monkeypatch):
    """Tasks are done in this process, too."""
    for module in (contents, growth):
        monkeypatch.setattr(module, "ray_map", thread_map)
    monkeypatch.setattr(reuse, "bounded", lambda work, jobs, _: ((key, work(*args)) for key, args in jobs))
    monkeypatch.setattr(fit, "deferred", lambda function: function)
    monkeypatch.setattr(fit, "fetch", lambda result, _: result)


@pytest.fixture
def inverted(monkeypatch) -> list[str]:
    """The ids of all images that were inverted, in their order."""
    ids: list[str] = []
    plain = invert.InvertShard.invert

    def noting(self, pixels, accepted, misfits):
        ids.extend(accepted["image_id"].to_pylist())
        return plain(self, pixels, accepted, misfits)

    monkeypatch.setattr(invert.InvertShard, "invert", noting)
    return ids


def config(uri: str, batch_size: int = 1, **data) -> RunConfig:
    """Images alone in their batches: a batch of other images, or of fewer, rounds differently."""
    inversion = InversionConfig((20, 100), batch_size=batch_size)
    return RunConfig(DataConfig(uri, **{"shard_size": 8} | data), ModelConfig(PIPELINE, "float32"), inversion)


def distil(root: Path, made: RunConfig, extended: Store | None = None) -> Store:
    """A run, up to its Gaussians."""
    store, card = Store(str(root)), read_card(made.model.name)
    listing = list_images(made.data, card.num_classes, card.class_names)
    d3hr.fit_gaussians(d3hr.start_run(store, made, card, listing, CPU, overwrite=False, extended=extended), listing)
    return store


def add(uri: str, images) -> None:
    """Write the images that are not there yet."""
    write_imagefolder(Path(uri), [i for i in images if not Path(uri, i[0], f"{i[1]}.png").exists()])


def columns(store: Store, t: int = 100) -> tuple[list[int], np.ndarray]:
    table = store.read_table(f"gaussians/t{t:04d}.parquet").sort_by("label")
    return table["count"].to_pylist(), np.stack([np.stack(table[c].to_pylist()) for c in ("mean", "variance")])


def assert_equal_to_a_run_on_all(store: Store, everything: Store) -> None:
    assert store.read_table(CLASSES).equals(everything.read_table(CLASSES))
    for t in (20, 100):
        (counts, values), (wanted_counts, wanted) = columns(store, t), columns(everything, t)
        assert counts == wanted_counts
        assert np.abs(values - wanted).max() < 1e-6
    ids = store.read_table(LATENTS)["image_id"].to_pylist()
    assert sorted(ids) == sorted(everything.read_table(LATENTS)["image_id"].to_pylist())


def lineage(store: Store) -> tuple[int, ...]:
    """Reused, inverted, changed, removed."""
    extends = read_run(store)["inputs"]["extends"]
    return tuple(extends[name] for name in ("reused", "inverted", "changed", "removed"))


WRITERS = {"imagefolder": write_imagefolder, "webdataset": write_webdataset, "parquet": write_parquet}


def test_new_images_alone_are_inverted(tmp_path, inverted, caplog):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    add(uri, IMAGES)
    grown = distil(tmp_path / "grown", config(uri), run)
    assert len(inverted) == len(set(inverted)) == len(IMAGES) and lineage(grown) == (18, 9, 0, 0)
    assert not caplog.messages, "files of the same version are not compared"
    assert_equal_to_a_run_on_all(grown, distil(tmp_path / "all", config(uri)))


def test_other_batches_round_differently_and_no_more(tmp_path):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri, 4))
    add(uri, IMAGES)
    grown, everything = distil(tmp_path / "grown", config(uri, 4), run), distil(tmp_path / "all", config(uri, 4))
    ours, theirs = (s.read_table(LATENTS).sort_by("image_id")["z_100"].combine_chunks() for s in (grown, everything))
    ours, theirs = (column.flatten().to_numpy() for column in (ours, theirs))
    assert (np.abs(ours - theirs) <= np.spacing(np.maximum(np.abs(ours), np.abs(theirs)))).all()  # float16


@pytest.mark.parametrize("later", WNIDS)
def test_a_class_that_is_added_later_renumbers_the_others(tmp_path, inverted, later):
    uri = write_imagefolder(tmp_path / "data", [image for image in IMAGES if image[0] != later])
    run = distil(tmp_path / "run", config(uri))
    add(uri, IMAGES)
    grown = distil(tmp_path / "grown", config(uri), run)
    assert len(inverted) == len(set(inverted)) == len(IMAGES) and lineage(grown) == (18, 9, 0, 0)
    assert_equal_to_a_run_on_all(grown, distil(tmp_path / "all", config(uri)))


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_files_of_many_images_may_be_added(tmp_path, inverted, form):
    names = sorted(IMAGES, key=lambda image: image[1])
    write = {
        "webdataset": lambda n: write_webdataset(tmp_path / "data", names[:n], 9),
        "parquet": lambda n: write_parquet(tmp_path / "data", names[:n], 9),
    }[form]
    run = distil(tmp_path / "run", config(write(18)))
    grown = distil(tmp_path / "grown", config(write(27)), run)
    assert len(inverted) == len(set(inverted)) == len(IMAGES) and lineage(grown) == (18, 9, 0, 0)
    assert_equal_to_a_run_on_all(grown, distil(tmp_path / "all", config(write(27))))


def test_images_that_changed_or_are_gone_leave_nothing_behind(tmp_path, inverted):
    """Gone: one of the first class, all of the last. Changed: one image has another's bytes, one moved to a class."""
    uri = write_imagefolder(tmp_path / "data", IMAGES)
    run = distil(tmp_path / "run", config(uri))
    first, second, last = (tmp_path / "data" / wnid for wnid in WNIDS)
    (first / "0000.png").unlink()
    (first / "0001.png").write_bytes((last / "0001.png").read_bytes())
    (second / "0002.png").rename(first / "moved.png")
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    inverted.clear()
    grown = distil(tmp_path / "grown", config(uri), run)
    assert sorted(inverted) == [f"{WNIDS[0]}/0001.png", f"{WNIDS[0]}/moved.png"]
    assert lineage(grown) == (15, 2, 1, 11)
    assert_equal_to_a_run_on_all(grown, distil(tmp_path / "all", config(uri)))
    assert len(finished(run)) == len(finished(grown)) == 4, "a shard whose images are all gone is none, a new one is"


def copied(folder: Path) -> None:
    """Other times, the same bytes."""
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("form", WRITERS)
def test_copies_are_compared_and_taken(tmp_path, inverted, caplog, form):
    run = distil(tmp_path / "run", config(WRITERS[form](tmp_path / "data", FEWER)))
    inverted.clear()
    moved = (tmp_path / "data").rename(tmp_path / "copy")
    copied(moved)
    grown = distil(tmp_path / "grown", config(str(moved)), run)
    assert not inverted and lineage(grown) == (18, 0, 0, 0)
    assert f"18 images lie in files that are new to {run.uri}, or were written since;" in caplog.text


def test_a_run_of_a_version_without_keys_is_compared_by_the_shard(tmp_path, inverted):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    run.delete(KEYS)
    copied(tmp_path / "data")
    (tmp_path / "data" / WNIDS[0] / "0000.png").write_bytes(IMAGES[20][2])
    inverted.clear()
    grown = distil(tmp_path / "grown", config(uri), run)
    assert len(inverted) == 8 and lineage(grown) == (10, 8, 8, 0)
    assert_equal_to_a_run_on_all(grown, distil(tmp_path / "all", config(uri)))


def test_another_class_of_the_model_is_another_image(tmp_path, inverted):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    inverted.clear()
    other = config(uri, class_ids=(f"{WNIDS[1]}=5",))
    grown = distil(tmp_path / "grown", other, run)
    assert {name.partition("/")[0] for name in inverted} == {WNIDS[1]} and lineage(grown) == (12, 6, 6, 0)
    assert_equal_to_a_run_on_all(grown, distil(tmp_path / "all", other))


def test_images_that_were_rejected_are_tried_again(tmp_path, inverted):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    path = tmp_path / "data" / WNIDS[0] / "0003.png"
    path.write_bytes(b"broken")
    run = distil(tmp_path / "run", config(uri, max_rejected=0.1))
    still = distil(tmp_path / "still", config(uri, max_rejected=0.1), run)
    assert sum(counts["rejected"] for counts in finished(still).values()) == 1 and lineage(still) == (17, 1, 0, 0)
    path.write_bytes(FEWER[3][2])
    assert lineage(distil(tmp_path / "mended", config(uri, max_rejected=0.1), run)) == (17, 1, 0, 0)
    assert len(inverted) == len(set(inverted)) == 18


class Killed(BaseException):
    """The driver is killed."""


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name != RUN}


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path, inverted, monkeypatch):
    """Before its 2nd write, then before the 3rd of what is left, ...: what is complete is never made again."""
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    add(uri, IMAGES)
    calm = snapshot(Path(distil(tmp_path / "calm", config(uri), run).uri))
    plain, left, kills = Store.write_bytes, 0, 0

    def write(store: Store, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        plain(store, name, data)

    for kills in range(1, 40):
        left = kills
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write_bytes", write)
            try:
                grown = distil(tmp_path / "grown", config(uri), run)
                break
            except Killed:
                reused = {shard for shard, counts in finished(Store(str(tmp_path / "grown"))).items()}
                assert reused == set(range(len(reused)))
    assert kills > 5 and snapshot(tmp_path / "grown") == calm
    assert lineage(grown) == (18, 9, 0, 0)


def test_a_grown_run_needs_the_earlier_one_no_more_and_grows_again(tmp_path, inverted):
    uri = write_imagefolder(tmp_path / "data", FEWER[:12])
    run = distil(tmp_path / "run", config(uri))
    add(uri, FEWER)
    grown = distil(tmp_path / "grown", config(uri), run)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    (tmp_path / "grown" / "gaussians" / "t0100.parquet").unlink()
    distil(tmp_path / "grown", config(uri))  # resumed without --extend
    add(uri, IMAGES)
    again = distil(tmp_path / "again", config(uri), grown)
    assert len(inverted) == len(set(inverted)) == len(IMAGES)
    extends = read_run(again)["inputs"]["extends"]
    assert (extends["run"], extends["extends"]["run"]) == (grown.uri, run.uri)
    assert_equal_to_a_run_on_all(again, distil(tmp_path / "all", config(uri)))


def test_latents_that_the_earlier_run_has_lost_are_named(tmp_path):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    grown = distil(tmp_path / "grown", config(uri), run)
    for store in (run, grown):
        store.delete(f"{LATENTS}/part-000001.parquet")
    with pytest.raises(RunError, match=r"run has lost latents that .*grown takes from it \(shard 1\)"):
        distil(tmp_path / "grown", config(uri))


def test_a_run_that_was_started_anew_in_its_place_gives_nothing(tmp_path):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    grown = distil(tmp_path / "grown", config(uri), run)
    grown.delete(f"{LATENTS}/part-000001.parquet")
    run.write_json(RUN, read_run(run) | {"started": "later"})
    with pytest.raises(RunError, match=r"run, from which .*grown was to take images, is gone or another run now"):
        distil(tmp_path / "grown", config(uri))


def test_that_images_are_private_is_remembered(tmp_path):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    run.write_json(RUN, read_run(run) | {"real_images": False})
    grown = distil(tmp_path / "grown", config(uri), run)
    assert read_run(grown)["inputs"]["extends"]["real_images"] is False
    assert "real_images" not in read_run(run)["inputs"]


def test_a_run_that_was_made_private_later_is_still_the_same_run(tmp_path):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    before = read_run(distil(tmp_path / "grown", config(uri), run))["inputs"]
    run.write_json(RUN, read_run(run) | {"real_images": False})
    for asked in (run, None):
        assert read_run(distil(tmp_path / "grown", config(uri), asked))["inputs"] == before


def test_another_earlier_run_is_another_run(tmp_path):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    one, two = (distil(tmp_path / name, config(uri)) for name in ("one", "two"))
    distil(tmp_path / "grown", config(uri), one)
    with pytest.raises(ValueError, match=r"another config: inputs.extends.run: \S*one -> \S*two"):
        distil(tmp_path / "grown", config(uri), two)


def test_data_that_shares_no_image_is_refused(tmp_path):
    run = distil(tmp_path / "run", config(write_imagefolder(tmp_path / "data", FEWER)))
    new = config(write_imagefolder(tmp_path / "new", IMAGES[6:9] + IMAGES[15:18]))
    with pytest.raises(ValueError, match=r"shares no image with --extend .*--data must be the whole set as it is now"):
        distil(tmp_path / "grown", new, run)
    assert not (tmp_path / "grown").exists()


def test_images_elsewhere_are_compared_whatever_the_versions_of_their_files_say(tmp_path):
    """The digits have no files, hence no versions: train/0001-0 is another picture in digits-affine."""
    own = {"model": ModelConfig("digits", "float32")}
    plain, affine = (replace(config(name, limit_per_class=2), **own) for name in ("digits", "digits-affine"))
    run = distil(tmp_path / "run", plain)
    assert lineage(distil(tmp_path / "same", plain, run)) == (20, 0, 0, 0)
    with pytest.raises(ValueError, match="10 are called as images of that run are, but their classes or bytes are"):
        distil(tmp_path / "grown", affine, run)


def test_status_says_what_is_reused(tmp_path):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run = distil(tmp_path / "run", config(uri))
    add(uri, IMAGES)
    grown = distil(tmp_path / "grown", config(uri), run)
    for part in (0, 3):
        grown.delete(f"{LATENTS}/part-{part:06d}.parquet")
    said = status(grown).splitlines()
    assert (
        f"extends: 18 images are taken from {run.uri}, 9 are inverted; of its images 0 have changed and 0 are gone"
        in said
    )
    left = {line.split()[0]: line.split()[1:] for line in said}
    assert left["reuse"][:3] == ["10", "of", "18"] and left["invert"][:3] == ["1", "of", "9"]


def test_a_run_that_cannot_be_extended_is_refused(tmp_path):
    made = config(write_imagefolder(tmp_path / "data", FEWER))
    run, card, new = distil(tmp_path / "run", made), read_card(PIPELINE), Store(str(tmp_path / "new"))
    check_extended(run, new, made, card)
    at = {t: replace(made, inversion=replace(made.inversion, timesteps=(t,))) for t in (20, 60)}
    check_extended(run, new, at[20], card)
    near = replace(made, inversion=replace(made.inversion, cluster_timestep=60))
    for config_, said in ((at[60], "--timesteps 60: "), (near, "--cluster-timestep 60: ")):
        with pytest.raises(ValueError, match=said + r".*stored no latents there \(it has t = 20, 100\)"):
            check_extended(run, new, config_, card)
    with pytest.raises(ValueError, match=r"is not the model that --extend .* was made with"):
        check_extended(run, new, made, replace(card, digest="another"))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for out in (run, Store(str(tmp_path / "link"))):
        with pytest.raises(ValueError, match="is the run that --extend names, which stays as it is"):
            check_extended(run, out, made, card)
    (first,) = run.list(".done/seen")[:1]
    run.delete(f".done/seen/{first}")
    with pytest.raises(ValueError, match="it is of a version that left EXIF rotations and transparency aside"):
        check_extended(run, new, made, card)
    run.delete(f"{LATENTS}/part-000001.parquet")
    with pytest.raises(ValueError, match="it is unfinished, 10 of 18 images are inverted; the command that began it"):
        check_extended(run, new, made, card)
    run.delete(LATENTS)
    with pytest.raises(ValueError, match="it has no latents/ of images"):
        check_extended(run, new, made, card)


def test_a_plan_says_what_is_reused(tmp_path):
    uri = write_imagefolder(tmp_path / "data", FEWER)
    run, card = distil(tmp_path / "run", config(uri)), read_card(PIPELINE)
    add(uri, IMAGES)
    copied(tmp_path / "data" / WNIDS[0])
    counted = count_images(config(uri), card, None, run)
    assert counted == (27, 3, 18)
    lines = plan(config(uri), card, (0, 20, 60, 100), *counted, 1.0).splitlines()
    rows = {line.split()[0]: line.split()[1] for line in lines}
    assert (rows["reuse"], rows["invert"], rows["fit"]) == ("18", "9", "27")
