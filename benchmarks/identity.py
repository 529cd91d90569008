"""Whether a digit stays the digit that it is: which one each frame of a sample shows.

    PYTHONPATH=. python benchmarks/identity.py

PSNR says little of samples that may go on in more than one way. Here each frame is held against every glyph at every
place and against nothing, and shows what is nearest. For a model of moving_digits with one digit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from measure import report

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import make_source, take
from vdt_jax.data.digits import glyph_tiles
from vdt_jax.generation import generate, load, sample_keys, task_masks

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "As for sample.py.")
_TASKS = flags.DEFINE_list("tasks", ["unconditional", "single_frame", "predict", "interpolation"], "As evaluate.py's.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 32, "Samples a task.")
_RESPACING = flags.DEFINE_string("timestep_respacing", "25", "As for sample.py.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", "As for sample.py.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Scale of guidance on the classes that are told.")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/identity.json", "The report.")

NOTHING = 10  # what a frame shows that is nearer to black than to any glyph


@functools.cache
def glyphs() -> tuple[np.ndarray, np.ndarray]:
    """Every digit at every other eighth of a pixel: pictures (N, 1, h, w) in [0, 1], and which digit each is (N,)."""
    tiles = [tile for phases in glyph_tiles() for tile in phases[::2, ::2].reshape(-1, *phases.shape[2:])]
    height, width = max(tile.shape[0] for tile in tiles), max(tile.shape[1] for tile in tiles)
    padded = [np.pad(tile, ((0, height - tile.shape[0]), (0, width - tile.shape[1]))) for tile in tiles]
    return np.stack(padded)[:, None], np.repeat(np.arange(10), len(tiles) // 10)


@jax.jit
def digits_shown(video: jax.Array) -> jax.Array:
    """What each frame of a video (F, H, W, 1) in [-1, 1] is nearest, by squared distance, (F,): a digit or NOTHING."""
    pictures, digits = map(jnp.asarray, glyphs())
    frames = (jnp.clip(jnp.moveaxis(video, -1, 1), -1, 1) + 1) / 2
    beyond = [(0, side - 1) for side in pictures.shape[2:]]  # pictures are as large as the largest glyph
    overlap = jax.lax.conv_general_dilated(frames, pictures, (1, 1), beyond)
    distances = (pictures**2).sum((1, 2, 3))[None] - 2 * overlap.max(
        (2, 3)
    )  # but for what all of a frame's have in common
    return jnp.where(distances.min(1) < 0, digits[distances.argmin(1)], NOTHING)


def consistency(videos: np.ndarray) -> dict[str, str]:
    """How far samples (N, F, H, W, 1) are of one digit each."""
    shown = np.stack([digits_shown(jnp.asarray(video)) for video in videos])
    counts = np.stack([np.bincount(row, minlength=NOTHING + 1)[:NOTHING] for row in shown])
    return {
        "frames that show their sample's commonest digit": f"{(counts.max(1) / shown.shape[1]).mean():.1%}",
        "samples of one digit throughout": f"{(counts.max(1) == shown.shape[1]).mean():.1%}",
        "frames without a digit": f"{(shown == NOTHING).mean():.1%}",
    }


def main(_) -> None:
    cli.quiet_start()
    loaded, numbers = load(_CHECKPOINT.value), range(_NUM_CLIPS.value)
    clips = take(make_source(loaded.config["data"], loaded.model.video_shape, "held_out"), numbers)
    rows: list[dict[str, Any]] = [{"task": "(truth)", "class": "-"} | consistency(clips["video"])]
    for task in _TASKS.value:
        mask = task_masks(0, numbers, task, loaded.model)
        for told in (False, True)[: 1 + (loaded.model.num_classes > 1)]:
            samples = generate(
                *loaded[:2],
                loaded.diffusion(_RESPACING.value),
                clips["video"],
                mask,
                sample_keys(0, numbers),
                sampler=_SAMPLER.value,
                labels=clips["labels"] if told else None,
                guidance=_GUIDANCE.value if told else None,
            )
            rows.append({"task": task, "class": "told" if told else "not told"} | consistency(samples))
            print(rows[-1], flush=True)
    report(_OUTPUT.value, rows)


if __name__ == "__main__":
    cli.run(main)
