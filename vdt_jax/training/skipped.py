"""Steps whose update was skipped because the loss or a gradient was not finite."""

import logging

from vdt_jax.checkpoints import Checkpoints
from vdt_jax.data.pipeline import clip_numbers
from vdt_jax.errors import RunStopped
from vdt_jax.training.setup import Run
from vdt_jax.training.step import Metrics

logger = logging.getLogger(__name__)
MAX_SKIPPED = 5  # steps in a row; then the run stops


def report_skipped(run: Run, step: int, metrics: Metrics, checkpoints: Checkpoints) -> None:
    """Warns of a step whose update was skipped, and names its clips.

    Raises:
      RunStopped: MAX_SKIPPED steps in a row were skipped.
    """
    in_a_row, size = int(metrics["skipped_in_a_row"]), run.config.batch_size
    if in_a_row == 0:
        return
    clips = clip_numbers(len(run.source), run.config.seed, range((step - 1) * size, step * size))
    logger.warning(
        f"step {step} is skipped: loss {metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.4g}; "
        f"{int(metrics['skipped'])} skipped in all, {in_a_row} in a row; clips {', '.join(map(str, clips))}"
    )
    if in_a_row >= MAX_SKIPPED:
        raise RunStopped(
            f"{in_a_row} steps in a row, the last {step}, had a loss or a gradient that is not finite; the last good "
            f"checkpoint is {checkpoints.newest()}"
        )
