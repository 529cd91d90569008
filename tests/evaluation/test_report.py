"""What a report is made of: the metrics by default, the summary, the table, the clips that are shown."""

import logging

import numpy as np
import pytest
from helpers.tiny_evaluation import PROTOCOL

from vdt_jax.evaluation.measures import default_metrics, summarise
from vdt_jax.evaluation.report import Report, clips_shown


def test_summary_written_out():
    arrays = {
        "model/LPIPS": np.array([[0.1, 0.3], [0.5, 0.2]]),
        "model/FVD": np.array([[[0.0, 1], [4, 1]], [[2, 1], [6, 1]]]),  # two clips, two samples of each
        "truth/FVD": np.array([[3.0, 1], [5, 1]]),
        "model/motion": np.array([[1.0], [2.0]]),
        "truth/motion": np.array([3.0, 3.0]),
    }
    # Means 1 and 4 at equal spread; then 3 and 4, and variances 20 / 3 and 2 of all four and of the two.
    pooled = 1 + 20 / 3 + 2 - 2 * (40 / 3) ** 0.5
    expected = {"LPIPS": 0.275, "best LPIPS": 0.15, "FVD": 9.0, "FVD of all samples": pooled, "motion": 0.5}
    assert summarise(arrays)["model"] == pytest.approx(expected)


def test_clips_shown():
    ranking = np.array([3.0, 1.0, 2.0, 5.0])
    assert clips_shown(ranking, 1) == [(0, "typical"), (1, "worst"), (3, "best")]
    assert clips_shown(ranking, 5) == [(0, "typical"), (1, "worst"), (2, "worst"), (3, "best")]
    assert clips_shown(ranking[:1], 2) == [(0, "typical")]
    assert clips_shown(ranking, 0) == []


def test_the_log_says_why_a_metric_is_not_measured(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert default_metrics("alexnet", str(tmp_path), (16, 64, 64, 3)) == ("psnr", "ssim", "motion")
    assert all("pip install" in line for line in caplog.messages) and "LPIPS" in caplog.text and "FVD" in caplog.text
    caplog.clear()
    default_metrics("alexnet", str(tmp_path), (8, 16, 16, 1))
    assert "9 frames" in caplog.text and "31 pixels" in caplog.text and len(caplog.messages) == 2


def test_the_table_has_a_column_for_each_metric():
    model = {"FVD": 100.06, "PSNR": 20.123456, "best PSNR": 21.0, "FVD of all samples": 90.0}
    floor = {"truth against other truth": {"FVD": 70.0}, "truth against itself": {}}
    report = Report(PROTOCOL, {"predict": {"model": model, "copy nearest": {"PSNR": 9.0}}}, floor)
    header, rows = report.table()
    assert header == ["task", "what", "PSNR", "FVD", "best PSNR", "FVD of all samples"]
    assert rows[0] == ["predict", "model", "20.12", "100.1", "21", "90"]
    assert rows[1:] == [
        ["predict", "copy nearest", "9", "-", "-", "-"],
        ["any", "truth against other truth", "-", "70", "-", "-"],
    ]
    contents = report.to_json()
    assert contents["tasks"]["predict"]["model"]["PSNR"] == 20.1235
    assert contents["truth against other truth"] == {"FVD": 70.0} and contents["truth against itself"] == {}
