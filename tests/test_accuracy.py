"""The plots of accuracy, on rows as training records them: every kind drawn, named, and of one colour everywhere."""

import io
from itertools import product

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from PIL import Image
from stripes import hard, stripes

from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.trials import make_trial, records, run_trial
from d3hr_ray.report import plots
from d3hr_ray.report.accuracy import _slugs
from d3hr_ray.report.names import disambiguate
from d3hr_ray.report.plots import save_figure
from d3hr_ray.store import Store

METHODS = {"d3hr-moments": 0.1, "gaussian": 0.0}  # and how much better the first is
IPCS, TIMESTEPS, SEEDS = (1, 10), (100, 600), (0, 1, 2)
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A real record, whose students the others are copies of."""
    store = Store(str(tmp_path_factory.mktemp("one")))
    found = DistilledSet("s", stripes(8), "hash", 0, {"method": "d3hr", "ipc": 8})
    trial = make_trial(found, "convnet-d3-w32", hard(), 0, (), None, ("uri", "test"))
    return run_trial(store, trial, found.images, stripes(10, 1), None, None, "cpu")


@pytest.fixture(scope="module")
def rows(recorded, tmp_path_factory):
    """2 methods x 2 IPCs x 2 timesteps x 3 seeds, and real images beside them, read as the page reads them."""
    store = Store(str(tmp_path_factory.mktemp("rows")))
    made = [
        row_of(recorded, f"{kind}-t{t}-ipc{ipc}", kind.split("-")[0], t, ipc, seed, 0.5 + better + ipc / 50 + t / 1e4)
        | {"kind": kind}
        for (kind, better), ipc, t, seed in product(METHODS.items(), IPCS, TIMESTEPS, SEEDS)
    ]
    made += [row_of(recorded, "real-random", "real-random", None, n, s, 0.4 + n / 50) for n in IPCS for s in SEEDS]
    made += [row_of(recorded, "real-full", "real-full", None, 300, s, 0.99) for s in SEEDS]
    for i, row in enumerate(made):
        store.write_json(f"evaluations/runs/{i:03d}.json", row)
    return disambiguate(records(store))


def row_of(recorded, name, method, timestep, ipc, seed, mean):
    """A record of a set's only student: accuracies `mean` and 0.01 about it, over three classes of 10 test images."""
    top1, guided = mean + 0.01 * (seed - 1), None if timestep is None else 2.0
    confusion = np.array([[8, 2, 0], [0, 10, 0], [0, 1, 9]])
    return recorded | {
        "set": name,
        "kind": method,
        "method": method,
        "timestep": timestep,
        "ipc": ipc,
        "set_seed": seed,
        "set_hash": f"{name}-{ipc}-{seed}",
        "guidance": guided,
        "inversion_guidance": guided,
        "score": None if timestep is None else 1 / ipc + seed,
        "top1_last": top1,
        "per_class": [top1 - 0.1, top1, top1 + 0.1],
        "confusion": confusion.tolist(),
    }


@pytest.fixture
def plotted(monkeypatch):
    """Calls a plot => its figure, after a look at the PNG: a whole image, with more than a page's white in it."""
    figures = []

    def keep(figure):
        figures.append(figure)
        return save_figure(figure)

    monkeypatch.setattr(plots, "save_figure", keep)

    def call(plot, *args):
        png = plot(*args)
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert 0.005 < (pixels < 250).any(2).mean() < 0.9
        return figures[-1]

    return call


def panels(figure):
    return [axis for axis in figure.axes if axis.get_title()]


def colours(axis):
    """Label => colour, of the lines of a panel."""
    return {line.get_label(): to_hex(line.get_color()) for line in axis.get_lines()}


def legend(figure):
    """Label => colour, of the figure's one legend."""
    (found,) = figure.legends
    assert not any(axis.get_legend() for axis in figure.axes)
    names = [text.get_text() for text in found.get_texts()]
    return dict(zip(names, (to_hex(line.get_color()) for line in found.get_lines()), strict=True))


LINES = {name: f"{name} guidance 2/2, convnet-d3-w32, hard" for name in METHODS}


def test_timesteps_have_a_panel_per_ipc_and_a_line_per_kind(rows, plotted):
    figure = plotted(plots.by_timestep, rows)
    assert [axis.get_title() for axis in panels(figure)] == ["IPC 1", "IPC 10"]
    assert set(legend(figure)) == set(LINES.values())
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert lines[LINES["d3hr-moments"]].get_xdata().tolist() == [100, 600]
    np.testing.assert_allclose(lines[LINES["d3hr-moments"]].get_ydata(), [81, 86])
    np.testing.assert_allclose(lines[LINES["gaussian"]].get_ydata(), [71, 76])


@pytest.mark.parametrize("lacking", IPCS)
def test_a_line_keeps_its_colour_where_a_panel_lacks_another(rows, plotted, lacking):
    """The first kind is in one panel only: its name is in the legend, and the other's colour does not move up."""
    some = [r for r in rows if r["method"] != "d3hr" or r["ipc"] != lacking]
    for plot, names in ((plots.by_timestep, LINES), (plots.by_ipc, {name: name for name in METHODS})):
        figure = plotted(plot, some)
        said = legend(figure)
        assert set(names.values()) <= said.keys()
        assert len(set(said.values())) == len(said)
        for axis in panels(figure):
            assert colours(axis).items() <= said.items()


def test_more_kinds_than_a_palette_holds_still_differ(rows, plotted):
    many = [r | {"kind": f"{r['kind']}-k{k}"} for k in range(25) for r in rows if r["method"] == "gaussian"]
    said = legend(plotted(plots.by_timestep, many))
    assert len(said) == len(set(said.values())) == 25


def test_ipcs_have_a_line_per_kind_at_its_best_timestep_and_a_panel_per_student_and_protocol(rows, plotted):
    other = [r | {"arch": "resnet18"} for r in rows if r["method"] != "gaussian"]
    figure = plotted(plots.by_ipc, rows + other)
    assert [axis.get_title() for axis in panels(figure)] == ["convnet-d3-w32, hard", "resnet18, hard"]
    said = legend(figure)
    assert set(said) == {*METHODS, "real-random", "real-full"}
    assert len(set(said.values())) == 4
    assert all(colours(axis).items() <= said.items() for axis in panels(figure))
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["d3hr-moments"].get_ydata(), [68, 86])  # those of t = 600
    np.testing.assert_allclose(lines["real-random"].get_ydata(), [42, 60])


def test_seeds_have_a_box_per_kind_and_a_panel_for_every_ipc_student_and_protocol(rows, plotted):
    """The issue's table: 5 IPCs x 2 students x 2 protocols."""
    one = [r for r in rows if r["ipc"] == 1]
    axes = list(product((1, 10, 20, 50, 100), ("convnet-d3", "resnet18"), ("hard", "fixed-soft")))
    figure = plotted(plots.boxes, [r | {"ipc": n, "arch": a, "protocol": p} for n, a, p in axes for r in one])
    assert {axis.get_title() for axis in panels(figure)} == {f"IPC {n}, {a}, {p}" for n, a, p in axes}
    for axis in panels(figure):
        ticks = [text.get_text() for text in axis.get_yticklabels()]
        assert ticks == ["real-random, n=3", "gaussian, n=3", "d3hr-moments, n=3"]
    medians = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if len(set(line.get_xdata())) == 1]
    assert {68.0, 58.0, 42.0} <= {round(float(m), 6) for m in medians}


def test_matching_loss_has_a_point_per_set_and_a_colour_per_kind(rows, plotted):
    other = [r | {"protocol": "other", "top1_last": 0.1} for r in rows[:3]]  # fewer rows: not among the points
    figure = plotted(plots.against_loss, [*other, *rows])
    assert [axis.get_title() for axis in panels(figure)] == ["IPC 1", "IPC 10"]
    found = []
    for axis in panels(figure):
        points = [c for c in axis.collections if isinstance(c, PathCollection)]
        assert {c.get_label(): len(c.get_offsets()) for c in points} == dict.fromkeys(METHODS, 6)
        found.append({c.get_label(): to_hex(c.get_facecolor()[0]) for c in points})
    assert found[0] == found[1]
    assert len(set(found[0].values())) == 2
    assert [t.get_text() for t in figure.axes[-1].get_legend().get_texts()] == list(METHODS)


def test_classes_have_a_bar_of_the_best_kind_and_one_of_real_images(rows, plotted):
    figure = plotted(plots.per_class, rows, CLASSES)
    (axis,) = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == list(CLASSES)
    kinds = [t.get_text() for t in axis.get_legend().get_texts()]
    assert kinds == ["d3hr-moments, IPC 10", "real-random, IPC 10"]
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers if hasattr(bars, "patches")]
    np.testing.assert_allclose(heights, [[76, 86, 96], [50, 60, 70]])  # those of t = 600 alone
    assert plots.per_class(rows, ["c"] * 31) is None


def test_students_of_one_set_count_once_in_boxes_and_bars(rows, plotted):
    """Three sets of five students each are three figures, not fifteen."""
    spread = [r | {"seed": k, "top1_last": r["top1_last"] + k / 100} for r in rows for k in (-2, -1, 0, 1, 2)]
    figure = plotted(plots.boxes, [r | {"arch": arch} for r in spread for arch in "abc"])
    ticks = [text.get_text() for text in panels(figure)[0].get_yticklabels()]
    assert ticks == ["real-random, n=3", "gaussian, n=3", "d3hr-moments, n=3"]
    ends = []
    for shown in (rows, spread):
        (axis,) = plotted(plots.per_class, shown, CLASSES).axes
        ends.append(
            [line.get_segments() for bars in axis.containers for line in getattr(bars, "lines", ((), (), ()))[2]]
        )
    np.testing.assert_allclose(ends[0], ends[1])


def test_confusions_are_of_errors_in_percent_of_the_class(rows, plotted):
    figure = plotted(plots.confusions, rows, CLASSES)
    shown = panels(figure)
    assert [axis.get_title().partition(",")[0] for axis in shown] == ["d3hr-moments", "real-random"]
    for axis in shown:
        np.testing.assert_allclose(axis.images[0].get_array(), [[0, 20, 0], [0, 0, 0], [0, 10, 0]])
        assert [t.get_text() for t in axis.get_yticklabels()] == list(CLASSES)


def test_rows_with_nothing_to_plot_give_no_image(rows):
    full = [r for r in rows if r["method"] == "real-full"]
    for plot in (plots.by_timestep, plots.by_ipc, plots.boxes, plots.against_loss):
        assert plot([]) is None
        assert plot(full) is None
    assert plots.by_timestep([r for r in rows if r["timestep"] != 600]) is None


def test_two_test_sets_whose_paths_end_alike_have_plots_of_their_own():
    end = "datasets/imagenet-subsets/imagewoof/validation"
    alike = [(f"/mnt/{disk}/{end}", "digest") for disk in ("one", "two")]
    slugs = _slugs([*alike, ("digits/test", "digest")])
    assert len(set(slugs.values())) == 3 and slugs["digits/test", "digest"] == "digits-test"
    assert all("imagewoof-validation-" in slugs[which] for which in alike)
