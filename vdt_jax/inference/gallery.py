"""The files of sample.py beside its videos: comparisons and the page that shows them."""

import logging
from collections.abc import Sequence
from pathlib import Path

from vdt_jax.inference.clip import Clip
from vdt_jax.inference.outputs import Example, Section, write_page
from vdt_jax.inference.requests import numbered

logger = logging.getLogger(__name__)


def write_gallery(output: str | Path, clips: Clip | Sequence[Clip], command: str) -> Path:
    """Writes OUT.gif and OUT.png (given | sample | truth) for each clip, and index.html.

    Args:
      output: as for `Pipeline.sample`.
      clips: what it returned.
      command: shown on the page.

    Returns:
      The page.
    """
    clips = [clips] if isinstance(clips, Clip) else clips
    examples = []
    for number, clip in enumerate(clips):
        path = numbered(Path(output), number, len(clips))
        clip.save_comparison(path.with_suffix(".gif"))
        clip.save_comparison(path.with_suffix(".png"))
        caption = f"{len(clip.video)} frames, {clip.mask.mean():.0%} generated, {clip.fps:g} frames a second"
        logger.info("%s: %s", path, caption)
        examples.append(Example(f"{path.stem}.gif", f"{path.stem}: {caption}"))
    page = Path(output).parent / "index.html"
    introduction = "Given | sample | truth, where it is known. Violet was generated."
    write_page(page, "Samples", introduction, [], [], [Section("Samples", command, examples)])
    return page
