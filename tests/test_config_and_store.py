"""Configs refuse what cannot work; the store writes whole files; run.json guards a folder."""

import os
import shutil
from dataclasses import dataclass, replace
from itertools import pairwise

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from conftest import PIPELINE

from d3hr_ray.config import (
    DataConfig,
    InversionConfig,
    ModelConfig,
    RunConfig,
    SearchConfig,
    as_dict,
    differences,
    fingerprint,
    from_dict,
    setting,
)
from d3hr_ray.filesystems import absolute
from d3hr_ray.layout import OWN
from d3hr_ray.models.card import portable, read_card
from d3hr_ray.models.loading import load_networks
from d3hr_ray.runs import claim_recipe, open_run
from d3hr_ray.store import Store

CONFIG = RunConfig(DataConfig("data"), ModelConfig("digits"), InversionConfig((280, 600)), SearchConfig((1, 10)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SearchConfig(ipc=(0,)), "--ipc 0"),
        (lambda: SearchConfig(ipc=(-3,)), "--ipc -3"),
        (lambda: SearchConfig(ipc=(1, 1)), "twice"),
        (lambda: SearchConfig(candidates=0), "--candidates 0"),
        (lambda: InversionConfig(timesteps=()), "--timesteps is empty"),
        (lambda: InversionConfig(guidance=-1), "--inversion-guidance -1"),
        (lambda: InversionConfig(batch_size=0), "--batch-size 0"),
        (lambda: DataConfig("x", limit_per_class=1), "--limit-per-class 1"),
        (lambda: DataConfig("x", max_rejected=2), "--max-rejected 2"),
        (lambda: DataConfig("x", format="zip"), "--format 'zip'"),
        (lambda: replace(CONFIG, fidelity="official"), "--search random"),
        (lambda: replace(CONFIG, fidelity="official", search=SearchConfig((1,), "random")), "--ipc 1"),
        (lambda: replace(CONFIG, seed=-1), "--seed -1"),
    ],
)
def test_wrong_values_are_refused_by_flag(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_config_survives_json_and_names_its_differences():
    assert from_dict(as_dict(CONFIG)) == CONFIG
    other = replace(CONFIG, seed=1, search=SearchConfig((1, 50)))
    assert differences(as_dict(CONFIG), as_dict(other)) == ["search.ipc: [1, 10] -> [1, 50]", "seed: 0 -> 1"]
    assert fingerprint(CONFIG) == fingerprint(from_dict(as_dict(CONFIG))) != fingerprint(other)


def test_files_are_whole_or_absent(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write_bytes("a/b.bin", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"b\.bin.*No space left.*--out"):
        store.write_bytes("a/b.bin", b"new")
    assert store.read_bytes("a/b.bin") == b"old"
    assert store.list(".tmp") == []


def test_equal_tables_are_equal_bytes_and_folders_read_in_order(tmp_path):
    store, table = Store(str(tmp_path)), pa.table({"x": [1, 2]})
    store.write_table("t/1.parquet", table)
    store.write_table("t/0.parquet", pa.table({"x": [0]}))
    assert store.read_table("t")["x"].to_pylist() == [0, 1, 2]
    first = store.read_bytes("t/1.parquet")
    store.write_table("t/1.parquet", table)
    assert store.read_bytes("t/1.parquet") == first


def test_files_of_a_folder_have_the_names_that_a_store_takes(tmp_path):
    store = Store(str(tmp_path))
    for name in ("a/x.parquet", "a/y.parquet", "b/x.parquet"):
        store.write_table(name, pa.table({"name": [name]}))
    assert store.files("a") == {"a/x.parquet", "a/y.parquet"} and store.files("none") == set()
    assert store.read_tables(["b/x.parquet", "a/y.parquet"])["name"].to_pylist() == ["b/x.parquet", "a/y.parquet"]


def test_marks_carry_counts(tmp_path):
    store = Store(str(tmp_path))
    assert store.marks("invert") == {}
    store.mark("invert", 7, accepted=3, rejected=1)
    assert store.marks("invert") == {7: {"accepted": 3, "rejected": 1}}


def test_file_uris_and_unknown_schemes(tmp_path):
    Store(f"file://{tmp_path}").write_bytes("x", b"1")
    assert Store(str(tmp_path)).read_bytes("x") == b"1"
    with pytest.raises(ValueError, match="ftp://x: cannot open"):
        Store("ftp://x").exists("y")
    with pytest.raises(ValueError, match=r"exp#2: # begins a fragment in a URI, .* write %23 for it"):
        Store(f"file://{tmp_path}/exp#2").exists("y")
    Store(f"file://{tmp_path}/exp%232").write_bytes("x", b"2")
    assert (tmp_path / "exp#2" / "x").read_bytes() == Store(f"{tmp_path}/exp#2").read_bytes("x") == b"2"


def test_another_config_or_dataset_is_refused_with_the_fields(tmp_path):
    store = Store(str(tmp_path))
    open_run(store, CONFIG, {"listing": "a"})
    open_run(store, replace(CONFIG, data=DataConfig("data", max_rejected=0.5)), {"listing": "a"})
    open_run(store, replace(CONFIG, data=DataConfig("data", class_depth=1)), {"listing": "a"})  # what it was read by
    with pytest.raises(ValueError, match="class_depth"):
        open_run(store, replace(CONFIG, data=DataConfig("data", class_depth=2)), {"listing": "a"})
    with pytest.raises(ValueError, match=r"search\.ipc: \[1, 10\] -> \[50\]"):
        open_run(store, replace(CONFIG, search=SearchConfig((50,))), {"listing": "a"})
    with pytest.raises(ValueError, match=r"inputs\.listing: a -> b"):
        open_run(store, CONFIG, {"listing": "b"})
    open_run(store, replace(CONFIG, seed=5), {"listing": "b"}, overwrite=True)


def test_overwrite_never_deletes_what_is_not_a_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    store = Store(str(tmp_path))
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"no run\.json"):
            open_run(store, CONFIG, {}, overwrite)
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "thesis.tex").rename(tmp_path / "run.json")
    with pytest.raises(ValueError, match="not valid JSON"):
        open_run(store, CONFIG, {})


@pytest.mark.parametrize("reached", range(len(OWN)))
def test_a_killed_overwrite_never_mixes_two_runs(tmp_path, monkeypatch, reached):
    """Whatever the deletion had reached, nothing outlives what it was made from; the command can be repeated.

    Resumed without --overwrite, a run skips subsets and Gaussians that are there: they must go before what they are of.
    """
    store, other, delete = Store(str(tmp_path)), replace(CONFIG, seed=9), Store.delete
    open_run(store, CONFIG, {})
    for name in OWN[:-1]:
        store.write_bytes(f"{name}/x" if "." not in name[1:] else name, b"old")
    deleted: list[str] = []

    def delete_some(self: Store, name: str) -> None:
        if len(deleted) == reached:
            raise KeyboardInterrupt
        deleted.append(name)
        delete(self, name)

    monkeypatch.setattr(Store, "delete", delete_some)
    with pytest.raises(KeyboardInterrupt):
        open_run(store, other, {}, overwrite=True)
    monkeypatch.setattr(Store, "delete", delete)
    assert store.exists("run.json")
    for made, of in pairwise(("distilled", "subsets", "gaussians", ".done", "latents", "run.json")):
        assert store.exists(of) or not store.exists(made), f"{made} outlives {of}"
    open_run(store, other, {}, overwrite=True)
    assert store.list(recursive=True) == ["run.json"]


def test_a_folder_of_folders_is_no_run(tmp_path):
    (tmp_path / "latents").mkdir()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"no run\.json"):
            open_run(Store(str(tmp_path)), CONFIG, {}, overwrite)


def test_paths_are_absolute_before_they_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("runs/x/") == f"{tmp_path}/runs/x"
    assert absolute("s3://bucket/x/") == "s3://bucket/x"
    shutil.copytree(PIPELINE, "model")
    assert portable("model") == f"{tmp_path}/model"
    assert portable("digits") == "digits"


def test_broken_weights_are_refused_before_anything_starts(tmp_path):
    shutil.copytree(PIPELINE, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_card(str(tmp_path / "model"))
    weights.unlink()
    with pytest.raises(ValueError, match="no usable transformer"):
        read_card(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("part", "spoil", "said"),
    [
        (
            "transformer",
            lambda k: f"model.{k}",
            "lacks .* such as .*, and has .* no place for, such as model",
        ),
        ("transformer", lambda k: None if ".attn1." in k else k, "transformer lacks .* such as transformer_blocks"),
        ("vae", lambda k: None if k.startswith("decoder") else k, "vae lacks .* such as decoder"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(tmp_path, part, spoil, said):
    """diffusers fills what is missing with whatever lies in memory, and only logs it."""
    shutil.copytree(PIPELINE, tmp_path / "model")
    (file,) = (tmp_path / "model" / part).glob("*.safetensors")
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file({spoil(k): v for k, v in state.items() if spoil(k)}, file)
    with pytest.raises(ValueError, match=said):
        load_networks(str(tmp_path / "model"), torch.float32, "cpu")


def test_weights_of_another_shape_are_refused_and_superfluous_ones_told(tmp_path, caplog):
    shutil.copytree(PIPELINE, tmp_path / "model")
    (file,) = (tmp_path / "model" / "transformer").glob("*.safetensors")
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file(state | {"more": torch.zeros(3)}, file)
    load_networks(str(tmp_path / "model"), torch.float32, "cpu")
    assert "1 tensors of transformer have no place in it, such as more" in caplog.text
    name = next(k for k in state if k.endswith(".weight"))
    safetensors.torch.save_file(state | {name: torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"the weights of transformer do not fit its config\.json"):
        load_networks(str(tmp_path / "model"), torch.float32, "cpu")


def test_a_broken_parquet_of_the_run_is_named(tmp_path):
    store = Store(str(tmp_path))
    store.write_table("t/0.parquet", pa.table({"x": [0]}))
    store.write_bytes("t/0.parquet", store.read_bytes("t/0.parquet")[:-9])
    with pytest.raises(ValueError, match=r"t/0\.parquet is not a whole Parquet file"):
        store.read_table("t")


def test_a_set_has_one_recipe(tmp_path):
    store = Store(str(tmp_path))
    claim_recipe(store, {"variant": "v", "guidance": 4})
    claim_recipe(store, {"variant": "v", "guidance": 4})
    with pytest.raises(ValueError, match="guidance: 4 -> 2"):
        claim_recipe(store, {"variant": "v", "guidance": 2})


def test_folders_within_keep_a_uris_query():
    store = Store("s3://bucket/runs/a?endpoint_override=localhost:9000&scheme=http")
    assert store.at("sets/x").uri == "s3://bucket/runs/a/sets/x?endpoint_override=localhost:9000&scheme=http"
    assert store.at("sets/x").at("../..") == store and store.name == "a"
    assert Store("/runs/a").at("../b").uri == "/runs/b"


def test_a_late_field_leaves_the_fingerprints_of_before_alone():
    @dataclass(frozen=True)
    class Before:
        steps: int = 3

    @dataclass(frozen=True)
    class Now(Before):
        spread: str = setting("std", "", "", late=True)

    assert as_dict(Now()) == as_dict(Before()) == {"steps": 3}
    assert fingerprint(Now()) == fingerprint(Before())
    assert as_dict(Now(spread="radius")) == {"steps": 3, "spread": "radius"}


def test_a_resume_under_other_versions_says_which(tmp_path, caplog):
    store = Store(str(tmp_path))
    open_run(store, CONFIG, {"images": 3})
    open_run(store, CONFIG, {"images": 3})
    assert not caplog.records
    record = store.read_json("run.json")
    store.write_json("run.json", record | {"versions": record["versions"] | {"torch": "1.0", "numpy": "1.1"}})
    open_run(store, CONFIG, {"images": 3})
    assert f"torch 1.0 -> {record['versions']['torch']}" in caplog.text
    assert "numpy 1.1 -> " in caplog.text
    assert "pyarrow" not in caplog.text
    caplog.clear()
    store.write_json("run.json", store.read_json("run.json") | {"finished": "then"})
    open_run(store, CONFIG, {"images": 3})
    assert not caplog.records  # nothing is left to make
