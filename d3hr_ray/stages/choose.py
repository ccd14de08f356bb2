"""choose: pools/<pool>/ => subsets/<set>/, the candidates that stay, re-matched to the class moments if wished.

Ray tasks, one per block of the set. What the classifier got right, and what filled up, is written beside.
"""

from collections.abc import Callable, Sequence
from math import isnan

import pyarrow as pa
import pyarrow.compute as pc
import torch

from d3hr_ray.config import RunConfig, Selection
from d3hr_ray.layout import candidate_file, choice_file, pool_folder, run_at, subset_file, subset_folder
from d3hr_ray.numerics.selection import Choice, learnability, rematch, select
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.fit import Gaussians, share_gaussians
from d3hr_ray.stages.search import several, subset_table
from d3hr_ray.stages.weights import COMPONENT, pool_components
from d3hr_ray.store import Store

COUNTS = ("candidates", "correct", "kept", "kept_correct")
CHOICE_SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("candidates", pa.int32()),
        ("correct", pa.int32()),  # of the candidates, by the classifier
        ("kept", pa.int32()),
        ("kept_correct", pa.int32()),
        ("kept_own", pa.float32()),  # mean probability of the own class
    ]
)


def run_choose(store: Store, pools: Store, specs: Sequence[SetSpec], classes: int) -> None:
    """Choose every block that is not there of each set, whose pool lies in the folder `pools`, in one stream."""
    missing = []
    for spec in specs:
        there = store.files(subset_folder(spec)) | store.files(pool_folder(spec))
        for i, labels in enumerate(spec.blocks(classes)):
            if not {subset_file(spec, i), choice_file(spec, i)} <= there:
                missing.append((spec, i, labels))
    rematched = {spec: spec.timestep for spec, _, _ in missing if spec.timestep is not None and not spec.is_clean}
    gaussians = share_gaussians(store, rematched.values())
    jobs = [
        ((spec, i), (store, pools, spec, i, labels, gaussians[rematched[spec]] if spec in rematched else None))
        for spec, i, labels in missing
    ]
    for _ in bounded(choose_block, jobs, several("choose", [spec for (spec, _), _ in jobs])):
        pass


def choice_files(spec: SetSpec, classes: int) -> list[str]:
    """Names of a set's tables of what was chosen, all of them."""
    return [choice_file(spec, block) for block in range(len(spec.blocks(classes)))]


def read_choices(store: Store, spec: SetSpec, classes: int) -> pa.Table:
    """CHOICE_SCHEMA rows of a set, one per class."""
    return store.read_tables(choice_files(spec, classes))


def chosen_table(store: Store, spec: SetSpec, names: list[str]) -> pa.Table:
    """Per class: candidates and those on class, kept ones and those on class, their mean probability of the class."""
    table = read_choices(store, spec, len(names))
    return table.add_column(1, "class", pa.array([names[label] for label in table["label"].to_pylist()]))


def pools_table(sets: Sequence[tuple[str, SetSpec]], classes: int) -> pa.Table:
    """A row per set, given as its URI and spec: sums over its classes, and how many of these had to fill up.

    What a classifier decides is None where none judged (--select none).
    """
    rows = []
    for uri, spec in sets:
        table = read_choices(run_at(Store(uri)), spec, classes)
        sums = {key: pc.sum(table[key]).as_py() for key in COUNTS}
        sums["filled_up"] = pc.sum(pc.less(table["kept_correct"], table["kept"])).as_py()
        unjudged = dict.fromkeys(("correct", "kept_correct", "filled_up"))
        rows.append({"uri": uri} | sums | (unjudged if isnan(table["kept_own"][0].as_py()) else {}))
    return pa.Table.from_pylist(rows)


def choose_block(
    store: Store, pools: Store, spec: SetSpec, block: int, labels: range, gaussians: Gaussians | None
) -> None:
    """Choose the images of some labels, re-match them to `gaussians` if given, and write their subsets/ file."""
    config, pool, subsets, facts = spec.config, spec.pool, [], []
    components, own_components = pool_components(pools, pool, labels), list[int]()
    for label in labels:
        rows = _class_rows(pools, pool, candidate_file, label)
        choice = _choose(config, rows, label, spec.ipc)
        own_components += components[label][list(choice.places)].tolist() if components else []
        own = torch.tensor(rows["own"].to_pylist())[list(choice.places)]
        source = rows if spec.is_clean else _class_rows(pools, pool, subset_file, label)
        latents_ND = torch.tensor(source.take(list(choice.places))["latent"].to_pylist())
        if gaussians is not None:
            mean_KD, std_KD = gaussians
            latents_ND = rematch(latents_ND, mean_KD[label], std_KD[label], config.search.spread)
        subsets.append((label, latents_ND, own))
        correct = int(pc.sum(pc.equal(rows["predicted"], label)).as_py())
        facts.append((label, len(rows), correct, spec.ipc, choice.correct, float(own.mean())))
    columns = [pa.array(c, f.type) for c, f in zip(zip(*facts, strict=True), CHOICE_SCHEMA, strict=True)]
    store.write_table(choice_file(spec, block), pa.table(columns, schema=CHOICE_SCHEMA))
    table = subset_table(subsets, config.seed)
    table = table.append_column(COMPONENT, pa.array(own_components, pa.int32())) if components else table
    store.write_table(subset_file(spec, block), table)


def _class_rows(pools: Store, pool: SetSpec, file: Callable[[SetSpec, int], str], label: int) -> pa.Table:
    """A label's candidates in the pool's order."""
    size = len(pool.blocks(label + 1)[0])
    table = pools.read_table(file(pool, label // size))
    return table.filter(pc.equal(table["label"], label)).sort_by("index")


def _choose(config: RunConfig, rows: pa.Table, label: int, n: int) -> Choice:
    """The places to keep; without a classifier the first n of the pool."""
    predicted, confidence, own = (torch.tensor(rows[c].to_pylist()) for c in ("predicted", "confidence", "own"))
    order = config.cao2.select
    if order == "none":
        return Choice(tuple(range(n)), int((predicted[:n] == label).sum()))
    fill = confidence if config.has_quirk("fill") else own
    return select(predicted == label, _scores(order, own, rows), fill, n)


def _scores(order: Selection, own_P: torch.Tensor, rows: pa.Table) -> torch.Tensor:
    """What the kept candidates have most of, by their own class's probability and the other columns of `rows`."""
    if order == "learnable":
        return learnability(torch.tensor(rows["learner_loss"].to_pylist()), own_P)
    return own_P if order == "easy" else -own_P
