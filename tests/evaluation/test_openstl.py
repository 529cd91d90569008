"""The metrics of OpenSTL against numbers that its own code gave, and the protocol that uses them."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from vdt_jax.evaluation.measures import Measures, default_metrics, score, summarise
from vdt_jax.evaluation.metrics.openstl import openstl
from vdt_jax.evaluation.presets import PRESETS

# openstl/core/metrics.py at c74deb5 on `arrays`, clip by clip, with scikit-image 0.19.3 and numpy 1.26.4.
RECORDED = {
    "OpenSTL MSE": [30.58546, 31.128468],
    "OpenSTL MAE": [256.2428, 255.52097],
    "OpenSTL SSIM": [0.7854398290316263, 0.7586366136868795],
    "OpenSTL PSNR": [21.270153951978198, 21.194631507553208],
}


@pytest.fixture(scope="module")
def arrays():
    """A sample and its truth, (2, 3, 64, 64, 1) in [-1, 1]."""
    rng = np.random.default_rng(0)
    blocks = rng.random((2, 3, 1, 8, 8)).repeat(8, 3).repeat(8, 4)
    truth = (blocks * (blocks > 0.4)).astype(np.float32)
    sample = np.clip((truth + 0.1 * rng.standard_normal(truth.shape)).astype(np.float32), 0, 1)
    return tuple(np.moveaxis(2 * video - 1, 2, -1) for video in (sample, truth))


def test_the_metrics_are_those_of_its_code(arrays):
    scores = openstl(*arrays, np.ones((2, 3, 64, 64, 1), np.float32))
    assert scores.keys() == RECORDED.keys()
    for name, expected in RECORDED.items():
        np.testing.assert_allclose(scores[name], expected, rtol=2e-5, err_msg=name)


def test_frames_without_a_generated_position_do_not_count(arrays):
    sample, truth = arrays
    mask = np.zeros((2, 3, 64, 64, 1), np.float32)
    mask[:, 1, :5] = 1
    spoiled = sample.copy()
    spoiled[:, [0, 2]] = 0.3
    scores = openstl(spoiled, truth, mask)
    x, y = ((video[:, 1, ..., 0].astype(np.float64) + 1) / 2 for video in (sample, truth))
    np.testing.assert_allclose(scores["OpenSTL MSE"], ((x - y) ** 2).sum((1, 2)), rtol=1e-5)
    ssim = [structural_similarity(a, b, data_range=2.0) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(scores["OpenSTL SSIM"], ssim, rtol=1e-4)


def test_the_best_sample_has_the_smallest_error_and_the_largest_ssim(arrays):
    sample, truth = arrays
    measures = Measures(("openstl",), None, {})
    mask = np.ones((2, 3, 64, 64, 1), np.float32)
    good, bad = (score(measures, video, truth, mask) for video in (sample, -sample))
    stacked = {f"model/{name}": np.stack([bad[name], good[name]], 1) for name in good}
    row = summarise(stacked)["model"]
    for name in RECORDED:
        np.testing.assert_allclose(row[f"best {name}"], good[name].mean())


def test_the_preset_is_measured_only_on_request():
    preset = PRESETS["openstl-mfmnist"]
    assert (preset.frames, preset.size) == (20, (64, 64))
    assert preset.options["num_given"] == 10 and preset.options["num_clips"] == 10_000
    assert "openstl" in preset.options["metrics"]
    assert "openstl" not in default_metrics("alexnet", None, (20, 64, 64, 1))
