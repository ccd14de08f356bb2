"""--select learnable: what a learner has still to learn and the classifier knows; students kept as learners."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import run, snapshot
from stripes import hard, stripes
from test_cao2_stages import CLASSES, CONFIG, EveryOther
from test_dc import CLOTHES, FASHION, STUDENT, clothes

from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.evaluate_inputs import kept_at, kept_lines
from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.cli.variants import vary
from d3hr_ray.config import CaO2Config, as_dict, from_dict
from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation.protocols import Protocol
from d3hr_ray.evaluation.recipes import Recipe
from d3hr_ray.evaluation.schedule import count_steps, trained_already
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.trials import make_trial, run_trial, untrained
from d3hr_ray.layout import candidate_file, subset_file
from d3hr_ray.models import classifiers
from d3hr_ray.models.students import build_student
from d3hr_ray.models.teachers import Target, load_teacher, save_teacher
from d3hr_ray.sets import sets_of
from d3hr_ray.stages import candidates, choose, judge
from d3hr_ray.stages.blocks import BlockJob
from d3hr_ray.stages.candidates import CANDIDATE_SCHEMA
from d3hr_ray.stages.search import write_noise
from d3hr_ray.store import Store
from jobs import evaluate

LEARNABLE = replace(CONFIG, cao2=replace(CONFIG.cao2, select="learnable", learner="resnet18.a1_in1k", iterations=0))
LOSSES = torch.tensor([2.0, 9.0, 0.3, 9.0, 1.0, 9.0])  # of the six candidates of each class


class Learner:
    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert len(images) == len(labels) == 18
        return LOSSES.repeat(3)


def chosen(root: Path, config) -> tuple[list[dict], list[dict]]:
    """One block of a pool => its candidates, and the latents that were kept."""
    store, (spec,) = Store(str(root)), sets_of(config)
    write_noise(store, spec.pool, 0, range(3), 4 * 8 * 8)
    candidates.JudgeBlock(BlockJob(store, config, (spec.pool,), CLASSES, "cpu")).write(spec.pool, 0)
    choose.choose_block(store, store, spec, 0, range(3), None)
    return [store.read_table(file(s, 0)) for file, s in ((candidate_file, spec.pool), (subset_file, spec))]


def test_of_a_pool_the_most_learnable_of_those_on_class_stay(tmp_path, monkeypatch):
    """At even places, of own probabilities 0.5, 0.6, 0.7, the scores are 1.65, 0.04, 0.82; odd ones are off class."""
    monkeypatch.setattr(candidates, "load_judge", lambda *args: EveryOther())
    monkeypatch.setattr(candidates, "load_learner", lambda *args: Learner())
    pool, kept = chosen(tmp_path / "learnable", LEARNABLE)
    assert pool.column_names == [*CANDIDATE_SCHEMA.names, "learner_loss"]
    for label in range(3):
        own = [r for r in pool.to_pylist() if r["label"] == label]
        assert [r["learner_loss"] for r in own] == pytest.approx(LOSSES.tolist())
        assert [r["latent"] for r in kept.to_pylist() if r["label"] == label] == [own[0]["latent"], own[4]["latent"]]
    easy = replace(LEARNABLE, cao2=replace(LEARNABLE.cao2, select="easy", learner=None))
    unasked, _ = chosen(tmp_path / "easy", easy)
    assert unasked.schema.equals(CANDIDATE_SCHEMA) and unasked.equals(pool.drop_columns("learner_loss"))


def student(root: Path, images: Images, test: Images, arch: str, protocol: Protocol) -> tuple[str, dict]:
    """A student that was trained on a set and kept => its folder and its record."""
    store = Store(str(root))
    trial = make_trial(DistilledSet("mine", images, "hash"), arch, protocol, 0, (), None, ("uri", "test"))
    trial = kept_at(store, trial)
    return trial.keep, run_trial(store, trial, images, test, None, None, "cpu")


@pytest.mark.parametrize(
    ("images", "test", "arch", "protocol"),
    [
        (stripes(4), stripes(20, 1), "convnet-d3-w8", hard()),
        (clothes(4), clothes(9, 1), STUDENT, replace(Recipe().make("dc", FASHION), epochs=9)),
    ],
    ids=["hard", "dc"],
)
def test_a_kept_student_is_the_network_that_was_tested(tmp_path, images, test, arch, protocol):
    """Under dc it sees one channel, normalised as published for its data."""
    folder, row = student(tmp_path, images, test, arch, protocol)
    net = load_teacher(folder, Target(images.classes, None, images.side))
    assert classifiers.evaluate(net, test, "cpu").confusion.tolist() == row["confusion"]
    card = Store(folder).read_json("card.json")
    assert ("normalisation" in card) == (images.classes == CLOTHES)


def test_its_losses_are_those_of_the_class_by_its_own_probabilities(tmp_path):
    folder, _ = student(tmp_path, stripes(4), stripes(4, 1), "convnet-d3-w8", hard())
    classes = CLASSES.set_column(1, "name", [list("cab")]).set_column(2, "wnid", [["", "", ""]])
    config = replace(LEARNABLE, cao2=replace(LEARNABLE.cao2, learner=folder))
    learner, images = judge.load_learner(config, classes, "cpu"), torch.rand(300, 3, 16, 16) * 2 - 1
    labels = torch.arange(300) % 3
    own = learner.probabilities(images)[torch.arange(300), labels]
    assert torch.allclose(learner.losses(images, labels), -own.log(), rtol=1e-4, atol=1e-5)


def test_a_student_with_a_record_but_no_network_is_trained_again_and_then_never(tmp_path):
    store, found = Store(str(tmp_path)), DistilledSet("mine", stripes(2), "hash")
    plain = make_trial(found, "convnet-d3-w8", hard(), 0, (), None, ("uri", "test"))
    row = run_trial(store, plain, found.images, stripes(2, 1), None, None, "cpu")
    kept = kept_at(store, plain)
    assert kept.key == plain.key and untrained(store, [plain]) == [] and untrained(store, [kept]) == [kept]
    assert (trained_already(store, [plain]), trained_already(store, [kept])) == (", all trained already", "")
    assert count_steps(store, {kept.key: kept}) == (0, "0 of 1 students done")
    assert store.read_json(plain.record) == row  # kept until another is there
    again = run_trial(store, kept, found.images, stripes(2, 1), None, None, "cpu")
    assert again["confusion"] == row["confusion"]
    assert untrained(store, [kept]) == []
    assert kept_lines([plain, kept, kept]) == [f"kept: {kept.keep} (mine, set seed 0; protocol hard, repeat 0)"]


def test_configs_and_recipes_without_a_learner_stay_as_they_were():
    assert "learner" not in as_dict(CaO2Config())
    assert from_dict(as_dict(LEARNABLE)) == LEARNABLE
    (spec,) = sets_of(LEARNABLE)
    assert spec.name == "cao2-m3-learnable-ipc2-seed0"
    recipe = spec.pool.recipe({})
    assert "learner" not in recipe["config"]["cao2"] and recipe == sets_of(CONFIG)[0].pool.recipe({})
    judges = [{"classifier": "c"}, {"classifier": "c", "learner": "a"}, {"classifier": "c", "learner": "b"}]
    recipes = [spec.pool.recipe({}, found) for found in judges]
    assert recipes == [recipe | found for found in judges]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"method": "cao2", "select": "learnable"}, "--select learnable needs --learner: a student that"),
        ({"method": "cao2", "learner": "resnet18"}, "--learner does nothing with --select easy"),
        ({"method": "cao2", "select": "none", "learner": "resnet18"}, "--learner does nothing with --select none"),
        ({"select": "learnable", "learner": "resnet18"}, "--select does nothing with --method d3hr"),
        (
            {"method": "cao2", "select": "learnable", "learner": "resnet18", "fidelity": "official"},
            "--fidelity official has no --select learnable",
        ),
    ],
)
def test_a_learner_that_is_missing_or_idle_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        build_config(DistillFlags(**flags))


def test_a_learner_that_is_not_there_is_named(tmp_path):
    def ids(**changes) -> dict[str, str]:
        return judge.judge_ids(replace(LEARNABLE, cao2=replace(LEARNABLE.cao2, classifier="resnet18", **changes)))

    assert ids() == {"classifier": "resnet18", "learner": "resnet18.a1_in1k"}
    assert ids(select="none", learner=None) == {}
    with pytest.raises(ValueError, match=rf"--learner {tmp_path}/none: no card.json in it; give a folder of"):
        ids(learner=f"{tmp_path}/none")
    with pytest.raises(ValueError, match=f"--learner resnet18={tmp_path}/none.pt: no such file"):
        ids(learner=f"resnet18={tmp_path}/none.pt")


def test_it_is_an_axis_of_a_sweep():
    base = PRESETS["digits"]()
    asked = vary(base, "method=d3hr+cao2 select=learnable learner=convnet-d3-w32=/x/student.pt")
    assert (asked.cao2.select, asked.cao2.learner) == ("learnable", "convnet-d3-w32=/x/student.pt")
    assert vary(asked, "select=hard").cao2.learner is None
    assert vary(asked, "pool=2").cao2 == replace(asked.cao2, pool=2)
    with pytest.raises(ValueError, match="--variants 'method=cao2 select=learnable': --select learnable needs"):
        vary(base, "method=cao2 select=learnable")


@pytest.mark.slow
def test_a_set_grows_by_what_a_student_of_it_has_still_to_learn(digits, here, monkeypatch, tmp_path, capsys):
    """By the commands of docs/methods.md. What is lost comes back the same, and another learner is refused."""
    first = f"--distilled {digits}/distilled/d3hr-moments-t200-ipc5-seed0 --arch convnet-d3-w8 --epochs 5 --workers 0"
    evaluation = f"evaluate.py {first} --repeats 1 --baselines none --keep-students --out {tmp_path}/results".split()
    found = []
    for _ in range(2):  # the second time nothing is left to train
        monkeypatch.setattr(sys, "argv", evaluation)
        evaluate.main()
        (learner,) = (tmp_path / "results" / "evaluations" / "students").iterdir()
        found.append([(learner / name).stat().st_mtime_ns for name in ("card.json", "model.safetensors")])
    assert found[0] == found[1]
    said = capsys.readouterr()
    assert said.out.count(f"kept: {learner} (d3hr-moments-t200-ipc5, set seed 0; protocol hard, repeat 0)") == 2
    assert said.err.count(", all trained already") == 1

    command = f"--from-gaussians {digits} --method d3hr+cao2 --select learnable --learner {learner} --ipc 2"
    command += f" --pool 2 --timesteps 200 --seed 1 --out {tmp_path}/more"
    run(monkeypatch, command)
    whole, out = snapshot(tmp_path / "more"), tmp_path / "more"
    lost = [p for top in ("pools", "subsets", "distilled") for p in sorted(out.glob(f"{top}/**/*.parquet"))]
    for path in [*lost, *out.glob("distilled/*/manifest.json"), *out.glob("distilled/*/train/*/0.png")]:
        path.unlink()
    run(monkeypatch, command)
    assert snapshot(out) == whole
    other = build_student("convnet-d3-w8", 10, 16, 1)
    save_teacher(Store(str(learner)), "convnet-d3-w8", tuple("0123456789"), 16, other.state_dict(), {})
    with pytest.raises(ValueError, match=r"was made with another recipe \(learner: convnet-d3-w8@\w+ -> convnet"):
        run(monkeypatch, command)
