"""The plan of a run before anything runs: images, network forwards, FLOP, device time and bytes per stage."""

import torch

from d3hr_ray.config import RunConfig
from d3hr_ray.models.card import ModelCard
from d3hr_ray.models.flops import STEP, Cost, convnet_flop, count_flop
from d3hr_ray.models.speed import find_speed
from d3hr_ray.numerics.grids import position
from d3hr_ray.sets import sets_of
from d3hr_ray.stages.block_features import guided_at
from d3hr_ray.stages.feature_kinds import block_kind
from d3hr_ray.stages.mixture import label_blocks, mixture_kind

NORMALS_PER_SECOND = 1e8  # standard normal float32 numbers that one core draws (numpy Philox, measured: 1.2e8)
# Measured by jobs/bench.py search (D = 4096, one core): what a number of a candidate costs, in draws of a normal.
MOMENTS_COST, LOOP_COST, SKEWED_COST = 1.6, 3.0, 0.7  # columns; the plain loop; most candidates are abandoned early
ORDER_COST = 1.0  # of exact matching: each image is compared with those that are left, to put them in order
LAW_SECONDS, SCORES_PER_SECOND = 0.15, 3e6  # tabulating a class's scores and making the winner; drawing scores
PNG_SHARE = 0.7  # of the raw bytes of a natural image


def plan(
    config: RunConfig,
    card: ModelCard,
    grid: tuple[int, ...],
    images: int,
    classes: int,
    reused: int,
    tflops: float | None,
) -> str:
    """The plan as text. The latents of `reused` images are taken from another run.

    Times are of one device at a sustained `tflops` TFLOP/s; None: as find_speed finds.
    """
    cost, dims = count_flop(card), torch.Size(card.latent_shape).numel()
    speed = find_speed(config.model.name, card, cost, tflops)
    sets = sets_of(config)
    lines = [
        f"plan: {config.method} ({config.fidelity}), {images:,} images of {classes} classes, D = {dims}, "
        f"one denoiser forward = {_si(cost.forward)}FLOP",
        f"{'stage':<11} {'images':>10} {'forwards/image':>14} {'FLOP':>10} {'time':>10} {'bytes':>10}  notes",
    ]
    rate = speed.tflops * 1e12
    if config.fits:
        top = max(config.inversion.stored)
        onto = config.inversion.solver == "adams" or grid[0] > 0  # whether the grid's first point takes a forward
        forwards = (position(grid, top) + onto) * _passes(config.inversion.guidance)
        fresh = images - reused
        flop = fresh * (forwards * cost.forward + cost.encode)
        stored = len(config.inversion.stored)
        walk = f"{position(grid, top)} {config.inversion.solver} steps to t={top}"
        note = f"{walk}, guidance {config.inversion.guidance:g}"
        if reused:
            lines.append(_row("reuse", reused, 0, 0, 0, reused * stored * dims * 2, "copies latents of another run"))
        lines.append(_row("invert", fresh, forwards, flop, flop / rate, fresh * stored * dims * 2, note))
        fitted = len({*config.inversion.timesteps, config.moments_timestep} - {None})
        lines.append(_row("fit", images, 0, 0, 0, classes * fitted * dims * 8, "reads latents/ once per timestep"))
        if config.has_mixture:
            lines.append(_mixture_row(config, images, classes, dims))
        wanted = [(spec.pool if config.has_pool else spec).ipc for spec in sets]
        seconds = sum(search_seconds(config, n, dims) for n in wanted) * classes
        note = f"about {duration(seconds)} of one CPU core, {search_note(config)}"
        found = classes * sum(wanted)
        lines.append(_row("search", found, 0, 0, 0, found * dims * 4, note))
    if config.refines:
        lines.append(_features_row(config, card, images, classes, rate))
    if config.guides_features:
        lines.append(_block_features_row(config, card, grid, cost, images, classes, rate))
    lines += _making_rows(config, card, grid, cost, classes, rate)
    lines.append(f"time is {speed.words}; nothing was run")
    return "\n".join(lines)


def _mixture_row(config: RunConfig, images: int, classes: int, dims: int) -> str:
    """Mixtures of all sets: sets that differ in IPC alone share one, unless it has a component per image."""
    kinds = {mixture_kind(config, t, n) for t in config.inversion.timesteps for n in config.search.ipc}
    read = sum(images * dims * 2 * len({kind.timestep, kind.cluster_timestep}) for kind in kinds)
    rows = classes * sum(3 * kind.components + kind.rank for kind in kinds)  # mean, medoid, variance; directions
    tasks = len(kinds) * len(list(label_blocks([images // classes] * classes, dims)))
    work = " and ".join(["k-means"] * (config.search.components != 1) + ["SVD"] * (config.search.rank > 0))
    note = f"{work} on CPUs, {tasks:,} task(s); reads {_si(read)}B of latents/, each class once"
    return _row("mixture", images, 0, 0, 0, rows * dims * 4, f"{note} (each task all of it if files mix classes)")


def _features_row(config: RunConfig, card: ModelCard, images: int, classes: int, rate: float) -> str:
    """Features of real images, that sets are refined by."""
    refine = config.refine
    seen = min(images, refine.images * classes) if refine.images else images
    flop = seen * refine.networks * convnet_flop(refine.width, card.image_size)
    features = refine.width * (card.image_size // 8) ** 2
    note = f"under {refine.networks} random ConvNets of width {refine.width}"
    return _row("features", seen, 0, flop, flop / rate, refine.networks * classes * features * 4, note)


def _block_features_row(
    config: RunConfig, card: ModelCard, grid: tuple[int, ...], cost: Cost, images: int, classes: int, rate: float
) -> str:
    """Features of real images in a block of the DiT, that sets are guided by."""
    kind, points = block_kind(config.guide, card.blocks), len(guided_at(config, grid))
    seen = min(images, kind.images * classes) if kind.images else images
    flop = seen * (points * _block_share(config, card) * cost.forward + cost.encode)
    heads, size = card.transformer["num_attention_heads"], card.transformer["attention_head_dim"]
    note = f"in block {kind.block} of {card.blocks}, at {points} timesteps"
    return _row("features", seen, points, flop, flop / rate, points * classes * heads * size * 4, note)


def _block_share(config: RunConfig, card: ModelCard) -> float:
    """Share of a forward that a pass up to the block takes that sets are guided by."""
    return (config.guide.block_of(card.blocks) + 1) / card.blocks


def _making_rows(
    config: RunConfig, card: ModelCard, grid: tuple[int, ...], cost: Cost, classes: int, rate: float
) -> list[str]:
    """CaO2's pool if there is one, then the images of all sets."""
    sets, pool = sets_of(config), config.cao2.pool if config.has_pool else 1
    passes = 0 if config.method == "random" else _passes(config.synthesis.guidance)
    above = config.has_quirk("start")  # the authors start a grid step above t
    steps = [len(grid) if n.timestep is None else position(grid, n.timestep) + 1 + above for n in sets]
    walks = [s * passes for s in steps]
    images = [classes * n.ipc for n in sets]
    rows, made = [], sum(images)
    if config.has_pool:
        flop = pool * sum(i * (w * cost.forward + cost.decode) for i, w in zip(images, walks, strict=True))
        size = pool * made * torch.Size(card.latent_shape).numel() * 8
        note = f"{pool} candidates per image, kept: {config.cao2.select}"
        rows.append(_row("pool", pool * made, max(walks), flop, flop / rate, size, note))
        stage_2 = config.cao2.iterations * STEP
        walks = [stage_2 + (0 if n.is_clean else w) for n, w in zip(sets, walks, strict=True)]
    decode = 0.0 if config.method == "random" else cost.decode
    flop = sum(i * (w * cost.forward + decode) for i, w in zip(images, walks, strict=True))
    if config.refines:
        moves, own = config.refine.networks * config.refine.steps, convnet_flop(config.refine.width, card.image_size)
        flop += made * moves * STEP * (cost.decode + own)
    if config.guides_features:
        points = [len(guided_at(spec.config, grid)) for spec in sets]
        moved = sum(i * n for i, n in zip(images, points, strict=True)) * (STEP + 1)
        flop += moved * _block_share(config, card) * cost.forward
    side = config.synthesis.image_size or card.image_size
    note = f"{len(sets)} set(s), guidance {config.synthesis.guidance:g}"
    note += f", {config.cao2.iterations} steps on each latent" if config.has_pool and config.cao2.iterations else ""
    note += f", {moves:,} steps of refinement" if config.refines else ""
    note += f", {max(points)} steps with passes to block and back" if config.guides_features else ""
    size = int(made * side * side * 3 * PNG_SHARE)
    return [*rows, _row("synthesize", made, max(walks), flop, flop / rate, size, note)]


def search_seconds(config: RunConfig, n: int, dims: int) -> float:
    """CPU-core-seconds to find one class's subset, from the numbers that must be drawn."""
    search = config.search
    if config.method == "gaussian" or (search.method == "moments" and n == 1):
        return n * dims / NORMALS_PER_SECOND
    if search.method == "moments":
        return (search.candidates * MOMENTS_COST + n * ORDER_COST) * n * dims / NORMALS_PER_SECOND
    if config.draws_all:
        return search.candidates * n * dims * LOOP_COST / NORMALS_PER_SECOND
    if n > 2 and search.skew_weight:
        return search.candidates * n * dims * SKEWED_COST / NORMALS_PER_SECOND
    return LAW_SECONDS + search.candidates / SCORES_PER_SECOND


def search_note(config: RunConfig) -> str:
    """What the search is, in words."""
    if config.method == "gaussian":
        return "one random draw"
    return f"{config.search.method}, {config.search.candidates:,} candidates"


def _passes(guidance: float) -> int:
    return 1 if guidance == 1 else 2


def _row(stage: str, images: int, forwards: int, flop: float, seconds: float, size: int, note: str) -> str:
    return f"{stage:<11} {images:>10,} {forwards:>14} {_si(flop):>10} {duration(seconds):>10} {_si(size):>9}B  {note}"


def duration(seconds: float) -> str:
    """Seconds in the unit that people read: 1.85 ms, 42 s, 12 min, 9.6 h; a dash for none."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:,.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:,.0f} {unit}"
    return f"{seconds * 1000:.3g} ms" if seconds else "-"


def _si(value: float) -> str:
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "
