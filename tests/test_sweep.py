"""What a sweep goes through: axes, variants, pools, and what its flags refuse. Its job runs in test_evaluate.py too."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.csv as pacsv
import pytest
from conftest import ROOT, encode, wait_for, write_imagefolder
from stripes import hard, stripes

from d3hr_ray.cli import sweep_plan
from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.flags import typed_flags
from d3hr_ray.cli.parsing import parse
from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.cli.resolve import resolve_auto
from d3hr_ray.cli.sweep_axes import expand, timesteps
from d3hr_ray.cli.sweep_checks import open_sweep
from d3hr_ray.cli.sweep_flags import SweepFlags, check_flags, kept
from d3hr_ray.cli.sweep_plan import check_settings, plan_sweep, trial_gpus, write_pools
from d3hr_ray.cli.variants import vary
from d3hr_ray.config import RunConfig, as_dict
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.evaluation.ranking import AXES, best_cell, preset_of
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.trials import make_trial, rows_of, run_trial
from d3hr_ray.methods import d3hr, many
from d3hr_ray.methods.d3hr import Run
from d3hr_ray.methods.inputs import list_data, read_model
from d3hr_ray.methods.many import with_pools
from d3hr_ray.methods.sweep import Sweep, invert_all, synthesise_all
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.sets import SetSpec, sets_of, without_axes
from d3hr_ray.store import Store
from jobs import sweep as job

EMBEDDED = ROOT / "d3hr_ray" / "assets"
BASE = PRESETS["digits"]()


def planned(folder: str = "nowhere", base: RunConfig = BASE, **flags) -> tuple[SweepFlags, Sweep]:
    """A sweep's flags, and what they ask for."""
    asked = SweepFlags(run=folder, **flags)
    settings = expand(asked, base)
    return asked, Sweep("sweep", Store(folder), base, timesteps(asked, base), settings, Actors((1, 1), 0), kept(asked))


def configs(**flags) -> list[RunConfig]:
    return planned(**flags)[1].configs


def record(store: Store, config: RunConfig) -> None:
    """What says that a run is there."""
    store.write_json("run.json", {"config": as_dict(config), "inputs": {}, "started": "", "finished": None})


def test_a_variant_is_the_flags_of_distill():
    assert vary(BASE, "run") == BASE
    assert vary(BASE, "components=ipc single=medoid").search.components == "ipc"
    cao2 = vary(BASE, "method=cao2 fidelity=official mend=channels,fill optimise=3 levels=2,9")
    assert (cao2.method, cao2.fidelity, cao2.mended) == ("cao2", "official", ("channels", "fill"))
    assert (cao2.cao2.iterations, cao2.cao2.levels) == (3, (2, 9))
    assert cao2.inversion == BASE.inversion


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("components", "components is no flag=value"),
        ("timesteps=100", "timesteps=100 is no flag=value"),
        ("pool=3", "--pool does nothing with --method d3hr"),
        ("mend=fill", "--mend goes with --fidelity official"),
        ("components=few", r"--variants 'components=few': .*--components"),
    ],
)
def test_a_wrong_variant_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        vary(BASE, text)


def test_axes_multiply_and_leave_alone_what_they_do_not_name():
    axes = {"ipc": (1, 10), "seeds": (0, 1), "search": ("moments", "random"), "guidance": (1.0, 2.0)}
    found = configs(**axes)
    assert len(set(found)) == len(found) == 2 * 2 * 2
    assert {(c.search.method, c.search.candidates) for c in found} == {("moments", 256), ("random", 1000)}
    assert {c.search.ipc for c in found} == {(1, 10)}
    (plain,) = configs(ipc=(10,))
    assert plain == BASE


def test_variants_multiply_with_axes_and_only_searching_methods_search():
    variants = ("run", "method=cao2 optimise=0", "components=2")
    found = configs(variants=variants, components=("ipc", 4))
    assert [(c.method, c.search.components) for c in found] == [
        ("d3hr", "ipc"), ("d3hr", 4), ("cao2", 1), ("d3hr", "ipc"), ("d3hr", 4),
    ]  # fmt: skip


def test_matched_guidance_is_the_inversions():
    assert {c.synthesis.guidance for c in configs(matched=True, inversion_guidance=(4.0,))} == {4.0}


def test_a_sweep_is_resumed_by_name_and_another_is_refused(tmp_path):
    flags, made = planned(str(tmp_path), ipc=(1,), components=("ipc",))
    record(made.store, BASE)
    made.remember()
    found, _ = open_sweep(SweepFlags(run=str(tmp_path), resume=True))
    assert found.ipc == (1,) and found.components == ("ipc",)
    assert open_sweep(flags)[0] == flags
    stored = made.store.read_json("sweeps/sweep/sweep.json")
    made.store.write_json("sweeps/sweep/sweep.json", {k: v for k, v in stored.items() if k != "epochs"})
    assert open_sweep(flags)[0] == flags  # one of an earlier version, which had no such flag
    with pytest.raises(ValueError, match="has another sweep of this name; give another --name"):
        open_sweep(SweepFlags(run=str(tmp_path), ipc=(2,)))
    again = replace(flags, resume=True)
    assert open_sweep(again)[0] == again  # the very flags that it had
    other = SweepFlags(run=str(tmp_path), ipc=(2,), resume=True)
    check_flags(other)
    with pytest.raises(ValueError, match="the stored sweep has --ipc 1; leave --ipc out"):
        open_sweep(other)


def test_as_many_actors_at_least_as_at_most_are_no_value_given_twice():
    check_flags(SweepFlags(run="somewhere", actors=(5, 5)))
    with pytest.raises(ValueError, match="--ipc names a value twice"):
        check_flags(SweepFlags(run="somewhere", ipc=(5, 5)))


@pytest.mark.parametrize(
    ("variant", "axis"),
    [("single=medoid components=ipc", {"components": (4,)}), ("method=cao2", {"method": ("d3hr",)})],
)
def test_what_a_variant_and_an_axis_both_give_is_refused(variant, axis):
    check_flags(SweepFlags(run="somewhere", variants=("run", variant)))
    with pytest.raises(ValueError, match=f"--variants '{variant}' gives {(*axis,)[0]} and so does --{(*axis,)[0]}"):
        check_flags(SweepFlags(run="somewhere", variants=("run", variant), **axis))


def test_weights_without_components_are_refused_before_anything_runs():
    for components, ipc in (((1,), 10), (("ipc",), 1)):
        with pytest.raises(ValueError, match="--weights needs sets of several components: give --components"):
            check_settings(*planned(weights=True, components=components, ipc=(ipc,)))
    check_settings(*planned(weights=True, components=(1, 2)))


def test_a_sweep_goes_on_with_other_resources(tmp_path):
    flags, made = planned(str(tmp_path), ipc=(1,), gpus_per_trial=0.5)
    record(made.store, BASE)
    made.remember()
    elsewhere = replace(flags, gpus_per_trial=1.0, actors=(1, 4), gpus_per_actor=1.0)
    for asked in (elsewhere, replace(elsewhere, resume=True, ipc=(10,))):  # 10 is the default
        found, _ = open_sweep(asked)
        assert (found.ipc, found.gpus_per_trial, found.actors) == ((1,), 1.0, (1, 4))
    assert open_sweep(SweepFlags(run=str(tmp_path), resume=True))[0].gpus_per_trial == 0.5


def test_a_run_that_is_not_there_is_no_run_of_the_digits(tmp_path):
    with pytest.raises(ValueError, match=r"no run there \(it has no run.json\); check the path.* --preset"):
        open_sweep(SweepFlags(run=str(tmp_path / "typo"), data="digits/test"))
    open_sweep(SweepFlags(run=str(tmp_path / "new"), preset="digits"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data": "/nowhere"}, "--data /nowhere: no such file"),
        ({"timesteps": (100, 603)}, "--timesteps 603 is not on the 50-step grid; its neighbours are 600 and 620"),
        ({"timesteps": (0,)}, "--timesteps 0 is before the first inversion step"),
        ({"seeds": (-1,)}, "--seed -1 must be between 0"),
        ({"variants": ("components=0",)}, "--components 0"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_heavy_is_imported(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_sweep(SweepFlags(run=str(tmp_path), preset="digits", **flags))
    asked = "import sys, d3hr_ray.cli.sweep_checks\n"
    asked += "print(sorted({'torch', 'ray', 'diffusers', 'timm', 'sklearn'} & sys.modules.keys()))"
    heavy = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert heavy.stdout == "[]\n"


def test_students_take_a_gpu_each_where_actors_do(monkeypatch):
    asked = []
    monkeypatch.setattr(sweep_plan, "claim", lambda ask, patience: (asked.append(ask.share), (0.0, 1))[1])
    for flags, gpus in (({}, 1.0), ({}, 0.0), ({"gpus_per_actor": 0.0}, 0.0), ({"gpus_per_trial": 0.1}, 1.0)):
        trial_gpus(SweepFlags(**flags), Actors((1, 1), gpus), 0)
    assert asked == [1.0, 0.0, None, 0.1]  # None: whatever the cluster has


CAO2 = "method=cao2 fidelity=official mend=fill optimise=3"


@pytest.mark.parametrize("text", ["components=ipc single=medoid", CAO2, "run"])
def test_the_best_setting_is_a_preset_of_all_that_made_it(text):
    (config,) = configs(variants=(text,), seeds=(3,), ipc=(2, 5))
    (spec,) = [s for s in sets_of(config) if s.ipc == 5]
    preset = preset_of(BASE, {"timestep": spec.timestep, "ipc": 5}, without_axes(spec.recipe({})["config"]))
    assert preset == replace(config, seed=0, search=replace(config.search, ipc=(5,)))


def test_sets_that_are_made_alike_share_a_folder_whatever_their_seed():
    texts = ("run", "method=gaussian", "method=cao2 optimise=0", "method=d3hr+cao2 optimise=0", "method=cao2")
    names = {text: {s.settings for c in configs(variants=(text,), seeds=(0, 1)) for s in sets_of(c)} for text in texts}
    assert all(len(found) == 1 for found in names.values())
    assert names["run"] == names["method=gaussian"]
    assert len(set.union(*names.values())) == 4


def test_settings_that_draw_and_judge_alike_share_their_pools(tmp_path):
    def pools(text: str, seed: int = 0) -> str:
        (config,) = configs(variants=(text,), seeds=(seed,), timesteps=(600,))
        return with_pools(base, base, sets_of(config)).pools.uri

    store = Store(str(tmp_path))
    for name in ("classes.parquet", "gaussians/t0600.parquet"):
        store.write_bytes(name, b"any")
    base = Run(store, BASE, None, None, {}, Actors((1, 1), 0), store, store)
    assert pools("method=cao2") == pools("method=cao2 linf=1", seed=1) == pools("method=cao2 select=hard")
    assert pools("method=d3hr+cao2") == pools("method=d3hr+cao2 rematch=no")
    others = ("method=cao2 guidance=3", "method=cao2 select=none", "method=d3hr+cao2 components=2", "run")
    others += ("method=cao2 optimise=0",)  # which may sample in half precision
    assert len({pools("method=cao2"), *map(pools, others)}) == 6


def test_a_student_that_cannot_take_the_images_is_refused_before_any_inversion():
    check_settings(*planned(arch=("convnet-d3-w32",)))
    with pytest.raises(ValueError, match="epochs 0"):
        check_settings(*planned(arch=("convnet-d3-w32",), epochs=(3, 0)))
    with pytest.raises(ValueError, match="convnet-d6 halves 16 pixels too often"):
        check_settings(*planned(arch=("convnet-d3-w32", "convnet-d6")))


class Machine:
    """Inversions and syntheses as their results alone, and a record of them."""

    def __init__(self) -> None:
        self.inverted: list[tuple[str, tuple[int, ...]]] = []
        self.made: list[str] = []

    def fit(self, run: Run, listing: Listing) -> None:
        self.inverted.append((run.store.uri, run.config.inversion.timesteps))
        assert len(listing) > 0
        for t in run.config.inversion.timesteps:
            run.store.write_bytes(f"gaussians/t{t:04d}.parquet", b"any")

    def make(self, parts: list[tuple[Run, list[SetSpec]]]) -> None:
        for run, spec in ((run, spec) for run, specs in parts for spec in specs):
            folder = run.store.at(f"distilled/{spec.name}")
            folder.write_json("manifest.json", spec.recipe(run.inputs))
            self.made.append(folder.uri)

    def sweep(self, store: Store, **flags) -> list[str]:
        plan = plan_sweep(SweepFlags(run=store.uri, **{"ipc": (2,)} | flags), store)
        self.inverted, self.made = [], []
        return list(synthesise_all(plan, invert_all(plan)))


@pytest.fixture
def machine(monkeypatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(sweep_plan, "find_actors", lambda *_: Actors((1, 1), 0))
    monkeypatch.setattr(sweep_plan, "claim", lambda *_: (0.0, 1))
    monkeypatch.setattr(d3hr, "fit_gaussians", made.fit)
    monkeypatch.setattr(many, "make_together", made.make)
    return made


def distilled(machine: Machine, root: Path, command: str) -> Store:
    """What jobs/distill.py leaves of images and a model of one's own, as far as a sweep looks at it."""
    images = [(str(c), str(k), encode(np.full((16, 16, 3), 9 * k + c, np.uint8))) for c in range(10) for k in range(2)]
    data = write_imagefolder(root / "photos", images)
    model = shutil.copytree(EMBEDDED / "digits", root / "model", dirs_exist_ok=True)
    config = build_config(parse(DistillFlags, "", ["--data", data, "--model", str(model), *command.split()]))
    card, _ = read_model(config, planning=False)
    config, listing = resolve_auto(config, None, Actors((1, 1), 0)), list_data(config, card)
    run = d3hr.start_run(Store(str(root / "run")), config, card, listing, Actors((1, 1), 0), overwrite=False)
    if config.fits:
        machine.fit(run, listing)
    machine.make([(run, sets_of(config))])
    return run.store


@pytest.mark.parametrize(
    ("method", "variants"),
    [
        ("d3hr", ("method=dit guidance=1", "method=dit")),
        ("d3hr", ("method=cao2 optimise=0", "method=cao2")),
        ("gaussian", ("run", "guidance=3")),
        ("d3hr+cao2", ("run", "method=d3hr")),
        ("cao2", ("run", "method=d3hr")),
    ],
)
def test_a_sweep_that_made_its_run_makes_the_same_sets_again(machine, tmp_path, method, variants):
    """The run it makes may be of another method than the preset: axes are laid over the preset the second time, too."""
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"config": as_dict(vary(BASE, f"method={method}" if method != "d3hr" else "run"))}))
    store, flags = Store(str(tmp_path / "run")), {"preset": str(preset), "variants": variants, "timesteps": (600,)}
    sets = machine.sweep(store, **flags)
    assert len(set(sets)) == 2 and machine.made == sets
    assert machine.sweep(store, **flags) == sets
    preset.write_text(json.dumps({"config": as_dict(BASE)}))  # changed, or gone: --resume names none
    resumed, _ = open_sweep(SweepFlags(run=store.uri, resume=True))
    plan = plan_sweep(resumed, store)
    assert list(synthesise_all(plan, invert_all(plan))) == sets


def test_a_preset_with_other_settings_than_the_run_is_not_passed_over(machine, tmp_path):
    store = Store(str(tmp_path / "run"))
    record(store, replace(BASE, seed=3, search=replace(BASE.search, ipc=(7,))))
    open_sweep(SweepFlags(run=store.uri, preset="digits"))
    open_sweep(SweepFlags(run=store.uri, preset="digits", timesteps=(100,)))
    record(store, replace(BASE, search=replace(BASE.search, candidates=512)))
    with pytest.raises(ValueError, match=r"differs from --run .* \(search.candidates: 512 -> 256\): leave it out"):
        open_sweep(SweepFlags(run=store.uri, preset="digits"))
    open_sweep(SweepFlags(run=store.uri, preset="digits", candidates=(8, 64)))
    changed = replace(BASE, method="dit", synthesis=replace(BASE.synthesis, guidance=3.0))
    record(store, replace(changed, search=replace(BASE.search, method="random", candidates=99)))
    axes = {"method": ("d3hr", "dit"), "search": ("moments", "random"), "guidance": (1.0, 2.0)}
    open_sweep(SweepFlags(run=store.uri, preset="digits", **axes))
    with pytest.raises(ValueError, match=r"\(method: dit -> d3hr\)"):
        open_sweep(SweepFlags(run=store.uri, preset="digits", **axes | {"method": ()}))


def test_a_flag_that_is_typed_with_its_default_is_given(tmp_path):
    flags, made = planned(str(tmp_path), ipc=(1,), at_once=2)
    record(made.store, BASE)
    made.remember()
    asked = replace(flags, ipc=(10,), at_once=None, resume=True)
    assert open_sweep(asked)[0].ipc == (1,)
    with pytest.raises(ValueError, match="the stored sweep has --ipc 1; leave --ipc out"):
        open_sweep(asked, typed_flags(["--run", "x", "--resume", "--ipc", "10"]))
    assert open_sweep(replace(asked, ipc=(1,)), typed_flags(["--ipc=1"]))[0].at_once == 2


def test_a_sweep_inverts_and_makes_only_what_a_run_of_ones_own_images_lacks(machine, tmp_path):
    store = distilled(machine, tmp_path, "--timesteps 200 600 --ipc 2 10")
    own = f"{store.uri}/distilled/d3hr-moments-t200-ipc2-seed0"
    photos = tmp_path / "photos"
    assert machine.sweep(store, timesteps=(200,)) == [own]
    assert (machine.inverted, machine.made) == ([], [])
    photos.rename(tmp_path / "gone")  # no image is needed for what is there
    assert machine.sweep(store, name="again") == [own, own.replace("t200", "t600")]
    (tmp_path / "gone").rename(photos)
    sets = machine.sweep(store, name="more", timesteps=(100, 200, 600))
    ((folder, timesteps),) = machine.inverted
    assert folder.startswith(f"{store.uri}/inversions/w2-") and timesteps == (100,)
    assert sets[:2] == [own, own.replace("t200", "t600")] and machine.made == sets[2:]
    assert machine.sweep(store, name="twice", timesteps=(100, 600))[1] == sets[2]
    assert (machine.inverted, machine.made) == ([], [])


def test_no_sweep_mixes_a_runs_images_with_others(machine, tmp_path):
    store = distilled(machine, tmp_path, "--timesteps 600 --ipc 2")
    more = encode(np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "photos" / "3" / "2.png").write_bytes(more)
    with pytest.raises(ValueError, match=r"are others now, 20 then and 21 here. 1 file has changed since: .*2\.png"):
        machine.sweep(store, timesteps=(200, 600))


def test_what_needs_no_gaussian_is_not_inverted_and_made_once(machine, tmp_path):
    store = Store(str(tmp_path / "new"))
    plain = {"preset": "digits", "method": ("dit", "cao2"), "inversion_guidance": (2.0, 4.0)}
    sets = machine.sweep(store, **plain)
    assert [Path(uri).name.split("-")[0] for uri in sets] == ["dit", "cao2"] and machine.made == sets
    assert machine.inverted == []
    assert machine.sweep(store, name="d3hr", method=("d3hr", "dit"))[1:] == sets[:1]
    ((folder, _),) = machine.inverted  # the run itself stays what it was
    assert folder.startswith(f"{store.uri}/inversions/")


def test_a_run_of_cao2_is_swept_over_d3hr_beside_it(machine, tmp_path):
    store = distilled(machine, tmp_path, "--method cao2 --optimise 0 --timesteps 600 --ipc 2")
    assert machine.sweep(store) and machine.inverted == []  # cao2, as the run has it
    (d3hr_set,) = machine.sweep(store, name="d3hr", method=("d3hr",))
    assert len(machine.inverted) == 1 and d3hr_set.startswith(machine.inverted[0][0])


def test_images_of_other_classes_are_refused_before_anything_is_made(machine, tmp_path):
    store, before = distilled(machine, tmp_path, "--timesteps 600 --ipc 2"), list(machine.made)
    images = [(name, "0", encode(np.zeros((16, 16, 3), np.uint8))) for name in ("circle", "square")]
    with pytest.raises(ValueError, match=r"--data .*: the set has 0, 1.*, the data circle, square"):
        machine.sweep(store, data=write_imagefolder(tmp_path / "shapes", images))
    assert machine.made == before
    machine.sweep(store, data=str(tmp_path / "photos"))


def test_a_method_that_needs_images_is_refused_where_there_are_none(machine, tmp_path, monkeypatch):
    none = replace(BASE, method="dit", data=replace(BASE.data, uri="", format="auto"))
    flags, plan = planned(str(tmp_path), none, method=("dit", "gaussian"))
    with pytest.raises(ValueError, match="--method gaussian needs images"):
        check_settings(flags, plan)
    record(plan.store, none)
    with pytest.raises(ValueError, match="--data is needed: real images to test on"):
        open_sweep(replace(flags, method=("dit",)))


def test_a_killed_run_is_not_inverted_for_sets_of_noise(machine, tmp_path):
    store = distilled(machine, tmp_path, "--timesteps 600 --ipc 2")
    store.delete("gaussians")
    assert len(machine.sweep(store, method=("dit",))) == 1 and machine.inverted == []
    machine.sweep(store, name="all", method=("d3hr",))
    assert machine.inverted == [(store.uri, (600,))]


@pytest.mark.slow
def test_a_sweep_killed_among_its_students_resumes_to_the_same_table(digits, tmp_path, monkeypatch):
    root = Path(shutil.copytree(digits, tmp_path / "run"))
    records, table = root / "evaluations" / "runs", root / "sweeps" / "sweep" / "trials.csv"
    axes = "--ipc 1 5 --repeats 2 --arch convnet-d3-w32 --epochs 40 --at-once 1"  # its sets are the run's own
    command = [sys.executable, "jobs/sweep.py", "--run", str(root), *axes.split()]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(records.glob("*.json")), process, 240)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {p: json.loads(p.read_text()) for p in records.glob("*.json")}
    assert 1 <= len(before) < 8 and not table.exists()

    monkeypatch.setattr(sys, "argv", ["sweep.py", "--run", str(root), "--resume"])
    job.main()
    assert len(pacsv.read_csv(table)) == len(list(records.iterdir())) == 8
    assert all(json.loads(p.read_text()) == row for p, row in before.items())  # seconds and all: none was trained again
    for path in before:
        path.unlink()
    job.main()
    assert all(json.loads(p.read_text())["confusion"] == row["confusion"] for p, row in before.items())


@pytest.mark.slow
def test_a_sweep_judges_a_pool_once_and_what_is_lost_comes_back_the_same(digits, here, tmp_path):
    root = tmp_path / "run"
    store = Store(str(shutil.copytree(digits, root)))
    alike = ("method=cao2 optimise=1 pool=2", "method=cao2 optimise=1 pool=2 select=easy")
    plan = plan_sweep(SweepFlags(run=store.uri, variants=alike, ipc=(1,), seeds=(0, 1)), store)
    places = invert_all(plan)
    made = synthesise_all(plan, places)
    write_pools(plan, made, len(places[0].run.classes))
    sets = list(made)
    images = {p: p.read_bytes() for p in root.glob("sets/*/distilled/**/*.png")}
    judged = {p: p.stat().st_mtime_ns for p in root.glob("sets/pools-*/pools/*/part-*.parquet")}
    assert (len(sets), len(images), len(judged)) == (2, 20, 2)
    table = pacsv.read_csv(root / "sweeps" / "sweep" / "pools.csv").to_pylist()
    assert [(r["uri"], r["candidates"], r["kept"]) for r in table] == [(uri, 20, 10) for uri in sets]
    assert all(r["kept_correct"] <= min(r["correct"], 10) for r in table)
    assert all((r["filled_up"] > 0) == (r["kept_correct"] < 10) for r in table)
    shutil.rmtree(sets[0])
    shutil.rmtree(Path(sets[0]).parents[1] / "subsets")
    shutil.rmtree(Path(sets[1]).parents[1] / "pools")
    assert list(synthesise_all(plan, invert_all(plan))) == sets
    assert images == {p: p.read_bytes() for p in root.glob("sets/*/distilled/**/*.png")}
    assert judged == {p: p.stat().st_mtime_ns for p in judged}

    plan = plan_sweep(SweepFlags(run=store.uri, ipc=(1, 5)), store)
    own = sorted(synthesise_all(plan, invert_all(plan)))
    assert own == [f"{store.uri}/distilled/d3hr-moments-t{t}-ipc{n}-seed0" for t in (100, 200) for n in (1, 5)]


def test_equal_sets_of_two_settings_are_trained_on_once_and_have_a_row_each(tmp_path):
    store, images = Store(str(tmp_path)), stripes(4)
    sets = [
        DistilledSet("s", images, "hash", 0, {"method": "d3hr", "ipc": 4, "settings": name}) for name in ("one", "two")
    ]
    trials = [make_trial(found, "convnet-d3-w32", hard(), 0, (), None, ("uri", "test")) for found in sets]
    run_trial(store, trials[0], images, images, None, None, "cpu")
    assert [(row["settings"], row["key"]) for row in rows_of(store, trials)] == [
        ("one", trials[0].key),
        ("two", trials[0].key),
    ]


def test_a_cell_counts_with_the_best_of_its_training_hyperparameters():
    def cell(settings: str, lr: float, top1: float) -> dict:
        blank = dict.fromkeys((*AXES, "settings"))
        return blank | {"settings": settings, "lr": lr, "top1_last": top1, "ipc": 1, "arch": "a", "protocol": "hard"}

    cells = [cell("x", 1e-3, 0.2), cell("x", 4e-3, 0.9), cell("y", 4e-3, 0.8)]
    assert best_cell(cells)["settings"] == "x"
