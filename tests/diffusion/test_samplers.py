"""Samplers: distribution, order of convergence, given positions, guidance.

The data are Gaussian, N(0.3, 0.2^2) at each position, so that the optimal network and the exact solution of the
probability-flow ODE have closed forms: (x_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant along it,
whether alpha^2 + sigma^2 = 1 or alpha + sigma = 1.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from vdt_jax.diffusion import samplers
from vdt_jax.diffusion.gaussian import GaussianDiffusion, make_diffusion
from vdt_jax.diffusion.guidance import check_guidance_interval, guide
from vdt_jax.diffusion.masks import apply_mask
from vdt_jax.diffusion.samplers import SAMPLERS, Problem, ddim, ddpm, dpm_solver_pp, repaint, sample_noise, unipc
from vdt_jax.diffusion.samplers.multistep import polynomial_weights
from vdt_jax.diffusion.schedules import NoiseSchedule, at
from vdt_jax.errors import UserError

SHAPE = (4, 2, 2, 3, 1)
MEAN, STD = 0.3, 0.2
KEYS = jax.random.split(jax.random.key(0), 4)


def run(sampler, *problem, **options):
    """The samples, from one compiled program: outside jit every operation would be compiled on its own."""
    return jax.jit(lambda: samplers.solve(sampler, Problem(*problem), **options))()


def exact_denoiser(diffusion, mean=MEAN, std=STD):
    """What the best network says about data that are N(mean, std^2) at each position, as the diffusion reads it."""
    schedule = diffusion.schedule

    def denoise_fn(x_t, timesteps):
        step = jnp.searchsorted(jnp.asarray(schedule.timestep_map), timesteps)
        a, b = at(schedule.alpha, step), at(schedule.sigma, step)
        x_start = mean + a * std**2 / (a**2 * std**2 + b**2) * (x_t - a * mean)
        eps = (x_t - a * x_start) / b
        v = at(schedule.v_noise, step) * eps - at(schedule.v_start, step) * x_start
        return {"eps": eps, "x_start": x_start, "v": v}[diffusion.prediction]

    return denoise_fn


def even_in_lambda(num_steps, straight=False, ends=(-3.0, 3.0)):
    """A process whose levels are evenly spaced in lambda between two fixed ends."""
    alpha, sigma = (1 / (1 + np.exp(sign * np.linspace(ends[1], ends[0], num_steps))) for sign in (-1, 1))
    norm = 1 if straight else np.sqrt(alpha**2 + sigma**2)
    schedule = NoiseSchedule(alpha / norm, sigma / norm, np.arange(num_steps), straight)
    return GaussianDiffusion(schedule, "v" if straight else "x_start", learn_sigma=False)


def exact_path(diffusion, x, first, last, mean=MEAN):
    """The exact solution of the ODE at the step `last`, from x at the step `first`."""
    a, b = diffusion.schedule.alpha[[first, last]], diffusion.schedule.sigma[[first, last]]
    deviation = np.sqrt(a**2 * STD**2 + b**2)
    return a[1] * mean + (np.float64(x) - a[0] * mean) * deviation[1] / deviation[0]


def exact_end(diffusion, start, mean=MEAN, first=-1):
    """Where a solver without error ends: the estimate of x_0 at the end of the exact path to the cleanest level."""
    x, a, b = exact_path(diffusion, start, first, 0, mean), diffusion.schedule.alpha[0], diffusion.schedule.sigma[0]
    return mean + a * STD**2 / (a**2 * STD**2 + b**2) * (x - a * mean)


def solve(sampler, diffusion, start, **options):
    clean, mask = jnp.zeros(SHAPE), jnp.ones(SHAPE)
    return run(sampler, diffusion, exact_denoiser(diffusion), KEYS, clean, mask, start, **options)


# ddim is of first order, 2M of second; the corrector adds one to the order of UniPC's predictor (theorem 3.1 there).
@pytest.mark.parametrize(
    ("sampler", "options", "order", "straight"),
    [
        (ddim, {}, 1, False),
        (dpm_solver_pp, {}, 2, False),
        (unipc, {"order": 1}, 2, False),
        (unipc, {}, 3, False),
        (unipc, {"order": 3}, 3, False),
        (ddim, {}, 1, True),
        (unipc, {}, 3, True),
    ],
)
def test_order_of_convergence_to_the_exact_solution(sampler, options, order, straight):
    start = jax.random.normal(jax.random.key(3), SHAPE)
    errors = []
    for num_steps in (20, 80):
        diffusion = even_in_lambda(num_steps, straight)
        errors.append(np.abs(solve(sampler, diffusion, start, **options) - exact_end(diffusion, start)).max())
    print(f"{sampler.__name__} {options}: {errors}")
    assert np.log(errors[0] / errors[1]) / np.log(4) > order - 0.25


def test_ddim_of_rectified_flow_is_eulers_method():
    diffusion = make_diffusion("rectified_flow", timestep_respacing="trailing8", prediction="v", learn_sigma=False)
    start, denoise_fn = jax.random.normal(jax.random.key(3), SHAPE), jax.jit(exact_denoiser(diffusion))
    x, times = start, np.linspace(1, 0, 9)
    for time, next_time in itertools.pairwise(times):
        x += (next_time - time) * denoise_fn(x, jnp.full(len(x), round(1000 * time) - 1))
    np.testing.assert_allclose(solve(ddim, diffusion, start), x, atol=1e-5)


def two_peaks(diffusion, std=0.02):
    """The best network for data that are N(-1, std^2) or N(1, std^2), equally often."""

    def denoise_fn(x_t, timesteps):
        a = at(diffusion.schedule.alpha, jnp.searchsorted(jnp.asarray(diffusion.schedule.timestep_map), timesteps))
        variance = a**2 * std**2 + 1 - a**2
        mean = jnp.tanh(a * x_t / variance)
        return mean + a * std**2 / variance * (x_t - a * mean)

    return denoise_fn


@pytest.mark.parametrize(("sampler", "usual", "lowered"), [(unipc, 1.01, 0.158), (dpm_solver_pp, 0.643, 0.166)])
def test_a_lower_order_at_the_end_does_not_overshoot_sharp_peaks(sampler, usual, lowered):
    """Eight even steps: the root mean square distance from ddim with 1,000 steps, as found with NumPy in float64."""
    shape = (1, 1, 40, 50, 1)
    keys, clean, mask = jax.random.split(jax.random.key(0), 1), jnp.zeros(shape), jnp.ones(shape)

    def solution(sampler, steps, **options):
        diffusion = make_diffusion(timestep_respacing=steps, prediction="x_start", learn_sigma=False)
        return run(sampler, diffusion, two_peaks(diffusion), keys, clean, mask, **options)

    exact = solution(ddim, "1000")
    distances = [
        float(jnp.sqrt(jnp.mean((solution(sampler, "8", lower_order_final=lower) - exact) ** 2)))
        for lower in (False, True)
    ]
    print(f"{sampler.__name__}: {distances}")
    assert distances == pytest.approx([usual, lowered], rel=0.1)


def test_three_steps_of_2m_that_end_with_a_lower_order_are_ddim():
    start = jax.random.normal(jax.random.key(3), SHAPE)
    diffusion = even_in_lambda(3)
    lowered = solve(dpm_solver_pp, diffusion, start, lower_order_final=True)
    np.testing.assert_allclose(lowered, solve(ddim, diffusion, start), atol=1e-5)
    assert np.abs(solve(dpm_solver_pp, diffusion, start) - lowered).max() > 0.01


@pytest.mark.parametrize("h", [1e-3, 0.3, 0.51, 4.0])
def test_weights_integrate_polynomials(h):
    nodes, start = np.array([0.7 + h, 0.7, 0.2, -0.9]), 0.7
    weights = polynomial_weights(nodes, start, start + h)
    points, quadrature = np.polynomial.legendre.leggauss(20)
    points = start + h * (points + 1) / 2
    for degree in range(4):
        integral = (quadrature * np.exp(points - start - h) * points**degree).sum() * h / 2
        assert weights @ nodes**degree == pytest.approx(integral, rel=1e-9)


FLOW = {"noise_schedule": "rectified_flow", "prediction": "v"}
ZERO_SNR = {"zero_terminal_snr": True, "prediction": "v"}


@pytest.mark.parametrize(
    ("sampler", "process"),
    [
        *[(sampler, process) for process in ({}, FLOW) for sampler in (ddpm, ddim, dpm_solver_pp, unipc)],
        (ddim, ZERO_SNR),
        (unipc, ZERO_SNR),
    ],
)
def test_samplers_sample_the_distribution_that_their_network_knows(sampler, process):
    steps = "" if sampler is ddpm else "logsnr200"
    diffusion = make_diffusion(timestep_respacing=steps, learn_sigma=False, **process)
    shape = (2000, 1, 2, 2, 1)
    keys = jax.random.split(jax.random.key(0), shape[0])
    samples = run(sampler, diffusion, exact_denoiser(diffusion), keys, jnp.zeros(shape), jnp.ones(shape))
    assert abs(float(samples.mean()) - MEAN) < 0.01
    assert abs(float(samples.std()) - STD) < 0.01


def test_ddim_with_eta_one_is_ddpm_of_the_small_variance():
    diffusion = make_diffusion(timestep_respacing="20", learn_sigma=False)
    start = jax.random.normal(jax.random.key(3), SHAPE)
    ancestral = solve(ddpm, diffusion, start)
    np.testing.assert_allclose(solve(ddim, diffusion, start, eta=1.0), ancestral, atol=1e-5)
    assert np.abs(solve(ddim, diffusion, start, eta=0.5) - ancestral).max() > 0.01


@pytest.mark.parametrize("sampler", [ddim, unipc])
def test_samples_do_not_depend_on_what_the_network_predicts(sampler):
    start = jax.random.normal(jax.random.key(3), SHAPE)
    samples = [
        solve(sampler, make_diffusion("cosine", timestep_respacing="10", prediction=name, learn_sigma=False), start)
        for name in ("x_start", "v", "eps")
    ]
    np.testing.assert_allclose(samples[1], samples[0], atol=1e-4)
    np.testing.assert_allclose(samples[2], samples[0], atol=1e-2)  # eps says little of x_0 where alpha is near 0


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_given_positions_come_out_bit_equal_even_where_the_network_explodes(sampler):
    diffusion = make_diffusion(timestep_respacing="5")
    clean = jax.random.normal(jax.random.key(1), SHAPE)
    mask = jnp.zeros(SHAPE).at[:, 1:, :, 1:].set(1)

    def denoise_fn(x_t, timesteps):
        exploding = jnp.where(mask > 0.5, 0.1, jnp.inf)
        return jnp.concatenate([exploding, exploding], -1)

    out = run(sampler, diffusion, denoise_fn, KEYS, clean, mask)
    np.testing.assert_array_equal(np.asarray(out)[np.asarray(mask) < 0.5], np.asarray(clean)[np.asarray(mask) < 0.5])
    assert np.isfinite(out).all()


@pytest.mark.parametrize("sampler", [ddpm, ddim, dpm_solver_pp, unipc])
def test_the_network_sees_given_positions_clean(sampler):
    """A network that says "everywhere what I see at the given position" makes just that of all the others."""
    diffusion = make_diffusion(timestep_respacing="6", prediction="x_start", learn_sigma=False)
    clean = jnp.full(SHAPE, 0.7)
    mask = jnp.ones(SHAPE).at[:, 0].set(0)
    out = run(sampler, diffusion, lambda x_t, _: x_t[:, :1].repeat(2, axis=1), KEYS, clean, mask)
    np.testing.assert_allclose(out, clean, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_a_sample_depends_neither_on_its_batch_nor_on_pauses(sampler):
    diffusion = make_diffusion(timestep_respacing="8", learn_sigma=False)
    denoise_fn, clean, mask = exact_denoiser(diffusion), jnp.zeros(SHAPE), jnp.ones(SHAPE)

    def with_pause():
        state, step = sampler(Problem(diffusion, denoise_fn, KEYS, clean, mask))
        state = jax.lax.fori_loop(0, 3, step, state)
        return samplers.samples_of(jax.lax.fori_loop(3, 8, step, state))

    together = run(sampler, diffusion, denoise_fn, KEYS, clean, mask)
    alone = run(sampler, diffusion, denoise_fn, KEYS[2:3], clean[2:3], mask[2:3])
    paused = jax.jit(with_pause)()
    np.testing.assert_allclose(together[2:3], alone, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.01
    np.testing.assert_allclose(paused, together, atol=1e-6)


def test_start_and_noises_may_be_numpy_arrays_within_jit():
    diffusion = make_diffusion(timestep_respacing="3", learn_sigma=False)
    rng = np.random.default_rng(0)
    start = rng.standard_normal(SHAPE).astype(np.float32)
    noises = rng.standard_normal((3, *SHAPE)).astype(np.float32)
    as_numpy = solve(ddpm, diffusion, start, noises=noises)
    np.testing.assert_array_equal(as_numpy, solve(ddpm, diffusion, jnp.asarray(start), noises=jnp.asarray(noises)))
    assert np.abs(as_numpy - solve(ddpm, diffusion, start, noises=noises[::-1].copy())).max() > 0.01


def test_shapes_that_do_not_fit_are_refused():
    """By the type checker that conftest.py installs; a mask of one frame would broadcast silently."""
    diffusion = make_diffusion(timestep_respacing="3", learn_sigma=False)
    clean, mask = jnp.zeros(SHAPE), jnp.ones(SHAPE)
    for wrong in (mask[:, :1], mask[..., 0], mask.repeat(2, axis=-1), mask.astype(bool)):
        with pytest.raises(TypeCheckError, match="mask"):
            run(ddim, diffusion, exact_denoiser(diffusion), KEYS, clean, wrong)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_clipping_holds_samples_in_range(sampler):
    shape = (4, 1, 2, 2, 1)
    diffusion = make_diffusion(timestep_respacing="8", learn_sigma=False, clip_denoised=True)
    out = run(sampler, diffusion, exact_denoiser(diffusion, mean=3.0), KEYS, jnp.zeros(shape), jnp.ones(shape))
    assert out.min() > 0.5 and out.max() <= 1  # the network says 3


def test_repaint_comes_nearer_to_what_is_given_with_every_time_that_steps_are_taken():
    """Two frames with correlation 0.95, the first given as 1: the second has mean 0.95."""
    covariance = jnp.array([[1.0, 0.95], [0.95, 1.0]])
    diffusion = make_diffusion(timestep_respacing="30", learn_sigma=False, prediction="x_start")

    def denoise_fn(x_t, timesteps):  # E[x_0 | x_t] of the two frames together, everything equally noisy
        a = at(diffusion.schedule.alpha, jnp.searchsorted(jnp.asarray(diffusion.schedule.timestep_map), timesteps[0]))
        gain = a * covariance @ jnp.linalg.inv(a**2 * covariance + (1 - a**2) * jnp.eye(2))
        return jnp.einsum("fg,bghwc->bfhwc", gain, x_t)

    shape = (2000, 2, 1, 1, 1)
    clean, mask = jnp.ones(shape), jnp.ones(shape).at[:, 0].set(0)
    keys = jax.random.split(jax.random.key(0), shape[0])

    @jax.jit
    def mean(resamples):
        problem = Problem(diffusion, denoise_fn, keys, clean, mask)
        return samplers.solve(repaint, problem, resamples=resamples)[:, 1].mean()

    means = [float(mean(times)) for times in (1, 4, 16)]
    print(f"mean of the second frame: {means}")
    assert means[0] < means[1] - 0.05 and abs(means[2] - 0.95) < abs(means[1] - 0.95) and abs(means[2] - 0.95) < 0.06


def test_guidance_on_labels_shifts_the_mean_by_the_formula():
    """Classes N(m_c, s^2), and N(m_0, s^2) without a label: guided, they are N(m_0 + scale (m_c - m_0), s^2)."""
    diffusion = make_diffusion(timestep_respacing="10", learn_sigma=False)
    means = jnp.array([0.5, -0.5, 0.1])  # the last: no label
    by_label = [exact_denoiser(diffusion, mean) for mean in means]

    def network(x_t, timesteps, labels):
        outputs = jnp.stack([denoise_fn(x_t, timesteps) for denoise_fn in by_label])
        return jax.vmap(lambda output, label: output[label], in_axes=(1, 0))(outputs, labels)

    clean, mask, noise = jnp.zeros(SHAPE), jnp.ones(SHAPE), jnp.zeros(SHAPE)
    labels = jnp.array([0, 1, 0, 2])
    guided = guide(network, diffusion, labels, clean, mask, noise, null_label=2, guidance=3.0)
    out = run(unipc, diffusion, guided, KEYS, clean, mask)
    shifted = (0.1 + 3 * (means[labels] - 0.1))[:, None, None, None, None]
    alone = run(unipc, diffusion, exact_denoiser(diffusion, shifted), KEYS, clean, mask)
    np.testing.assert_allclose(out, alone, atol=1e-4)


def test_guidance_in_an_interval_of_noise_levels_follows_the_exact_path():
    """The path of N(0.1, s^2) but between the noise-to-signal ratios 0.5 and 2, where it is that of N(0.9, s^2)."""
    diffusion = even_in_lambda(400)
    by_label = [exact_denoiser(diffusion, mean) for mean in (0.1, -0.3)]

    def network(x_t, timesteps, labels):  # the label 1 means none
        given, none = (denoise_fn(x_t, timesteps) for denoise_fn in by_label)
        return jnp.where(labels[:, None, None, None, None] == 0, given, none)

    start, clean, mask = jax.random.normal(jax.random.key(3), SHAPE), jnp.zeros(SHAPE), jnp.ones(SHAPE)
    labels, scales = jnp.zeros(4, int), {"guidance": 3.0, "guidance_interval": (0.5, 2.0)}
    guided = guide(network, diffusion, labels, clean, mask, clean, null_label=1, **scales)
    out = run(ddim, diffusion, guided, KEYS, clean, mask, start)
    noise = diffusion.schedule.sigma / diffusion.schedule.alpha
    begin, end = np.flatnonzero((noise > 0.5) & (noise <= 2.0))[[-1, 0]]
    x = exact_path(diffusion, start, -1, begin, 0.1)
    x = exact_path(diffusion, x, begin, end - 1, 0.9)
    np.testing.assert_allclose(out, exact_end(diffusion, x, 0.1, end - 1), atol=0.01)
    everywhere = guide(network, diffusion, labels, clean, mask, clean, null_label=1, guidance=3.0)
    assert np.abs(run(ddim, diffusion, everywhere, KEYS, clean, mask, start) - out).min() > 0.1


@pytest.mark.parametrize(
    ("interval", "scales", "message"),
    [
        ((3.0, 0.3), (2.0,), "guidance_interval must be LOW,HIGH with 0 <= LOW < HIGH, such as 0.3,3, got 3,0.3"),
        ((0.3,), (2.0,), "got 0.3$"),
        ((-1.0, 1.0), (2.0,), "got -1,1"),
        ((0.0, float("nan")), (2.0,), "got 0,nan"),
        ((), (2.0,), "got nothing"),
        ((0.3, 3.0), (None, None), "none is given: add guidance or mask_guidance"),
    ],
)
def test_impossible_guidance_intervals_are_refused(interval, scales, message):
    with pytest.raises(UserError, match=message):
        check_guidance_interval(interval, *scales)


def test_noise_on_given_positions_is_in_the_input_of_every_branch():
    diffusion = make_diffusion(timestep_respacing="10", learn_sigma=False)
    clean, noise, x_t = (jax.random.normal(jax.random.key(seed), SHAPE) for seed in range(3))
    mask = jnp.ones(SHAPE).at[:, 0].set(0)
    inputs = []

    def network(x_t, timesteps, labels):
        inputs.append(x_t.reshape(4, -1, *SHAPE[1:]))
        return x_t

    scales = {"guidance": 3.0, "mask_guidance": 1.5, "given_noise": 0.5}
    denoise_fn = guide(network, diffusion, jnp.zeros(4, int), clean, mask, noise, null_label=9, **scales)
    denoise_fn(apply_mask(mask, x_t, clean), jnp.full(4, 999))
    noisy = apply_mask(mask, x_t, clean + 0.5 * noise)
    nothing_given = apply_mask(mask, x_t, diffusion.q_sample(clean, jnp.full(4, 9), noise))
    for branch, expected in enumerate((noisy, noisy, nothing_given)):
        np.testing.assert_allclose(inputs[0][:, branch], expected, atol=1e-6)


def test_mask_guidance_pushes_away_from_what_is_said_with_nothing_given():
    diffusion = make_diffusion(timestep_respacing="10")
    clean, noise, x_t = (jax.random.normal(jax.random.key(seed), SHAPE) for seed in range(3))
    mask = jnp.ones(SHAPE).at[:, 0].set(0)
    step, labels = jnp.array([1, 4, 9, 0]), jnp.array([0, 1, 0, 1])
    timesteps = jnp.asarray(diffusion.schedule.timestep_map)[step]

    def network(x_t, timesteps, labels):
        everywhere = x_t.sum(1, keepdims=True) + labels[:, None, None, None, None]
        return jnp.concatenate([x_t * everywhere, everywhere.repeat(2, axis=1)], axis=-1)

    x_t = apply_mask(mask, x_t, clean)
    free = apply_mask(mask, x_t, diffusion.q_sample(clean, step, noise))
    full, no_label, nothing_given = (
        network(x_t, step, labels),
        network(x_t, step, labels * 0 + 9),
        network(free, step, labels),
    )
    scales = {"guidance": 3.0, "mask_guidance": 1.5}
    out = guide(network, diffusion, labels, clean, mask, noise, null_label=9, **scales)(x_t, timesteps)
    expected = full + 2.0 * (full - no_label) + 0.5 * (full - nothing_given)
    np.testing.assert_allclose(out[..., :1], expected[..., :1], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out[..., 1:], full[..., 1:])
    nothing = {"guidance": 1.0, "mask_guidance": 1.0}
    out = guide(network, diffusion, labels, clean, mask, noise, null_label=9, **nothing)(x_t, timesteps)
    np.testing.assert_allclose(out, full, rtol=1e-5)


def test_noise_streams_are_normal_and_apart():
    noise = np.asarray(sample_noise(jax.random.split(jax.random.key(0), 50), (10, 20)))
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert np.abs(noise[0] - noise[1]).max() > 0.1
