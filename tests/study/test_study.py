"""The study: its arms, its intervals, and RePaint; study/study.py --smoke runs all of it."""

import json

import arms
import drift
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.scripts import fail, succeed

from vdt_jax.models.flops import training_flops
from vdt_jax.models.vdt import VDT

SIZES = arms.MODEL | arms.DATASETS["digits"][1] | arms.SMOKE


def test_interval_is_students():
    mean, half = intervals.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / 3**0.5)


def runs_of(*values):
    return {seed: {"predict PSNR": value} for seed, value in enumerate(values)}


def test_arms_differ_seed_by_seed():
    runs = {"ours": runs_of(1.0, 2.0, 3.0), "official": {1: {"predict PSNR": 1.5}}}
    assert intervals.answered(runs) == []  # one seed in common
    runs["official"] = runs_of(0.5, 1.5, 2.5)
    assert intervals.answered(runs) == ["mixture"]
    assert intervals.differences(runs, "mixture") == {"predict PSNR": (0.5, 0)}
    table = intervals.differences_table(runs, "mixture")
    assert "| ours less official, 3 seeds | PSNR |" in table and "| predict | **0.500 ± 0.000** |" in table
    assert "| backward | - |" in table
    table = intervals.arms_table(runs, {"copy nearest": {"predict PSNR": 0.25}}, "PSNR")
    assert "| copy nearest | 0.250 |" in table and "| ours, 3 seeds | 2.000 ± 2.484 |" in table


def test_means_over_the_tasks_that_have_a_measure():
    values = {"predict PSNR": 1.0, "backward PSNR": 2.0, "unconditional motion": 0.5, "unconditional loss": 9.0}
    assert intervals.with_means(values) == values | {"all tasks PSNR": 1.5}


def test_an_interval_that_holds_0_is_not_bold():
    runs = {"ours": runs_of(1.0, 2.0, 3.0), "official": runs_of(1.5, 1.5, 1.5)}
    assert "| predict | 0.500 ± 2.484 |" in intervals.differences_table(runs, "mixture")


def test_each_question_has_two_arms():
    assert {name for names in arms.QUESTIONS.values() for name in names} == arms.ARMS.keys()
    assert all(arms.ARMS[first] != arms.ARMS[second] for first, second in arms.QUESTIONS.values())


def test_frames_first_has_as_much_arithmetic():
    first, then = arms.split_steps(arms.ARMS["frames first"], SIZES, 1000)
    model = VDT(**SIZES)
    frames = first * model.num_frames * training_flops(arms.still_model(SIZES))
    assert frames == pytest.approx(500 * training_flops(model), rel=2e-3) and then == 500
    assert arms.split_steps(arms.ARMS["seven models"], SIZES, 1000) == (0, 142)


def test_masks_of_the_arms():
    key, shape = jax.random.key(0), (16, 8, 8)
    backward = jax.jit(arms.one_task, static_argnums=(2, 3))(key, jnp.array(1), 4, shape)
    assert (backward[:, 0] == 1).all() and (backward[:, -1] == 0).all()
    assert (arms.nothing_given(key, jnp.array(0), 4, shape) == 1).all()


def test_few_given_counts_the_ten_frames_after_them():
    mask, counted = arms.masks_of(arms.FEW, VDT(**SIZES), 2)
    assert not mask[:, :5].any() and mask[:, 5:].all()
    assert counted[:, 5:15].all() and not counted[:, :5].any() and not counted[:, 15:].any()


def test_baselines_stand_still():
    clean = arms.held_out("digits", None, (16, 24, 24, 1), 2)
    rows = arms.measure_baselines(SIZES, clean)
    assert rows["copy nearest"]["predict motion"] == 0
    assert not any(name.startswith("unconditional") for name in rows["copy nearest"])


def test_curves_of_long_videos_show_identity_and_motion():
    clips = drift.take(drift.make_source(arms.DATASETS["digits"][0], (5, 24, 24, 1), "held_out"), range(2))
    before, truth = clips["video"][:, 0], clips["video"][:, 1:]
    same, black = (drift._curves(made, truth, before, clips["labels"]) for made in (truth * 0.98, truth * 0 - 1))
    assert same["identity"] == [1] * 4 and same["empty"] == [0] * 4
    assert np.mean(same["motion"]) == pytest.approx(1, rel=0.05)
    assert black["identity"] == [0] * 4 and black["empty"] == [1] * 4 and black["motion"][1:] == [0] * 3
    expected = 10 * np.log10(4 / ((truth[:, 0] + 1) ** 2).mean((1, 2, 3))).mean()
    assert black["PSNR"][0] == pytest.approx(expected, rel=1e-3)


def test_drift_is_compared_with_our_own_arm_seed_by_seed():
    def runs(levels, *values):
        return {seed: {level: {"PSNR": [v] * 40 + [v + 1] * 10} for level in levels} for seed, v in enumerate(values)}

    drifts = {"ours": runs(["0"], 1.0, 2.0), "given noise": runs(["0", "0.1"], 1.5, 2.5), "official": {}}
    table = intervals.drift_table(drifts, "PSNR")
    assert "| PSNR of new frames | 1-40 | 41-50 |" in table and "| ours, noise 0, 2 seeds | 1.500 " in table
    assert "| given noise, noise 0.1, less ours | **0.500 ± 0.000** | **0.500 ± 0.000** |" in table
    assert table.count("less ours") == 2


@pytest.mark.slow
def test_clips_after_frames_start_with_what_was_learned():
    model = VDT(**SIZES)
    fresh, learned = (arms.init(net, jax.random.key(i)) for i, net in enumerate((model, arms.still_model(SIZES))))
    # The last layer begins as 0, which would hide everything before it.
    learned["final_layer"] = jax.tree.map(lambda x: x + 0.1, learned["final_layer"])
    x = np.random.default_rng(0).standard_normal((2, *model.video_shape)).astype(np.float32)
    params = arms.start_on_clips(fresh, learned)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    np.testing.assert_array_equal(params["blocks"]["attn"]["qkv"]["kernel"], learned["blocks"]["attn"]["qkv"]["kernel"])
    assert not np.asarray(params["blocks"]["temporal_fc"]["kernel"]).any()
    out = jax.jit(model.apply)({"params": params}, x, jnp.zeros(2))
    assert out.shape == x.shape and np.abs(out).max() > 0


@pytest.mark.slow
def test_repaint_keeps_what_is_given():
    model = VDT(**SIZES)
    params = arms.init(model, jax.random.key(0))
    clean = np.random.default_rng(0).uniform(-1, 1, (2, *model.video_shape)).astype(np.float32)
    mask = np.ones((2, *model.video_shape[:3], 1), np.float32)
    mask[:, :4] = 0
    keys = jax.random.split(jax.random.key(1), 2)
    pipe = arms.pipeline(arms.ARMS["RePaint"], model, params)
    options = {"sampler": "repaint", "resamples": arms.RESAMPLINGS}
    x, _ = pipe.complete(clean, mask, keys, diffusion=pipe.diffusion(3), **options)
    np.testing.assert_array_equal(x[:, :4], clean[:, :4])
    assert np.isfinite(x).all() and np.abs(x[:, 4:]).max() < 1e-6  # the fresh network says x_0 = 0


def test_the_study_makes_no_table_of_unequal_runs(tmp_path):
    (tmp_path / "ours_0.json").write_text(json.dumps({"settings": {"steps": 3}, "values": {}}))
    line = fail("study/study.py", "--smoke", f"--output={tmp_path}")
    assert "ours_0.json was made with other settings" in line and "batch_size=None (now 8)" in line


@pytest.mark.slow
def test_the_study_resumes_and_answers(tmp_path):
    arguments = ["--smoke", "--arms=ours,official", f"--output={tmp_path}"]
    succeed("study/study.py", *arguments, "--seeds=0")
    made = (tmp_path / "ours_0.json").stat().st_mtime_ns
    assert "ours less official, 2 seeds" in succeed("study/study.py", *arguments, "--seeds=0,1")
    assert (tmp_path / "ours_0.json").stat().st_mtime_ns == made
    assert (tmp_path / "tables.md").is_file() and (tmp_path / "predict.png").is_file()
