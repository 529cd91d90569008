"""Losses and the decoder likelihood beyond the goldens, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.diffusion.gaussian import discretized_gaussian_log_likelihood, make_diffusion, normal_kl
from vdt_jax.diffusion.schedules import at
from vdt_jax.errors import UserError

SHAPE = (2, 3, 4, 4, 2)


def draw(seed=0):
    rng = np.random.default_rng(seed)
    x_start = jnp.asarray(rng.uniform(-1, 1, SHAPE), jnp.float32)
    noise = jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)
    return x_start, noise


def losses(mask, output_error=0.5, loss="normalised", **options):
    """Losses of a network whose prediction is off by a constant everywhere."""
    diffusion = make_diffusion(learn_sigma=False, **options)
    x_start, noise = draw()
    steps = jnp.array([10, 700])
    target = diffusion._target(x_start, steps, noise)
    return diffusion.training_losses(lambda x_t, t: target + output_error, x_start, mask, steps, noise, loss)["loss"]


def test_normalised_loss_does_not_depend_on_how_much_is_generated():
    one_frame = jnp.zeros((2, 3, 4, 4, 1)).at[:, 0].set(1)
    np.testing.assert_allclose(losses(one_frame), 0.25, rtol=1e-6)
    np.testing.assert_allclose(losses(jnp.ones((2, 3, 4, 4, 1))), 0.25, rtol=1e-6)
    np.testing.assert_allclose(losses(one_frame, loss="parity"), 0.25 / 3, rtol=1e-6)


def test_an_empty_mask_has_no_loss_and_no_nan():
    np.testing.assert_array_equal(losses(jnp.zeros((2, 3, 4, 4, 1))), 0)


def test_normalised_bound_counts_generated_positions_alone():
    """Where the network is right and given positions are hopeless, only `parity` minds."""
    diffusion = make_diffusion()
    x_start, noise = draw()
    mask = jnp.zeros((2, 3, 4, 4, 1)).at[:, 1:].set(1)
    steps = jnp.array([10, 700])
    prediction = jnp.where(mask > 0.5, noise, noise + 5)
    output = jnp.concatenate([prediction, jnp.full(SHAPE, -1.0)], -1)  # the posterior's own variance

    def vb(loss):
        return diffusion.training_losses(lambda x_t, t: output, x_start, mask, steps, noise, loss)["vb"]

    np.testing.assert_allclose(vb("normalised"), 0, atol=1e-5)
    assert (vb("parity") > 1e-3).all()


def test_network_sees_given_positions_clean_and_original_timesteps():
    diffusion = make_diffusion(timestep_respacing="10", learn_sigma=False)
    x_start, noise = draw()
    mask = jnp.zeros((2, 3, 4, 4, 1)).at[:, 1:].set(1)
    seen = {}

    def denoise_fn(x_t, timesteps):
        seen.update(x_t=x_t, timesteps=timesteps)
        return jnp.zeros(SHAPE)

    diffusion.training_losses(denoise_fn, x_start, mask, jnp.array([0, 9]), noise)
    np.testing.assert_array_equal(seen["timesteps"], [0, 999])
    np.testing.assert_array_equal(seen["x_t"][:, 0], x_start[:, 0])
    assert np.abs(seen["x_t"][1, 1:] - noise[1, 1:]).max() < 0.05  # all but pure noise at the last step

    diffusion.training_losses(denoise_fn, x_start, mask, jnp.array([0, 9]), noise, given_noise=jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(
        seen["x_t"][:, 0], x_start[:, 0] + noise[:, 0] * jnp.array([0, 0.5])[:, None, None, None]
    )
    np.testing.assert_array_equal(seen["x_t"][:, 1:], diffusion.q_sample(x_start, jnp.array([0, 9]), noise)[:, 1:])


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [("linear", "eps"), ("linear", "v"), ("linear", "x_start"), ("rectified_flow", "v"), ("rectified_flow", "x_start")],
)
def test_each_prediction_leads_back_to_x_start(schedule, prediction):
    diffusion = make_diffusion(schedule, prediction=prediction, learn_sigma=False)
    x_start, noise = draw()
    steps = jnp.array([5, 600])
    x_t = diffusion.q_sample(x_start, steps, noise)
    target = diffusion._target(x_start, steps, noise)
    np.testing.assert_allclose(diffusion.predict_xstart(target, x_t, steps), x_start, atol=2e-5)
    clipped = diffusion.p_mean_variance(target + 3, x_t, steps, clip=True).pred_xstart
    assert np.abs(clipped).max() <= 1


def test_v_of_rectified_flow_is_the_velocity_of_its_straight_path():
    diffusion = make_diffusion("rectified_flow", prediction="v", learn_sigma=False)
    x_start, noise = draw()
    np.testing.assert_allclose(diffusion._target(x_start, jnp.array([40, 999]), noise), noise - x_start, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "prediction", "loss_on"),
    [
        *[("linear", *pair) for pair in [("x_start", "v"), ("eps", "v"), ("v", "x_start"), ("v", "eps")]],
        *[("rectified_flow", *pair) for pair in [("x_start", "v"), ("v", "x_start"), ("v", "eps")]],
    ],
)
def test_loss_on_another_quantity_is_its_squared_error(schedule, prediction, loss_on):
    diffusion = make_diffusion(schedule, prediction=prediction, loss_on=loss_on, learn_sigma=False)
    x_start, noise = draw()
    steps = jnp.array([40, 600])
    x_t = diffusion.q_sample(x_start, steps, noise)
    guess = diffusion._target(x_start, steps, noise) + 0.1
    guessed_xstart = diffusion.predict_xstart(guess, x_t, steps)
    alpha, sigma = (at(table, steps) for table in (diffusion.schedule.alpha, diffusion.schedule.sigma))
    guessed_noise = (x_t - alpha * guessed_xstart) / sigma
    weights = (1, 1) if schedule == "rectified_flow" else (alpha, sigma)
    guessed_v, true_v = (
        weights[0] * eps - weights[1] * x for eps, x in ((guessed_noise, guessed_xstart), (noise, x_start))
    )
    error = {"v": guessed_v - true_v, "x_start": guessed_xstart - x_start, "eps": guessed_noise - noise}[loss_on]
    ours = diffusion.training_losses(lambda x_t, t: guess, x_start, jnp.ones((2, 3, 4, 4, 1)), steps, noise)["loss"]
    np.testing.assert_allclose(ours, (error**2).mean((1, 2, 3, 4)), rtol=1e-3)


def test_min_snr_caps_the_weight_of_clean_steps():
    ones = jnp.ones((2, 3, 4, 4, 1))
    plain, capped = losses(ones), losses(ones, min_snr_gamma=5.0)
    assert capped[0] < 0.1 * plain[0] and capped[1] == pytest.approx(plain[1])


def likelihood64(x, mean, scale):
    """The same approximate cdf, straight from its definition, in float64."""
    with np.errstate(over="ignore"):

        def cdf(u):
            return 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))

        upper, lower = cdf((x + 1 / 255 - mean) / scale), cdf((x - 1 / 255 - mean) / scale)
    mass = np.where(x < -0.999, upper, np.where(x > 0.999, 1 - lower, upper - lower))
    return np.log(np.maximum(mass, 1e-12))


def test_decoder_likelihood_is_exact_in_float32():
    rng = np.random.default_rng(0)
    x = np.round(rng.uniform(-1, 1, 4000) * 127.5) / 127.5
    x[:50], x[50:100] = -1, 1
    mean, scale = x + 0.05 * rng.standard_normal(4000), np.exp(rng.uniform(-5, 0, 4000))
    x, mean, scale = np.float32(x), np.float32(mean), np.float32(scale)
    ours = discretized_gaussian_log_likelihood(*(jnp.asarray(array) for array in (x, mean, np.log(scale))))
    truth = likelihood64(*np.float64([x, mean, np.exp(np.float64(np.log(scale)))]))
    trusted = truth > -15  # below, the definition itself loses digits in float64
    np.testing.assert_allclose(np.asarray(ours)[trusted], truth[trusted], rtol=2e-5, atol=2e-6)


def test_decoder_likelihood_has_finite_gradients_far_out():
    grads = jax.grad(
        lambda m: discretized_gaussian_log_likelihood(jnp.array([0.0, -1, 1]), m, jnp.full(3, -30.0)).sum()
    )
    assert np.isfinite(grads(jnp.array([1e3, -1e3, 0.5]))).all()


def test_kl_of_a_normal_with_itself_is_zero_and_known_otherwise():
    zero = jnp.zeros(1)
    assert normal_kl(zero, zero, zero, zero) == 0
    assert float(normal_kl(zero, zero, zero + 2, zero)[0]) == pytest.approx(2)
    expected = 0.5 * (-1 + 3 - 1 + np.exp(1 - 3))
    assert float(normal_kl(zero, zero + 1, zero, zero + 3)[0]) == pytest.approx(expected, rel=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="'epsilon'"):
        make_diffusion(prediction="epsilon")
    for process in ({"noise_schedule": "rectified_flow"}, {"zero_terminal_snr": True}):
        with pytest.raises(UserError, match=r"prediction must be v or x_start with .* got 'eps'"):
            make_diffusion(**process)
    with pytest.raises(UserError, match="'mse'"):
        losses(jnp.ones((2, 3, 4, 4, 1)), loss="mse")
