"""Skipped steps are logged with their clips; too many in a row end the run."""

import logging
from types import SimpleNamespace

import pytest

from vdt_jax.data.pipeline import clip_numbers
from vdt_jax.errors import RunStopped
from vdt_jax.training.config import TrainConfig
from vdt_jax.training.skipped import MAX_SKIPPED, report_skipped

RUN = SimpleNamespace(config=TrainConfig(batch_size=2, seed=3), source=range(100))
CHECKPOINTS = SimpleNamespace(newest=lambda: "run/checkpoints/2")


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("vdt_jax.training.skipped"), "warning", lines.append)
    return lines


def metrics(in_a_row):
    return {"skipped_in_a_row": in_a_row, "skipped": 7, "loss": float("nan"), "grad_norm": 2.0}


def test_a_good_step_is_not_reported(said):
    report_skipped(RUN, 4, metrics(0), CHECKPOINTS)
    assert said == []


def test_a_skipped_step_is_reported_with_its_clips(said):
    report_skipped(RUN, 4, metrics(1), CHECKPOINTS)
    first, second = clip_numbers(100, 3, range(6, 8))
    assert said == [
        f"step 4 is skipped: loss nan, gradient norm 2; 7 skipped in all, 1 in a row; clips {first}, {second}"
    ]


def test_too_many_in_a_row_end_the_run(said):
    with pytest.raises(
        RunStopped, match=r"5 steps in a row, the last 9, .* last good checkpoint is run/checkpoints/2"
    ) as stop:
        report_skipped(RUN, 9, metrics(MAX_SKIPPED), CHECKPOINTS)
    assert stop.value.code == 3 and len(said) == 1
