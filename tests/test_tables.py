"""Tables of what was measured: names that tell settings apart, means and rankings that never mix them, sheets."""

import json
import re

import pyarrow.csv as pacsv
import pytest
from stripes import stripes

from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.config import as_dict
from d3hr_ray.evaluation.ranking import ranking, summarise
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.trials import SCHEMA
from d3hr_ray.report.accuracy import accuracy_table
from d3hr_ray.report.names import disambiguate, disambiguate_sets, label_of
from d3hr_ray.report.page import report_evaluation
from d3hr_ray.report.tables import all_trials, format_ranking, format_summary, write_summary
from d3hr_ray.store import Store


def with_config(**search):
    """What rows of one setting have in common."""
    return {"settings": f"{search}", "config": json.dumps({"search": search, "method": "d3hr", "cao2": None})}


def ranked_rows(*sets, ipcs=(1,)):
    """Rows of a student on sets ({what differs}, hard accuracy), with all that a ranking needs beside them."""
    full = {"set": "real-full", "method": "real-full", "ipc": None, "top1_last": 0.95}
    drawn = {"set": "real-random", "method": "real-random", "top1_last": 0.4}
    kinds = [full, *(drawn | {"ipc": ipc} for ipc in ipcs)]
    kinds += [
        {"set": "mine", "method": "m", "ipc": ipc} | changes | {"top1_last": top1}
        for changes, top1 in sets
        for ipc in ipcs
    ]
    protocols = ("hard", "fixed-soft", "fixed-soft-noaug")
    shared = dict.fromkeys(SCHEMA.names) | {"arch": "a", "protocol_version": "1"}
    rows = [shared | kind | {"protocol": p, "seed": s} for kind in kinds for p in protocols for s in (0, 1)]
    same = {"top1_best": 0.5, "top5_last": 0.9, "top5_best": 0.9, "per_class": [0.5], "data": "d"}
    return [row | same | {"set_hash": f"{row['set']}-{row['settings']}-{row['seed']}"} for row in rows]


@pytest.mark.parametrize(
    ("one", "other", "seen"),
    [
        ({"guidance": 1.0, "inversion_guidance": 1.0}, {"guidance": 2.0, "inversion_guidance": 1.0}, ("1/1", "1/2")),
        ({"guidance": 1.0, "inversion_guidance": 1.0}, {"guidance": 1.0, "inversion_guidance": 2.0}, ("1/1", "2/1")),
        ({"fidelity": "fixed"}, {"fidelity": "official"}, ("mine ", "mine official")),
        ({"settings": "aaaa1111"}, {"settings": "bbbb2222"}, ("mine aaaa", "mine bbbb")),
        (with_config(rank=0, candidates=9), with_config(rank=4, candidates=9), ("mine rank=0 ", "mine rank=4 ")),
    ],
)
def test_a_table_never_averages_sets_of_two_settings(one, other, seen):
    rows = ranked_rows((one, 0.5), (other, 0.7))
    assert [s["HLR"] for s in ranking(disambiguate_sets(rows))] == pytest.approx([0.45, 0.25])
    printed = format_ranking(ranking(disambiguate_sets(rows))).splitlines()[1:]
    assert all(word in line for word, line in zip(seen, printed, strict=True))
    table = format_summary(rows)
    assert all(word in table for word in seen) and "nan" not in table


def test_a_ranking_says_the_ipc_of_every_row():
    rows = ranked_rows(({}, 0.5), ipcs=(1, 2, 10))
    printed = format_ranking(ranking(disambiguate_sets(rows))).splitlines()
    assert [line.split()[1] for line in printed[1:]] == ["1", "2", "10"]
    assert printed[0].split()[5:7] == ["ipc", "student"]


def test_the_means_of_an_evaluation_are_a_table_of_their_own(tmp_path):
    rows = ranked_rows(({"guidance": 2.0, "inversion_guidance": 2.0}, 0.5), ipcs=(1, 10))
    rows += [rows[-1] | {"top1_last": 0.8, "set_hash": "another"}]
    write_summary(Store(str(tmp_path)), rows)
    table = pacsv.read_csv(tmp_path / "evaluations" / "summary.csv").to_pylist()
    cells = {(c["set"], c["ipc"], c["arch"], c["protocol"]): c for c in summarise(rows)}
    assert len(table) == len(cells) == 5 * 3  # (real-full and two kinds at two IPCs) x protocols
    for line in table:
        cell = cells[line["set"], line["ipc"], line["arch"], line["protocol"]]
        assert set(line) == set(cell)
        for name in ("n", "students", "top1_last", "top1_last_std", "top1_last_low", "top1_last_high", "top1_best"):
            assert line[name] == pytest.approx(cell[name])
        assert (line["top1_last_ci95"] is None) == (line["n"] < 3)
    assert max(line["n"] for line in table) == 3


def test_stopped_trials_are_in_the_sweeps_table_with_their_state_and_epoch():
    rows = ranked_rows(({}, 0.5))[:2]
    stopped = [{"set": "mine", "top1_last": 0.3, "epoch": 8}, {"set": "old", "top1_last": 0.2, "epoch": None}]
    table = all_trials(rows, stopped)
    assert {*SCHEMA.names, "state", "epoch"} - {"per_class", "config"} == set(table.column_names)
    told = [(r["state"], r["top1_last"], r["epoch"], r["top5_best"]) for r in table.to_pylist()]
    assert told[:2] == [("finished", 0.95, None, 0.9)] * 2
    assert told[2:] == [("stopped", 0.3, 8, None), ("stopped", 0.2, None, None)]


def test_names_tell_what_settings_differ_in_and_no_more():
    def named(**cao2):
        return {"set": "cao2", "settings": repr(cao2), "config": json.dumps({"cao2": {"linf": 10.0} | cao2})}

    rows = [named(iterations=100, select="easy", rematch=True), named(iterations=0, select="none", rematch=False)]
    assert [r["set"] for r in disambiguate_sets(rows)] == [
        "cao2 optimise=100 rematch=yes select=easy",
        "cao2 optimise=0 rematch=no select=none",
    ]
    assert [r["set"] for r in disambiguate_sets([rows[0], rows[1] | {"guidance": 1.0}])] == ["cao2", "cao2"]
    ipcs = [named(linf=linf) | {"set": f"cao2-ipc{ipc}", "kind": "cao2"} for ipc, linf in ((1, 5), (1, 6), (10, 7))]
    assert [r["set"] for r in disambiguate_sets(ipcs)] == ["cao2-ipc1 linf=5", "cao2-ipc1 linf=6", "cao2-ipc10 linf=7"]
    unsaid = [named(pool=None) | {"settings": "0123abcd"}, named() | {"settings": "4567abcd"}]
    assert [r["set"] for r in disambiguate_sets(unsaid)] == ["cao2 0123", "cao2 4567"]
    assert disambiguate_sets([named(levels=[1, 11]), named(levels=list(range(9)))])[1]["set"] == "cao2 levels=0,...(9)"
    old = [rows[0] | {"config": None, "settings": "0123abcd"}, rows[1]]
    assert disambiguate_sets(old)[0]["set"] == "cao2 0123"


def test_sets_that_others_made_are_told_apart_however_they_are_called():
    """exp-t1 and exp-t2 are no timesteps of one kind, and a folder called real-full is not the full set."""
    rows = ranked_rows(({}, 0.5))
    blank = {"settings": None, "method": None, "config": None, "kind": None}
    names = {"exp-t1": 0.9, "exp-t2": 0.2, "exp-ipc1": 0.3, "real-full": 0.1, "real-random": 0.15, "real-full-k3": 0.6}
    theirs = [
        row | blank | {"set": name, "set_hash": f"theirs-{name}-{row['seed']}", "top1_last": top1}
        for name, top1 in names.items()
        for row in rows
        if row["set"] == "mine"
    ]
    assert len({label_of(row) for row in theirs}) == len(names)
    scores = {s["set"]: s["HLR"] for s in ranking(disambiguate_sets(rows + theirs))}
    assert scores == pytest.approx({name: 0.95 - top1 for name, top1 in (names | {"mine": 0.5}).items()})
    page = accuracy_table(theirs)
    assert all(f"<td>{name}</td>" in page and f">{100 * top1:.1f}" in page for name, top1 in names.items())
    assert [c["top1_last"] for c in summarise(theirs, ["set"])] == pytest.approx(list(names.values()))
    again = [r | {"settings": "0123abcd"} for r in theirs[:6]] + [r | {"settings": "4567abcd"} for r in theirs[:6]]
    assert {r["set"] for r in disambiguate_sets(again)} == {"exp-t1 0123", "exp-t1 4567"}  # two folders of one name


def test_protocols_of_several_versions_are_told_apart_but_for_the_full_set():
    rows = ranked_rows(({}, 0.5))
    rows = [r | {"protocol_version": "1+epochs=90"} if r["set"] == "real-full" else r for r in rows]
    assert {r["protocol"] for r in disambiguate(rows)} == {"hard", "fixed-soft", "fixed-soft-noaug"}
    several = [*rows, *(r | {"protocol_version": "1+epochs=3"} for r in rows if r["set"] == "mine")]
    assert {r["protocol"] for r in disambiguate(several) if r["set"] == "mine"} == {
        f"{name} {version}" for name in ("hard", "fixed-soft", "fixed-soft-noaug") for version in ("1", "1+epochs=3")
    }
    assert "hard 1+epochs=3" in format_summary(several)


def test_real_images_of_an_older_version_are_of_the_one_source_that_is_known():
    rows = [r for r in ranked_rows(({}, 0.5)) if r["method"] == "real-random"]
    now = [r | {"settings": "aaaa1111"} for r in rows]
    assert {r["set"] for r in disambiguate([*rows, *now])} == {"real-random"}
    other = [r | {"settings": "bbbb2222"} for r in rows]
    assert len({r["set"] for r in disambiguate([*now, *other])}) == 2


def test_a_full_set_that_was_seen_for_other_epochs_shares_no_mean():
    rows = ranked_rows(({}, 0.5))
    more = [r | {"protocol_version": "1+epochs=9", "top1_last": 0.6} for r in rows if r["method"] == "real-full"]
    named = disambiguate([*rows, *more])
    assert {r["protocol"] for r in named} == {"hard", "fixed-soft", "fixed-soft-noaug"}
    full = {(r["set"], r["top1_last"]) for r in named if r["method"] == "real-full"}
    assert full == {("real-full 1", 0.95), ("real-full 1+epochs=9", 0.6)}
    table = accuracy_table([r | {"kind": r["set"], "test": "t"} for r in named])
    assert "<td>real-full 1</td>" in table and "<td>real-full 1+epochs=9</td>" in table


@pytest.mark.parametrize("change", ["weights", "lr=0.1"])
def test_a_full_set_stands_beside_sets_of_its_own_rules(change):
    """It is seen fewer times, and a folder may hold several rules: its row was empty, and no plot had its line."""
    plain = [r | {"kind": r["set"], "test": "t"} for r in ranked_rows(({}, 0.5)) if r["protocol"] == "hard"]
    rows = [
        r | {"protocol_version": version + "+epochs=90" * (r["method"] == "real-full"), "top1_last": top1}
        for r in plain
        for version, top1 in (("2", 0.97 if r["method"] == "real-full" else 0.5), (f"2+{change}", 0.6))
    ]
    named = disambiguate(rows)
    assert {r["protocol"] for r in named} == {"hard 2", f"hard 2+{change}"}
    table = accuracy_table(named)
    (row,) = re.findall("<tr><td>real-full.*?</tr>", table)
    assert row.startswith("<tr><td>real-full</td>") and re.findall(r">(\d\d\.\d) ", row) == ["97.0", "60.0"]


def test_an_override_of_epochs_is_no_cap_and_two_caps_are_two_rows():
    plain = [r | {"kind": r["set"], "test": "t"} for r in ranked_rows(({}, 0.5)) if r["protocol"] == "hard"]
    ours = [r for r in plain if r["method"] != "real-full"]
    (full,) = [r for r in plain if r["method"] == "real-full"][:1]
    rows = [r | {"protocol_version": v} for r in ours for v in ("2", "2+epochs=200")]
    (named,) = [
        r for r in disambiguate([*rows, full | {"protocol_version": "2+epochs=200"}]) if r["set"] == "real-full"
    ]
    assert named["protocol"] == "hard 2+epochs=200"
    older = [r | {"protocol_version": "2"} for r in ours]
    both = [full | {"protocol_version": v} for v in ("1", "2+epochs=90")]
    for beside in (older, []):
        found = [(r["set"], r["protocol"]) for r in disambiguate([*beside, *both]) if r["method"] == "real-full"]
        assert found == [("real-full 1", "hard"), ("real-full 2+epochs=90", "hard")]


def test_a_sheet_for_each_kind_at_about_ten_images_the_best_first(tmp_path):
    store = Store(str(tmp_path))
    plain = {"config": as_dict(PRESETS["digits"]()), "inputs": {"images": 0}, "seed": 0, "versions": {}}
    store.write_json("run.json", plain | {"sets": {"d3hr-seed0": "own"}})
    store.write_json("report/sheets/00 before.png", {})
    kinds = {"own": 0.9, "fair": 0.7, "good": 0.8}
    sets = [DistilledSet(name, stripes(2), name, 0, {}) for name in kinds]
    blank = dict.fromkeys(SCHEMA.names) | {"ipc": 9, "set_seed": 0, "method": "m", "arch": "a", "protocol": "hard"}
    blank |= {"protocol_version": "1", "seed": 0, "top5_last": 0.9, "per_class": [0.5] * 3, "data": "d"}
    rows = [blank | {"set": name, "set_hash": name, "top1_last": x, "top1_best": x} for name, x in kinds.items()]
    rows += [r | {"ipc": 50, "set_hash": "other"} for r in rows]
    rows += [rows[0] | {"set": "real-full", "method": "real-full", "ipc": 10, "set_hash": "full"}]
    report_evaluation(store, stripes(3), rows, sets)
    assert store.read_json("report/sheets/names.json") == {"00.png": "good", "01.png": "fair"}
    assert store.list("report/sheets") == ["00.png", "01.png", "names.json"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.index("real images: the first") < page.index(">good<") < page.index(">fair<")
