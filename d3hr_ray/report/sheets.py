"""Pictures of sets: contact sheets, a few images of each class side by side, and the pieces that a page is made of."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.images import GLANCE, Images
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import look_of
from d3hr_ray.evaluation.baselines import DRAWN
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.layout import DISTILLED, MANIFEST, METADATA, REALS, REPORT, RUN, set_folder
from d3hr_ray.numerics.seeds import generator
from d3hr_ray.report.names import disambiguate_sets, name_of
from d3hr_ray.report.plots import plt, save_figure
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.images import png
from d3hr_ray.stages.reals import readable
from d3hr_ray.store import Store

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1100px;padding:1rem;color:#1c2330;background:#fff;
overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d5dae3}
img{max-width:100%;height:auto;display:block}figure{margin:1rem 0}figcaption,.note{color:#566;font-size:.9rem}
.pair{display:flex;flex-wrap:wrap;gap:1rem}.pair figure{flex:1 1 320px;margin:0;min-width:0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e6e9ef;white-space:nowrap;overflow-wrap:normal}
th:first-child,td:first-child,.facts td{text-align:left}.facts td,.names td:first-child{white-space:normal}
.facts td:first-child{min-width:6rem}
tr:hover td{background:#f4f6fa}.best{font-weight:700}summary{cursor:pointer}
code,pre{background:#f0f2f6;padding:0 .25rem;border-radius:3px}pre{padding:.6rem;white-space:pre-wrap}
.shots{display:grid;grid-template-columns:max-content var(--cells);gap:3px;align-items:center}
.shots img{width:100%}.shots b{font-weight:400;white-space:nowrap}.pixels img{image-rendering:pixelated}
@media(max-width:600px){th,.narrow td{white-space:normal}th,td{padding:.25rem .2rem;font-size:.8rem}
.long{grid-template-columns:0 var(--cells)}.long .name{grid-column:1/-1}.long .name+*{grid-column-start:2}}
@media(prefers-color-scheme:dark){body{background:#12161d;color:#dde3ee}th,td,h2{border-color:#333c4a}a{color:#8ab4f8}
tr:hover td{background:#1b212b}code,pre{background:#222936}figure img{background:#fff}figcaption,.note{color:#9ab}}
"""
THUMB = 96  # pixels of a photograph's side on the page
PIXEL_ART = 64  # images up to this side are shown pixel by pixel
ROWS, COLUMNS = GLANCE
SIDE = 0.8  # inches
SHEETS = f"{REPORT}/sheets"  # of what was evaluated last
MOST_SHEETS = 12
TESTED = f"{REPORT}/real.png"  # real test images, where no training images were kept
FIRST_CLASSES, EACH = 20, 5  # that are shown side by side, and images of each
CELLS = 12  # side by side at most, on a phone 28 pixels each
MOST_SETS = 3
REALS_SCHEMA = pa.schema([("label", pa.int32()), ("image", pa.binary())])


def document(title: str, body: Iterable[str]) -> bytes:
    """A whole page."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>'
    )
    return f"{head}<body>{''.join(body)}</body></html>".encode()


def table(head: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    """Words down, numbers across; scrolls within itself where it is wider than the screen."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{f"<tr>{names}</tr>" if names else ""}{lines}</table></div>'


def link(to: str, text: str) -> str:
    """To a file of the run folder, relative to report/."""
    return f'<a href="{escape(to)}">{escape(text)}</a>'


def figure(png: bytes, caption: str) -> str:
    """An image with its caption, the bytes inside the page."""
    return (
        f'<figure><img alt="{escape(caption)}" src="{_data_uri(png, "png")}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def picture(pixels: np.ndarray, alt: str) -> str:
    """An image of a set, (H, W, 3) uint8: as it is if it is small, else its thumbnail."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) <= PIXEL_ART:
        image.save(buffer, "PNG")
        kind = "png"
    else:
        image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f'<img alt="{escape(alt)}" src="{_data_uri(buffer.getvalue(), kind)}">'


def _data_uri(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def contact_sheet(store: Store, spec: SetSpec, images: pa.Table) -> bytes:
    """IMAGE_SCHEMA rows of a set => PNG with the first images of the first classes."""
    shown = first_images(store.at(set_folder(spec)), images, ROWS, COLUMNS)
    names = dict(zip(images["label"].to_pylist(), images["class_name"].to_pylist(), strict=True))
    classes = len(set(images["label"].to_pylist()))
    title = f"{spec.name}: {len(images)} images, {classes} classes"
    return _draw([(names[label], pixels) for label, pixels in shown.items()], title)


def first_images(own: Store, images: pa.Table, classes: int, each: int) -> dict[int, list[np.ndarray]]:
    """IMAGE_SCHEMA rows of a set in its folder => RGB pixels of the first images of the first classes, by label."""
    rows = images.sort_by([("label", "ascending"), ("index", "ascending")]).to_pylist()
    rows = [row for row in rows if row["label"] < classes and row["index"] < each]
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for row, data in zip(rows, own.read_many([row["file_name"] for row in rows]), strict=True):
        found[row["label"]].append(pixels_of(data))
    return found


def pixels_of(image: bytes) -> np.ndarray:
    """An encoded image => its pixels (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def sheet_of(images: Images, title: str) -> bytes:
    """Images in memory => PNG with the first images of the first classes."""
    classes = range(min(ROWS, len(images.classes)))
    return _draw([(images.classes[k], images.pixels[images.labels == k][:COLUMNS]) for k in classes], title)


def _draw(rows: Sequence[tuple[str, Sequence[np.ndarray]]], title: str) -> bytes:
    columns = max(len(pixels) for _, pixels in rows)
    size = (SIDE * columns + 1.6, SIDE * len(rows) + 0.5)
    drawing, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, shown) in zip(axes, rows, strict=True):
        line[0].text(-0.1, 0.5, name[:16], transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for axis, pixels in zip(line, shown, strict=False):
            axis.imshow(pixels, interpolation="nearest")
    drawing.suptitle(title, fontsize=9, y=0.9, va="bottom")
    return save_figure(drawing)


def write_sheets(
    store: Store, rows: Sequence[dict[str, Any]], sets: Sequence[DistilledSet], show_reals: bool = True
) -> None:
    """report/sheets/: a sheet for each kind of set at one IPC, the best kinds first; older sheets are deleted.

    The IPC is 10 or the nearest to it, the seed the first. What jobs/distill.py made a sheet of is left out, and
    baselines of real images unless they may be shown.
    """
    store.delete(SHEETS)
    there = set(store.read_json(RUN).get("sets", {}).values()) if store.exists(RUN) else set()
    rows = [row for row in rows if row["method"] != "real-full" and (show_reals or row["method"] not in DRAWN)]
    ipc = min({row["ipc"] for row in rows}, key=lambda n: (abs(n - 10), n), default=None)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in disambiguate_sets([row for row in rows if row["ipc"] == ipc]):
        kinds.setdefault(name_of(row), []).append(row)
    top1 = {name: sum(row["top1_last"] for row in members) / len(members) for name, members in kinds.items()}
    firsts = {name: min(kinds[name], key=lambda row: row["set_seed"]) for name in sorted(kinds, key=lambda n: -top1[n])}
    wanted = [(name, row) for name, row in firsts.items() if row["set_hash"] not in there][:MOST_SHEETS]
    held, names = {found.set_hash: found.images for found in sets}, {}
    for at, (name, row) in enumerate(wanted):
        images = held[row["set_hash"]]
        title = f"{name}, seed {row['set_seed']}: {len(images)} images, {len(images.classes)} classes"
        store.write_bytes(f"{SHEETS}/{at:02d}.png", sheet_of(images.load(glance=True), title))
        names[f"{at:02d}.png"] = name
    store.write_json(f"{SHEETS}/names.json", names)


Shots = Mapping[int, Sequence[np.ndarray]]  # by label


def keep_reals(store: Store, config: RunConfig, listing: Listing, size: int) -> None:
    """Read a few real images per class into report/real.parquet, cropped to `size`: the first of --method random."""
    rows = []
    for label, of_label in enumerate(listing.rows()[:FIRST_CLASSES]):
        order = generator("reals", config.seed, label).permutation(of_label)
        found = readable(listing.source, listing.entries.take(order), EACH, size, look_of(config.fidelity))
        rows += [{"label": label, "image": png(pixels, None)} for pixels, _ in found]
    store.write_table(REALS, pa.Table.from_pylist(rows, REALS_SCHEMA))


def real_shots(store: Store) -> Shots:
    """What `keep_reals` kept; nothing if it kept nothing."""
    shots: dict[int, list[np.ndarray]] = defaultdict(list)
    for row in store.read_table(REALS).to_pylist() if store.exists(REALS) else []:
        shots[row["label"]].append(pixels_of(row["image"]))
    return shots


def set_shots(store: Store, name: str) -> tuple[int, Shots]:
    """A distilled set of a run => its images per class, and the first ones of the first classes."""
    own = store.at(f"{DISTILLED}/{name}")
    table = own.read_table(METADATA)
    return len(table) // len(table["label"].unique()), first_images(own, table, FIRST_CLASSES, EACH)


def shown_sets(sizes: Mapping[str, int]) -> list[str]:
    """Names of sets, with their images per class => the few to look at: the first of each size, from small to large."""
    first = {ipc: min(n for n in sizes if sizes[n] == ipc) for ipc in sorted(set(sizes.values()))}
    names = list(first.values())
    return names if len(names) <= MOST_SETS else [names[0], names[len(names) // 2], names[-1]]


def grid(columns: Sequence[tuple[str, Shots]], names: Sequence[str]) -> Iterator[str]:
    """A row of pictures per class; `columns` are titles and images: real ones first, then a column per set."""
    each = max(k for k in range(1, EACH + 1) if k == 1 or sum(_widths(columns, k)) <= CELLS)
    widths = _widths(columns, each)
    pixel_art = all(image.shape[0] <= PIXEL_ART for _, shots in columns for found in shots.values() for image in found)
    long = any(len(name) > 3 for name in names[:FIRST_CLASSES])
    kinds = " ".join(["shots", *["pixels"] * pixel_art, *["long"] * long])
    cells = " ".join(f"8px repeat({width},minmax(0,64px))" for width in widths)
    yield f'<div class="{kinds}" style="--cells:{cells}"><b class="name"></b>'
    for (title, _), width in zip(columns, widths, strict=True):
        yield f'<i></i><b style="grid-column:span {width}">{escape(title)}</b>'
    for label, name in enumerate(names[:FIRST_CLASSES]):
        yield f'<b class="name">{escape(name)}</b>'
        for (title, shots), width in zip(columns, widths, strict=True):
            found = [picture(pixels, f"{title}, class {name}") for pixels in shots.get(label, [])[:width]]
            yield "".join(["<i></i>", *found, *["<i></i>"] * (width - len(found))])
    yield "</div>"


def _widths(columns: Sequence[tuple[str, Shots]], each: int) -> list[int]:
    return [min(each, max(map(len, shots.values()), default=0)) for _, shots in columns]


def images_section(store: Store, run: dict[str, Any] | None, classes: Sequence[str]) -> Iterator[str]:
    """Real images beside those of a few of the run's sets, class by class."""
    names = [n for n in store.at(DISTILLED).folders() if store.exists(f"{DISTILLED}/{n}/{MANIFEST}")] if run else []
    if not names:
        return
    found = {name: set_shots(store, name) for name in names}
    shown = shown_sets({name: ipc for name, (ipc, _) in found.items()})
    reals = real_shots(store)
    yield "<h2>Images</h2>"
    beside = "Left: real images of the training data, not distilled ones. " if reals else ""
    first = f": the first {FIRST_CLASSES} are shown" if len(classes) > FIRST_CLASSES else ""
    yield f"<p>{beside}Each row is a class{first}.</p>"
    columns = [("real", reals)] * bool(reals) + [(f"IPC {found[name][0]}", found[name][1]) for name in shown]
    yield from grid(columns, classes)


def sheets_section(store: Store) -> Iterator[str]:
    """Contact sheets of what was evaluated last, two and two, the best first; those of the run itself are above."""
    captions = {}
    if store.exists(f"{SHEETS}/names.json"):
        captions = {f"{SHEETS}/{file}": name for file, name in store.read_json(f"{SHEETS}/names.json").items()}
    if captions:
        yield "<h2>Images of what was compared</h2>"
    if store.exists(TESTED):
        captions = {TESTED: "real images: the first of each class in the test set"} | captions
    sheets = [figure(store.read_bytes(file), caption) for file, caption in captions.items()]
    for at in range(0, len(sheets), 2):
        yield f'<div class="pair">{"".join(sheets[at : at + 2])}</div>'
