"""Pictures of samples, and the page that shows them."""

import contextlib
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.video import (
    OUTPUT_SUFFIXES,
    VideoWriter,
    as_rgb,
    enlarge,
    frame_grid,
    hide,
    side_by_side,
    to_uint8,
    write_video,
)

_OURS = '<meta name="generator" content="vdt_jax">'


class Example(NamedTuple):
    """A picture of a page: its file beside the page, and what stands under it."""

    file: str
    caption: str


class Section(NamedTuple):
    """A heading, the command that made what follows, and pictures."""

    title: str
    command: str
    examples: Sequence[Example]


def comparison_views(
    clean: np.ndarray, mask: np.ndarray, samples: Sequence[np.ndarray], show_truth: bool = True
) -> list[np.ndarray]:
    """The columns given | sample(s) | truth of a comparison, (F, H', W', 3) uint8 each, enlarged if small.

    Args:
      clean: (F, H, W, C) uint8, the truth, or at least right where mask = 0.
      mask: (F, H, W, 1), 1 = generate, 0 = given; generated positions are violet in the first column.
      samples: (F, H, W, C) uint8 each.
      show_truth: whether `clean` is known everywhere, and is shown.
    """
    truth = as_rgb(clean)
    views = [hide(truth, mask), *map(as_rgb, samples), *([truth] if show_truth else [])]
    return [enlarge(view) for view in views]


def write_comparison(
    stem: str | Path, clean: np.ndarray, mask: np.ndarray, samples: Sequence[np.ndarray], fps: float = 8
) -> None:
    """Writes given | sample(s) | truth as a looping stem.gif, and as rows of frames in stem.png.

    Args:
      stem: path without suffix.
      clean: (F, H, W, C) in [-1, 1], the truth.
      mask: (F, H, W, 1), 1 = generate, 0 = given.
      samples: (F, H, W, C) in [-1, 1] each.
      fps: of the GIF.
    """
    views = comparison_views(to_uint8(clean), mask, [to_uint8(sample) for sample in samples])
    write_video(Path(stem).with_suffix(".gif"), side_by_side(*views), fps)
    write_video(Path(stem).with_suffix(".png"), frame_grid(*views)[None])


def write_videos(paths: Sequence[Path], blocks: Iterable[np.ndarray], fps: float, keep: int = 0) -> np.ndarray:
    """Writes videos as they come, a few frames of all of them at a time.

    Args:
      paths: a file for each video, or none at all.
      blocks: (B, f, H, W, C) uint8 each.
      fps: frames a second.
      keep: frames to return.

    Returns:
      The first `keep` frames or a few more, (B, f, H, W, C) uint8.
    """
    kept: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(VideoWriter(path, fps)) for path in paths]
        for block in blocks:
            if not kept or sum(part.shape[1] for part in kept) < keep:
                kept.append(block)
            for writer, frames in zip(writers, block, strict=False):
                for frame in frames:
                    writer.write(frame)
    return np.concatenate(kept, axis=1)


def table_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text, the first column left, the others right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for row in [columns, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def check_output(output: str | Path) -> None:
    """Checks before any work that samples and their page can be written.

    Raises:
      UserError: a suffix that cannot be written, or a page in that folder that `write_page` did not write.
    """
    check_suffix(output)
    check_free(Path(output).parent / "index.html")


def check_suffix(output: str | os.PathLike) -> None:
    """Raises UserError where a sample cannot be written in the format of the suffix."""
    if Path(output).suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"output must end in {', '.join(OUTPUT_SUFFIXES)}, got {output}")


def check_free(path: str | Path) -> None:
    """Raises UserError where there is a page that `write_page` did not write."""
    path = Path(path)
    if path.exists() and _OURS not in path.read_text(errors="replace"):
        raise UserError(f"{path} is there and not a page of this program: write to another folder")


def write_page(
    path: str | Path,
    title: str,
    introduction: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    sections: Sequence[Section],
) -> None:
    """Writes a page: a table, then sections of pictures. It needs nothing but the files beside it."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    figures = []
    for section in sections:
        pictures = "".join(
            f'<figure><img src="{html.escape(e.file)}" alt="{html.escape(e.caption)}">'
            f"<figcaption>{html.escape(e.caption)}</figcaption></figure>"
            for e in section.examples
        )
        figures.append(
            f"<h2>{html.escape(section.title)}</h2><pre>{html.escape(section.command)}</pre><div>{pictures}</div>"
        )
    Path(path).write_text(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8">{_OURS}<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
div {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 0; }} img {{ image-rendering: pixelated; display: block; max-width: 100%; }}
figcaption {{ font-size: .8rem; color: #666; }}
pre {{ background: #f5f4f8; padding: .5rem .75rem; overflow-x: auto; font-size: .8rem; }}
h2 {{ margin: 2rem 0 .25rem; }}
</style>
<h1>{html.escape(title)}</h1>
<p>{html.escape(introduction)}</p>
<table><thead>{cells(columns, "th")}</thead><tbody>{"".join(cells(row, "td") for row in rows)}</tbody></table>
{"".join(figures)}
</html>
"""
    )
