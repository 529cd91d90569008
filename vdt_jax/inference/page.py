"""The page that shows samples: one HTML file beside its images, without scripts and external files.

A page is made of parts: `cards` of images, a `dot_chart`, a `table`, and `folded` text.
"""

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from vdt_jax.files import atomic_write

# How `is_page` tells pages of this package from other files.
_GENERATOR = '<meta name="generator" content="vdt_jax">'
_REFRESH = '<meta http-equiv="refresh" content="5">'
_STYLE = """
:root {
  color-scheme: light dark;
  --text: #1c1b22; --quiet: #67646f; --line: #dcdae3; --panel: #f6f5f9; --model: #6a3fd4;
}
@media (prefers-color-scheme: dark) {
  :root { --text: #eceaf2; --quiet: #a29fae; --line: #3a3844; --panel: #232129; --model: #a98bff; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem; color: var(--text); }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 0; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0 0 .6rem; color: var(--quiet); }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); grid-auto-flow: dense;
  gap: 1rem; margin-bottom: 1rem;
}
.card { background: var(--panel); border-radius: .5rem; padding: .6rem .75rem .75rem; min-width: 0; max-width: 44rem; }
.card p { font-size: .85rem; margin: 0 0 .3rem; }
@media (min-width: 48rem) { .wide { grid-column: span 2; max-width: none; } }
.columns { display: flex; font-size: .75rem; color: var(--quiet); }
.columns span { flex: 1; text-align: center; }
img { display: block; width: 100%; image-rendering: pixelated; }
.chart { max-width: 52rem; }
svg { display: block; overflow: visible; font-size: .85rem; fill: var(--text); }
.model { fill: var(--model); stroke: var(--model); }
.baseline { fill: var(--panel); stroke: var(--quiet); stroke-width: 2; }
.quiet { fill: var(--quiet); }
.axis { stroke: var(--line); }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre, .scroll { overflow-x: auto; }
pre { background: var(--panel); padding: .5rem .75rem; font-size: .8rem; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
"""


class Card(NamedTuple):
    """An image: its heading, a line of text, the file, which is beside the page, and what its columns show."""

    title: str
    text: str
    file: str
    columns: Sequence[str]


def cards(items: Sequence[Card]) -> str:
    """A grid of images; those of many columns are twice as wide."""
    parts = []
    for card in items:
        kind = "card wide" if len(card.columns) > 3 else "card"
        heading = f"<h3>{html.escape(card.title)}</h3><p>{html.escape(card.text)}</p>"
        columns = "".join(f"<span>{html.escape(name)}</span>" for name in card.columns)
        picture = f'<img src="{quote(card.file)}" alt="{html.escape(card.title)}">'
        parts.append(f'<article class="{kind}">{heading}<div class="columns">{columns}</div>{picture}</article>')
    return f'<div class="cards">{"".join(parts)}</div>'


def dot_chart(rows: Mapping[str, Mapping[str, float]], model: str, unit: str) -> str:
    """A row for each task on one axis: a dot for the model, a ring for each baseline, a bar from the best of them."""
    values = [value for row in rows.values() for value in row.values()]
    margin = 0.06 * (max(values) - min(values)) or 1
    low, high = min(values) - margin, max(values) + margin

    def x(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    parts, height = [], 48
    for number, (name, row) in enumerate(rows.items()):
        y, text = number * height + 34, f"{row[model]:.1f} {unit}"
        parts.append(f'<line class="axis" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        baselines = {other: value for other, value in row.items() if other != model}
        if baselines:
            best, value = max(baselines.items(), key=lambda item: item[1])
            text += f", {row[model] - value:+.1f} over {best} ({value:.1f})"
            ends = f'x1="{x(value)}" x2="{x(row[model])}" y1="{y}" y2="{y}"'
            parts.append(f'<line class="model" {ends} stroke-width="3"/>')
        rings = [f'<circle class="baseline" cx="{x(value)}" cy="{y}" r="5"/>' for value in baselines.values()]
        parts += [*rings, f'<circle class="model" cx="{x(row[model])}" cy="{y}" r="6"/>']
        parts.append(f'<text x="0" y="{y - 14}">{html.escape(name)}</text>')
        parts.append(f'<text class="quiet" x="100%" y="{y - 14}" text-anchor="end">{html.escape(text)}</text>')
    return f'<div class="chart"><svg width="100%" height="{len(rows) * height}" role="img">{"".join(parts)}</svg></div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, the first column aligned to the left and the others to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    body = "".join(cells(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{cells(columns, "th")}</thead><tbody>{body}</tbody></table></div>'


def section(title: str, text: str, *parts: str) -> str:
    """Parts under a heading and a line of text."""
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{''.join(parts)}</section>"


def folded(title: str, part: str) -> str:
    """A part that is shown when its title is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{part}</details>"


def preformatted(text: str) -> str:
    """Text as it is: commands, settings."""
    return f"<pre>{html.escape(text)}</pre>"


def describe_given(mask: np.ndarray, label: bool = False) -> str:
    """What a mask (F, h, w, 1) gives (0 = given), in words: "frames 0-7 of 16 given"; `label`: the class as well."""
    generated = mask.reshape(len(mask), -1) > 0.5
    given = np.flatnonzero(~generated.any(axis=1))
    partial = np.flatnonzero(generated.any(axis=1) & ~generated.all(axis=1))
    if not len(given) and not len(partial):
        return "only the class given" if label else "nothing given"
    texts = ["the class"] if label else []
    if len(given):
        texts.append(f"frame{'s' * (len(given) > 1)} {_ranges(given)} of {len(mask)}")
    if len(partial):
        texts.append(f"a part of frame{'s' * (len(partial) > 1)} {_ranges(partial)}")
    return " and ".join(texts) + " given"


def _ranges(numbers: np.ndarray) -> str:
    """Increasing integers as text: "0-7", "0, 4, 8"."""
    runs = itertools.groupby(enumerate(numbers.tolist()), lambda item: item[1] - item[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(run) for _, run in runs)]
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ends)


def is_page(path: Path) -> bool:
    """Whether `write_page` wrote this file."""
    return _GENERATOR in path.read_text(errors="replace")


def write_page(path: str | Path, title: str, introduction: str, *parts: str, finished: bool = True) -> None:
    """Writes a page atomically. A browser reloads an unfinished one every few seconds."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{_GENERATOR}'
    head += "" if finished else _REFRESH
    head += f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    body = f"<h1>{html.escape(title)}</h1><p>{html.escape(introduction)}</p>{''.join(parts)}"
    atomic_write(Path(path), f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n')
