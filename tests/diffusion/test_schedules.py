"""Schedules and respacing."""

import jax
import numpy as np
import pytest

from vdt_jax.diffusion.schedules import NOISE_SCHEDULES, cosine_betas, make_schedule, respace_timesteps
from vdt_jax.errors import UserError


@pytest.mark.parametrize(
    ("respacing", "expected"),
    [
        ("ddim25", np.arange(0, 1000, 40)),
        ("2", [0, 999]),
        ("1", [0]),
        ("1,2", [0, 500, 999]),
        ("trailing1", [999]),
        ("trailing4", [249, 499, 749, 999]),
        ("trailing1000", np.arange(1000)),
    ],
)
def test_kept_timesteps(respacing, expected):
    np.testing.assert_array_equal(respace_timesteps(make_schedule(), respacing), expected)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 16, 300, 999, 1000])
def test_log_snr_spacing_keeps_as_many_as_asked_for(name, count):
    schedule = make_schedule(name)
    kept = respace_timesteps(schedule, f"logsnr{count}")
    assert len(kept) == count and (np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] == 999
    if (name, count) == ("linear", 16):  # where timesteps are many enough
        steps = -np.diff(np.log(schedule.alpha / schedule.sigma)[kept])
        assert kept[0] == 0 and steps.max() < 1.5 * steps.min()


def test_uneven_sections_start_where_the_last_ended():
    kept = respace_timesteps(make_schedule(num_diffusion_timesteps=100), "3,3,3")
    assert kept.tolist() == [0, 16, 33, 34, 50, 66, 67, 83, 99]


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_respacing_to_all_steps_changes_nothing(name):
    whole, respaced = make_schedule(name, 300), make_schedule(name, 300, "300")
    np.testing.assert_allclose(respaced.betas, whole.betas, rtol=1e-9)
    np.testing.assert_array_equal(respaced.timestep_map, np.arange(300))


def test_respaced_schedule_keeps_the_noise_levels():
    whole, respaced = make_schedule(), make_schedule(timestep_respacing="16")
    np.testing.assert_allclose(respaced.alpha, whole.alpha[respaced.timestep_map], rtol=1e-12)
    kept = respaced.alpha**2  # alpha-bar
    np.testing.assert_allclose(respaced.betas, 1 - kept / np.append(1, kept[:-1]), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "zero_terminal_snr"), [("linear", False), ("linear", True), ("cosine", True), ("rectified_flow", False)]
)
def test_posterior_is_bayes_rule(name, zero_terminal_snr):
    schedule = make_schedule(name, 50, zero_terminal_snr=zero_terminal_snr)
    for t in (20, 49):
        # Precision of x_{t-1} given x_0 and x_t: that of q(x_{t-1} | x_0) plus that of the likelihood of x_t.
        precision = 1 / schedule.sigma[t - 1] ** 2 + schedule.ratio[t] ** 2 / schedule.betas[t]
        assert schedule.posterior_variance[t] == pytest.approx(1 / precision)
        mean_of_ones = schedule.posterior_mean_coef1[t] + schedule.posterior_mean_coef2[t] * schedule.alpha[t]
        assert mean_of_ones == pytest.approx(schedule.alpha[t - 1])


def test_rectified_flow_is_a_straight_path():
    schedule = make_schedule("rectified_flow", 100)
    np.testing.assert_allclose(schedule.sigma, np.arange(1, 101) / 100)
    np.testing.assert_allclose(schedule.alpha + schedule.sigma, 1, rtol=1e-12)
    assert schedule.alpha[-1] == 0 and np.isfinite(schedule.half_log_snr).all()


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_zero_terminal_snr_keeps_the_first_level_and_the_shape(name):
    plain, rescaled = make_schedule(name), make_schedule(name, zero_terminal_snr=True)
    assert rescaled.alpha[-1] == 0 and rescaled.sigma[-1] == 1 and rescaled.alpha[0] == pytest.approx(plain.alpha[0])
    steps, before = np.diff(rescaled.alpha), np.diff(plain.alpha)
    np.testing.assert_allclose(steps / steps[0], before / before[0], rtol=1e-9)


def test_logit_normal_times_have_their_location_and_scale():
    schedule = make_schedule("rectified_flow")
    for shift in (1.0, 3.0):
        steps = schedule.draw_steps(jax.random.key(0), 4000, "logit_normal", shift)
        times = (np.asarray(steps) + 0.5) / 1000
        logits = np.log(times / (1 - times))
        assert abs(logits.mean() - np.log(shift)) < 0.06 and abs(logits.std() - 1) < 0.04


def test_cosine_follows_its_formula():
    alphas_cumprod = np.cumprod(1 - cosine_betas(1000))
    u = 500 / 1000
    expected = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert alphas_cumprod[499] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_shifted_steps_have_as_many_times_the_noise(name):
    schedule = make_schedule(name)
    np.testing.assert_array_equal(schedule.shifted_steps(1.0), np.arange(1000))
    noise_over_signal = schedule.sigma / schedule.alpha
    shifted = schedule.shifted_steps(3.0)
    inside = shifted < 999  # past the end of the schedule there is no more noise to be had
    assert (noise_over_signal[shifted][inside] >= 3 * noise_over_signal[inside]).all()
    assert (noise_over_signal[shifted - 1] < 3 * noise_over_signal).all()
    assert inside.mean() > 0.8


@pytest.mark.parametrize(
    "respacing", ["0", "1001", "ddim999", "ten", "10,,10", "600,600", "trailing0", "trailing1001", "logsnr", "logsnr-3"]
)
def test_impossible_respacing_is_refused(respacing):
    with pytest.raises(UserError):
        respace_timesteps(make_schedule(), respacing)


def test_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="linear, cosine, rectified_flow, got 'liner'"):
        make_schedule("liner")
