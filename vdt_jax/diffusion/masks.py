"""The masks of the seven tasks, and the mixtures that training draws them from.

A mask is `(B, F, h, w, 1)` float32, **1 = generate (noised, in the loss), 0 = given**, over the grid that the network
denoises (pixels, or latent cells). One sample's mask is `(F, h, w, 1)`. Everything here is traceable: masks are drawn
per sample, on the device, inside the jitted step.

Two mixtures are for training:

* `official`: the distribution of the official code, its empty masks included; `tests/goldens/mask_stats.npz` has
  the statistics of 20,000 masks of its generator. It is defined for 16 frames.
* `varied`: any number of frames, a random number of given frames, and never empty.

`task_mask` is for sampling. The block of spatial_temporal and its frames are drawn as in the training mixture, since
the model was not trained on other positions.

The paper (Lu et al. 2024, arXiv 2305.13311, eq. 3) writes M = 1 for *given*; the official code, like this one,
writes the opposite.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vdt_jax.errors import UserError

Video = Float[Array, "b f h w c"]
Mask = Float[Array, "b f h w 1"]
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

# A fifth of the draws are block masks; the six temporal tasks share the rest evenly.
_TASK_PROBABILITIES = (0.8 / 6,) * 6 + (0.2,)
_ARBITRARY_GENERATED = 0.8
_RECTANGLES = 64  # tried for a block mask


def apply_mask(mask: Mask, generated: Video, given: Video) -> Video:
    """`generated` where mask = 1, `given` where mask = 0.

    A `where`, never a product: the values that are not selected may be infinite, and 0 * inf is NaN.
    """
    return jnp.where(mask > 0.5, generated, given)


def block_mask(key: Key[Array, ""], grid: tuple[int, int]) -> Bool[Array, "h w"]:
    """A BEiT block mask (h, w) bool, true = generate: rectangles are added until half the grid is covered.

    Bao et al. 2021 (arXiv 2106.08254), algorithm 1, with the official VDT's numbers: the area of a rectangle is drawn
    uniformly from 4 to the number of cells that are still missing, its aspect log-uniformly from 0.3 to 1/0.3. It is
    rejected if a side is not smaller than the grid's, or if it adds no new cell or more cells than are missing; ten
    rejections in a row end the mask.

    A fixed number of rectangles is tried: in a while loop, devices that share a batch would need a collective, or the
    host, to find out whether all masks of the batch are complete. The number is sufficient: of 48,000 masks, on grids
    of 8 to 32 cells, none needed more than 46.
    """
    height, width = grid
    target = 0.5 * height * width
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def add_rectangle(_, carry):
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
        accept = fits & (added > 0) & (added <= remaining) & (failures < 10)
        return jnp.where(accept, covered | inside, covered), jnp.where(accept, 0, failures + 1), key

    empty = jnp.zeros(grid, bool)
    return jax.lax.fori_loop(0, _RECTANGLES, add_rectangle, (empty, jnp.int32(0), key))[0]


def _mask(
    key: Key[Array, ""],
    task: Int[Array, ""] | int,
    shape: tuple[int, int, int],
    *,
    num_given: Int[Array, ""] | int,
    stride: Int[Array, ""] | int,
    start: Int[Array, ""] | int,
    stop: Int[Array, ""] | int,
) -> Float[Array, "f h w 1"]:
    """The mask of the task with this index: the definition of the seven tasks.

    spatial_temporal has its block mask on the frames start <= f < stop.
    """
    num_frames, *grid = shape
    frame_key, each_key, block_key = jax.random.split(key, 3)
    frames = jnp.arange(num_frames)
    given = (  # in the order of TASKS
        lambda: frames < num_given,
        lambda: frames >= num_frames - num_given,
        lambda: frames % stride == 0,
        lambda: jnp.zeros(num_frames, bool),
        lambda: frames == jax.random.randint(frame_key, (), 0, num_frames),
        lambda: jax.random.uniform(each_key, (num_frames,)) >= _ARBITRARY_GENERATED,
        lambda: (frames < start) | (frames >= stop),
    )
    # If the task is known at trace time, only its mask is compiled: compiling all of them takes longer than sampling a
    # short clip.
    chosen = given[task]() if isinstance(task, int) else jnp.stack([of_task() for of_task in given])[task]
    generate = jnp.broadcast_to(~chosen[:, None, None], shape)
    if not isinstance(task, int) or task == SPATIAL_TEMPORAL:
        generate &= (block_mask(block_key, (grid[0], grid[1])) | (task != SPATIAL_TEMPORAL))[None]
    return generate.astype(jnp.float32)[..., None]


def _block_frames(start_key: Key[Array, ""], end_key: Key[Array, ""], num_frames: int, first_end: int) -> Any:
    """start and stop of the frames with the block.

    The number of frames before them is drawn from 0 to m, the number after them from `first_end` to m; at least one
    frame has the block.
    """
    margin = min(3, (num_frames - 1) // 2)  # m, so that start < stop
    start = jax.random.randint(start_key, (), 0, margin + 1)
    end = jax.random.randint(end_key, (), first_end, max(margin, first_end) + 1)
    return start, jnp.maximum(num_frames - end, start + 1)


def official_mask(key: Key[Array, ""], task: Int[Array, ""], shape: tuple[int, int, int]) -> Float[Array, "f h w 1"]:
    """One mask of the official mixture, for the task with this index and 16 frames; may be empty.

    Raises:
      UserError: a number of frames other than 16, for which the official masks are not defined.
    """
    num_frames = shape[0]
    if num_frames != 16:
        raise UserError(f"mask mixture 'official' is defined for 16 frames, not {num_frames}: use mixture 'varied'")
    start_key, end_key, mask_key = jax.random.split(key, 3)
    start, end = jax.random.randint(start_key, (), 0, 4), jax.random.randint(end_key, (), 0, 4)
    # In Python mask[s:-0] is empty, so a quarter of the official block masks generate nothing.
    stop = jnp.where(end == 0, 0, num_frames - end)
    return _mask(mask_key, task, shape, num_given=8, stride=4, start=start, stop=stop)


def varied_mask(key: Key[Array, ""], task: Int[Array, ""], shape: tuple[int, int, int]) -> Float[Array, "f h w 1"]:
    """One mask of the varied mixture, for the task with this index; it generates at least one position.

    In predict and backward, n frames are given, with n drawn from 1 to F - 1; in interpolation every k-th frame, with k
    drawn from 2 to F // 2; in spatial_temporal up to 3 whole frames at each end.
    """
    num_frames = shape[0]
    num_given_key, stride_key, start_key, end_key, mask_key = jax.random.split(key, 5)
    start, stop = _block_frames(start_key, end_key, num_frames, first_end=0)
    mask = _mask(
        mask_key,
        task,
        shape,
        num_given=jax.random.randint(num_given_key, (), 1, max(num_frames, 2)),
        stride=jax.random.randint(stride_key, (), 2, max(num_frames // 2, 2) + 1),
        start=start,
        stop=stop,
    )
    return jnp.where(mask.any(), mask, jnp.ones_like(mask))


def draw_masks(key: Key[Array, ""], batch_size: int, shape: tuple[int, int, int], mixture: str = "varied") -> Mask:
    """Draws a task and a mask for each sample, for `shape` (F, h, w).

    Raises:
      UserError: an unknown mixture, or `official` without 16 frames.
    """
    _check_mixture(mixture)
    task_key, mask_key = jax.random.split(key)
    tasks = jax.random.choice(task_key, len(TASKS), (batch_size,), p=jnp.array(_TASK_PROBABILITIES))
    draw = official_mask if mixture == "official" else varied_mask
    return jax.vmap(lambda key, task: draw(key, task, shape))(jax.random.split(mask_key, batch_size), tasks)


def task_mask(
    key: Key[Array, ""],
    task: str,
    shape: tuple[int, int, int],
    num_given: int | None = None,
    mixture: str = "varied",
) -> Float[Array, "f h w 1"]:
    """The mask of a named task, for sampling.

    In predict and backward half of the frames are given by default, 8 of 16 as in the official code; in interpolation
    frames 0, 4, 8, ... In spatial_temporal up to m whole frames before the block and up to m after it are given, with
    m = min(3, (F - 1) // 2); with mixture `official` at least the last frame is, as in the official code, if F > 1.

    Args:
      key: random key of the last three tasks; the others do not use it.
      task: one of TASKS.
      shape: (F, h, w).
      num_given: given frames of predict and backward, 1 to F - 1 (default F // 2).
      mixture: the mask mixture that the weights were trained with.

    Raises:
      UserError: an unknown task or mixture, num_given out of range, or num_given for any other task.
    """
    num_frames = shape[0]
    _check_mixture(mixture)
    if task not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}, got '{task}'")
    if num_given is not None and task not in ("predict", "backward"):
        raise UserError(f"num_given is for predict and backward, not for task '{task}': leave it out")
    if num_given is None:
        num_given = num_frames // 2
    elif not 1 <= num_given < num_frames:
        raise UserError(f"num_given must be 1 to {num_frames - 1} for {num_frames} frames, got {num_given}")
    start, stop = 0, num_frames
    if task == TASKS[SPATIAL_TEMPORAL]:
        # _mask uses split(key, 3), that is fold_in(key, n) for n from 0 to 2, so fold_in(key, 3) is a fourth key.
        start_key, end_key = jax.random.split(jax.random.fold_in(key, 3))
        start, stop = _block_frames(start_key, end_key, num_frames, first_end=1 if mixture == "official" else 0)
    mask = _mask(key, TASKS.index(task), shape, num_given=num_given, stride=4, start=start, stop=stop)
    return jnp.where(mask.any(), mask, jnp.ones_like(mask))


def _check_mixture(mixture: str) -> None:
    if mixture not in MIXTURES:
        raise UserError(f"mask_mixture must be one of {', '.join(MIXTURES)}, got '{mixture}'")
