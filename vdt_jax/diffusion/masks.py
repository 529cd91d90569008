"""The seven mask tasks, their mixtures, and how a mask enters the network's input.

A mask is `(B, F, h, w, 1)` float32, **1 = generate (noised, in the loss), 0 = given**, over the grid that the network
denoises (pixels, or latent cells). One sample's mask is `(F, h, w, 1)`. Everything here is traceable: masks are drawn
per sample, on the device, inside the jitted step.

Two mixtures train a model:

* `official`: what the authors trained with, number for number, its empty masks included (20,000 draws of their
  generator: `tests/goldens/mask_stats.npz`). It is defined for 16 frames.
* `varied`: any number of frames, the number of given frames drawn too, and never empty.

The paper (Lu et al. 2024, arXiv 2305.13311, eq. 3) writes M = 1 for *given*; the code, theirs and ours, is the other
way round.
"""

import jax
import jax.numpy as jnp

from vdt_jax.errors import UserError

TASKS = (
    "predict",
    "backward",
    "interpolation",
    "unconditional",
    "single_frame",
    "arbitrary_interpolation",
    "spatial_temporal",
)
SPATIAL_TEMPORAL = TASKS.index("spatial_temporal")
MIXTURES = ("varied", "official")

# A fifth of the draws are block masks, the rest is shared evenly by the six temporal tasks.
_TASK_PROBABILITIES = (0.8 / 6,) * 6 + (0.2,)
_ARBITRARY_GENERATED = 0.8


def apply_mask(mask: jax.Array, generated: jax.Array, given: jax.Array) -> jax.Array:
    """Takes `generated` where mask = 1 and `given` where mask = 0; (B, F, h, w, C) each, the mask (B, F, h, w, 1).

    A `where`, never a product: what stands at the other positions may be infinite, and 0 * inf is NaN.
    """
    return jnp.where(mask > 0.5, generated, given)


def block_mask(key: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """A BEiT block mask (h, w) bool, true = generate: rectangles are added until half the grid is covered.

    Bao et al. 2021 (arXiv 2106.08254), algorithm 1, with the official VDT's numbers: target area uniform in (4, what
    remains), log-uniform aspect in 0.3 to 1/0.3, sides smaller than the grid; a rectangle that adds no new cell, or
    more than remains, is thrown away, and after ten in a row the mask is left as it is.
    """
    height, width = grid
    target = 0.5 * height * width
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def unfinished(carry):
        covered, failures, _ = carry
        return (covered.sum() < target) & (failures < 10)

    def add_rectangle(carry):
        covered, failures, key = carry
        key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
        remaining = target - covered.sum()
        area = 4 + (remaining - 4) * jax.random.uniform(area_key)
        aspect = jnp.exp(jax.random.uniform(aspect_key, minval=jnp.log(0.3), maxval=-jnp.log(0.3)))
        block_height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
        block_width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
        fits = (block_height < height) & (block_width < width)
        top = jax.random.randint(top_key, (), 0, jnp.maximum(height - block_height, 0) + 1)
        left = jax.random.randint(left_key, (), 0, jnp.maximum(width - block_width, 0) + 1)
        inside = (rows >= top) & (rows < top + block_height) & (columns >= left) & (columns < left + block_width)
        added = (inside & ~covered).sum()
        accept = fits & (added > 0) & (added <= remaining)
        return jnp.where(accept, covered | inside, covered), jnp.where(accept, 0, failures + 1), key

    empty = jnp.zeros(grid, bool)
    return jax.lax.while_loop(unfinished, add_rectangle, (empty, jnp.int32(0), key))[0]


def _mask(
    key: jax.Array,
    task: jax.Array,
    shape: tuple[int, int, int],
    *,
    num_given: jax.Array | int,
    stride: jax.Array | int,
    start: jax.Array,
    stop: jax.Array,
) -> jax.Array:
    """The mask (F, h, w, 1) of the task with this index: the one place that says what the seven tasks are.

    Args:
      num_given: frames given to predict and backward.
      stride: interpolation is given every stride-th frame, from 0.
      start, stop: the block mask of spatial_temporal stands on the frames start <= f < stop.
    """
    num_frames, *grid = shape
    frame_key, each_key, block_key = jax.random.split(key, 3)
    frames = jnp.arange(num_frames)
    given = jnp.stack(
        [
            frames < num_given,
            frames >= num_frames - num_given,
            frames % stride == 0,
            jnp.zeros(num_frames, bool),
            frames == jax.random.randint(frame_key, (), 0, num_frames),
            jax.random.uniform(each_key, (num_frames,)) >= _ARBITRARY_GENERATED,
            (frames < start) | (frames >= stop),
        ]
    )
    generate = ~given[task][:, None, None]
    block = block_mask(block_key, (grid[0], grid[1])) | (task != SPATIAL_TEMPORAL)
    return (generate & block[None]).astype(jnp.float32)[..., None]


def official_mask(key: jax.Array, task: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """One official mask (16, h, w, 1) of the task with this index, empty ones included.

    Raises:
      UserError: other than 16 frames, where the official predict and backward masks mean something else.
    """
    num_frames = shape[0]
    if num_frames != 16:
        raise UserError(f"the official mask mixture is defined for 16 frames, not {num_frames}: use mixture 'varied'")
    start_key, end_key, mask_key = jax.random.split(key, 3)
    start, end = jax.random.randint(start_key, (), 0, 4), jax.random.randint(end_key, (), 0, 4)
    # In Python mask[s:-0] is empty, so a quarter of the official block masks generate nothing.
    stop = jnp.where(end == 0, 0, num_frames - end)
    return _mask(mask_key, task, shape, num_given=8, stride=4, start=start, stop=stop)


def varied_mask(key: jax.Array, task: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """One mask (F, h, w, 1) of the task with this index, its free numbers drawn, with at least one position generated.

    predict and backward give 1 to F - 1 frames, interpolation every 2nd to every F//2-th, block masks leave out up to 3
    frames at either end.
    """
    num_frames = shape[0]
    num_given_key, stride_key, start_key, end_key, mask_key = jax.random.split(key, 5)
    margin = min(3, (num_frames - 1) // 2)  # so that start + end < F
    mask = _mask(
        mask_key,
        task,
        shape,
        num_given=jax.random.randint(num_given_key, (), 1, max(num_frames, 2)),
        stride=jax.random.randint(stride_key, (), 2, max(num_frames // 2, 2) + 1),
        start=jax.random.randint(start_key, (), 0, margin + 1),
        stop=num_frames - jax.random.randint(end_key, (), 0, margin + 1),
    )
    return jnp.where(mask.any(), mask, jnp.ones_like(mask))


def draw_masks(key: jax.Array, batch_size: int, shape: tuple[int, int, int], mixture: str = "varied") -> jax.Array:
    """Draws a task and a mask for each sample: (B, F, h, w, 1), for `shape` (F, h, w).

    Raises:
      UserError: an unknown mixture, or `official` for other than 16 frames.
    """
    if mixture not in MIXTURES:
        raise UserError(f"no mask mixture '{mixture}': choose from {', '.join(MIXTURES)}")
    task_key, mask_key = jax.random.split(key)
    tasks = jax.random.choice(task_key, len(TASKS), (batch_size,), p=jnp.array(_TASK_PROBABILITIES))
    draw = official_mask if mixture == "official" else varied_mask
    return jax.vmap(lambda key, task: draw(key, task, shape))(jax.random.split(mask_key, batch_size), tasks)


def task_mask(key: jax.Array, task: str, shape: tuple[int, int, int], num_given: int | None = None) -> jax.Array:
    """The mask (F, h, w, 1) of a named task, for sampling: the official one, with F // 2 frames in place of 8.

    Interpolation gives frames 0, 4, 8, ...; the block of spatial_temporal stands from frame 2 (if there are five or
    more) to the end.

    Args:
      key: draws the frame, the frames or the block of the last three tasks.
      task: one of TASKS.
      shape: (F, h, w).
      num_given: frames given to predict and backward (default F // 2).

    Raises:
      UserError: an unknown task, or a number of given frames that leaves nothing to generate or is not used.
    """
    num_frames = shape[0]
    if task not in TASKS:
        raise UserError(f"no task '{task}': choose from {', '.join(TASKS)}")
    if num_given is not None and task not in ("predict", "backward"):
        raise UserError(f"task '{task}' takes no number of given frames: only predict and backward do")
    if num_given is None:
        num_given = num_frames // 2
    elif not 1 <= num_given < num_frames:
        raise UserError(f"{num_given} given frames of {num_frames} cannot be: choose 1 to {num_frames - 1}")
    mask = _mask(
        key,
        jnp.array(TASKS.index(task)),
        shape,
        num_given=num_given,
        stride=4,
        start=jnp.array(min(2, (num_frames - 1) // 2)),
        stop=jnp.array(num_frames),
    )
    return jnp.where(mask.any(), mask, jnp.ones_like(mask))
