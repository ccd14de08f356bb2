"""What --dry-run prints: units of work, their cost, and the time on a machine."""

import shlex
import sys

import pytest

from d3hr_ray.methods.plan import duration
from jobs import distill


def test_dry_run_prints_the_plan_of_imagenet_without_data_or_model(monkeypatch, capsys):
    """DiT-XL/2's known cost: 118.6 GMAC a forward, 30 steps to t = 600, one pass each."""
    monkeypatch.setattr(sys, "argv", ["distill.py", "--preset", "imagenet1k", "--dry-run", "--ipc", "10", "50"])
    distill.main()
    text = capsys.readouterr().out
    assert "1,281,167 images of 1000 classes" in text
    assert "one denoiser forward = 237 GFLOP" in text
    invert = next(line for line in text.splitlines() if line.startswith("invert"))
    assert invert.split()[2] == "30"
    assert "60,000" in next(line for line in text.splitlines() if line.startswith("synthesize"))


@pytest.mark.slow
def test_a_plan_of_small_work_is_in_units_that_people_read(monkeypatch, capsys):
    """Seconds of this machine's CPU, as measured, within a factor of what a forward takes by --tflops' arithmetic."""
    rows = dry_run(monkeypatch, capsys, "--ipc 2", "digits")
    value, unit = rows["invert"].split()[5:7]
    assert unit in ("ms", "s", "min") and 0.5 < float(value) * {"ms": 1e-3, "s": 1, "min": 60}[unit] < 600
    assert "of one CPU core at 0." in rows["time"] and "measured here" in rows["time"]
    rows = dry_run(monkeypatch, capsys, "--ipc 10 50", "imagenet1k")
    assert rows["invert"].split()[5:7] == ["8.77", "h"] and "of one GPU at 300 sustained" in rows["time"]
    rows = dry_run(monkeypatch, capsys, "--ipc 10 --tflops 1e-6", "digits")
    assert "of one device at 1e-06 TFLOP/s (--tflops)" in rows["time"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "-"), (1.85e-7 * 3600, "0.666 ms"), (0.5, "500 ms"), (1, "1 s"), (119, "119 s"), (150, "2.5 min"),
     (7199, "120 min"), (7200, "2 h"), (34_560, "9.6 h"), (3600 * 2050, "2,050 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_plan_of_some_classes_counts_only_theirs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distill.py", "--preset", "imagenet1k", "--classes", "imagewoof", "--dry-run"])
    distill.main()
    assert "12,811 images of 10 classes" in capsys.readouterr().out


def dry_run(monkeypatch, capsys, flags: str, preset: str = "imagenet1k") -> dict[str, str]:
    """First word of each line of the plan => the line."""
    monkeypatch.setattr(sys, "argv", ["distill.py", "--preset", preset, "--dry-run", *shlex.split(flags)])
    distill.main()
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


def test_gaussians_are_planned_where_they_are_fitted(monkeypatch, capsys):
    """At the timesteps; where images are clustered, only a set's guide has moments."""
    plain, near, guided = (
        dry_run(monkeypatch, capsys, f"--timesteps 600 {more}")["fit"].split()[5:7]
        for more in ("", "--cluster-timestep 100", "--cluster-timestep 100 --guide set")
    )
    assert plain == near and float(guided[0]) == pytest.approx(2 * float(plain[0]), rel=0.02)


@pytest.mark.slow
def test_a_plan_counts_what_mixtures_read(monkeypatch, capsys):
    """ImageNet-1K at two timesteps, half precision: 1,281,167 x 4096 x 2 x 2 bytes; 25 classes of 21 MB are a task."""
    assert "mixture" not in dry_run(monkeypatch, capsys, "--ipc 10")
    row = dry_run(monkeypatch, capsys, "--components 2 --cluster-timestep 100 --ipc 10 50")["mixture"]
    assert row.split()[1:3] == ["1,281,167", "0"]
    assert "k-means on CPUs, 40 task(s); reads 21 GB of latents/" in row
    per_image = dry_run(monkeypatch, capsys, "--components ipc --rank 4 --ipc 10 50")["mixture"]
    assert "k-means and SVD on CPUs, 80 task(s); reads 21 GB" in per_image  # a mixture for each IPC, one timestep


@pytest.mark.slow
def test_a_plan_counts_the_search_of_a_whole_pool(monkeypatch, capsys):
    rows = dry_run(monkeypatch, capsys, "--method d3hr+cao2 --pool 3 --ipc 10")
    assert [rows[stage].split()[1] for stage in ("search", "pool", "synthesize")] == ["30,000", "30,000", "10,000"]
    assert rows["search"].split()[5] == "492" and rows["search"].split()[6] == "MB"  # 30,000 x 4096 x 4


@pytest.mark.slow
def test_a_plan_counts_refinement(monkeypatch, capsys):
    """500 images of each of 1,000 classes; per class and network a mean of 64 x 32 x 32 features, float32."""
    rows = dry_run(monkeypatch, capsys, "--refine match --ipc 1")
    assert rows["features"].split()[1] == "500,000" and "under 100 random ConvNets of width 64" in rows["features"]
    assert "26.2 GB" in rows["features"] and "1,000 steps of refinement" in rows["synthesize"]
    assert "features" not in dry_run(monkeypatch, capsys, "--ipc 1")
