"""The study: its arms, its intervals, and RePaint; benchmarks/study.py --smoke runs all of it."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import arms
import intervals
import reports

from vdt_jax.inference.functional import generate_clips, respaced
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
    diffusion = respaced(arms.DIFFUSION, 3, False)
    x, _ = generate_clips(model, params, diffusion, clean, mask, keys, sampler="repaint", resamples=arms.RESAMPLINGS)
    np.testing.assert_array_equal(x[:, :4], clean[:, :4])
    assert np.isfinite(x).all() and np.abs(x[:, 4:]).max() < 1e-6  # the fresh network says x_0 = 0


def test_eval_demo_tells_every_number_that_is_off():
    committed = {
        "tasks": {"predict": {"model": {"PSNR": 10.0, "FVD": 100.0}, "copy nearest": {"PSNR": 9.0, "motion": 0.0}}}
    }
    close = {
        "tasks": {"predict": {"model": {"PSNR": 10.05, "FVD": 99.5}, "copy nearest": {"PSNR": 9.0, "motion": 0.0}}}
    }
    assert reports.differences(close, committed) == []
    off = {"tasks": {"predict": {"model": {"PSNR": 10.2}, "copy nearest": {"PSNR": 9.0, "motion": 0.0}}}}
    assert len(reports.differences(off, committed)) == 2


def test_eval_demo_writes_its_table():
    report = {
        "protocol": {"clips": 16, "steps": 25, "sampler": "ddpm", "versions": {"jax": "0.10.2"}},
        "tasks": {"predict": {"model": {"PSNR": 10.123, "FVD": 99.6}, "copy nearest": {"PSNR": 9.0, "motion": 0.0}}},
        "truth against other truth": {"FVD": 767.6},
        "truth against itself": {"FVD": 3e-12},
    }
    table = reports.markdown_table(report)
    assert (
        "| predict | model | 10.12 | - | - | 100 | - |" in table
        and "| copy nearest | 9.00 | - | - | - | 0.00 |" in table
    )
    assert "16 held-out clips, 25 ddpm steps" in table and "FVD 768; against themselves: 3e-12" in table
