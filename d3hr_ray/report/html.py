"""Pieces of the report's page: its style, tables, figures and pictures, all within the file."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

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
        f'<figure><img alt="{escape(caption)}" src="{_data(png, "png")}">'
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
    return f'<img alt="{escape(alt)}" src="{_data(buffer.getvalue(), kind)}">'


def _data(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
