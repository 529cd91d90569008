"""Gaussian diffusion: the forward process, how a network's output is read, and the losses.

The equations of Ho et al. 2020 (arXiv 2006.11239), written with alpha and sigma of a `NoiseSchedule`: alpha^2 is the
alpha-bar of the paper, sigma^2 is 1 - alpha-bar.

    x_t = alpha_t x_0 + sigma_t eps                                                                     (1)  eq. 4
    q(x_{t-1} | x_t, x_0) = N(coef1_t x_0 + coef2_t x_t, beta-tilde_t)                                  (2)  eq. 6, 7
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)),  L_0 = -log p(x_0 | x_1)                   (3)  eq. 5

and the learned variance of Nichol and Dhariwal 2021 (arXiv 2102.09672):

    log Sigma = v log beta_t + (1 - v) log beta-tilde_t,  v = (fraction + 1) / 2                        (4)  eq. 15
    L = L_simple + L_vlb, both of the step that is drawn, the mean detached in L_vlb                    (5)  eq. 16

The network's `model_output` is `(B, F, h, w, 2C)`: the prediction, then the fraction of (4), which is not clamped; or
`(B, F, h, w, C)` if the variance is not learned. Diffusion and samplers call a network as
`denoise_fn(x_t, timesteps) -> model_output`, with timesteps of the original process. `steps` are indices into the
schedule, which differ from timesteps where it is respaced.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdt_jax.diffusion.blend import linear_blend
from vdt_jax.diffusion.masks import Mask, Video, apply_mask
from vdt_jax.diffusion.schedules import NoiseSchedule, Table, at, make_schedule
from vdt_jax.errors import UserError

ModelOutput = Float[Array, "b f h w out"]
StepIndices = Int[Array, " b"]
Values = Float[Array, "..."]
DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]  # (x_t, timesteps) -> model_output
PREDICTIONS = ("eps", "v", "x_start")
LOSSES = ("normalised", "parity")


class Prediction(NamedTuple):
    """p(x_{t-1} | x_t) and the estimate of x_0 from one network call."""

    mean: Video
    log_variance: Video
    pred_xstart: Video


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianDiffusion:
    """A noise schedule, how the network's output is read, and the training loss.

    Attributes:
      schedule: tables indexed by step; `timestep_map` maps steps to original timesteps.
      prediction: what the network's first C channels estimate: `eps`, `x_start`, or `v`, the derivative of x_t along
        the path: alpha eps - sigma x_0 where alpha^2 + sigma^2 = 1 (Salimans and Ho 2022, arXiv 2202.00512), and
        eps - x_0 in rectified flow (Liu et al. 2022, arXiv 2209.03003, eq. 1, which has the opposite sign).
      learn_sigma: whether the output has C more channels, the variance fraction of (4); else the variance is
        beta-tilde.
      loss_on: the quantity whose squared error is the first loss term; None is `prediction` itself. A network that
        predicts x_start with its loss on v needs no capacity for noise (Li and He 2025, arXiv 2511.13720).
      min_snr_gamma: upper limit of the loss weight (Hang et al. 2023, arXiv 2303.09556). The squared error of `loss_on`
        is that of x_start times a weight: SNR for eps, 1 / sigma^2 for v (SNR + 1 where alpha^2 + sigma^2 = 1), and 1
        for x_start. This weight is limited.
      clip_denoised: whether samplers clip their estimates of x_0 (with `residual`, of the difference) to [-1, 1]: right
        for pixels, not for latents.
      residual: whether, at generated positions, x_0 is replaced by x_0 minus the linear blend of the given frames
        (`linear_blend`); this difference is noised, and the network estimates it. Given positions hold x_0 itself,
        which looks different from a difference even without noise, so the network can always tell the two apart.
    """

    schedule: NoiseSchedule
    prediction: str = "eps"
    learn_sigma: bool = True
    loss_on: str | None = None
    min_snr_gamma: float | None = None
    clip_denoised: bool = False
    residual: bool = False

    def __post_init__(self):
        for name, value in (("prediction", self.prediction), ("loss_on", self.loss_on or self.prediction)):
            if value not in PREDICTIONS:
                raise UserError(f"{name} must be one of {', '.join(PREDICTIONS)}, got '{value}'")
        if self.prediction == "eps" and self.schedule.alpha[-1] == 0:
            raise UserError(
                "prediction must be v or x_start with rectified_flow or zero_terminal_snr, got 'eps', which does not "
                "determine x_start in pure noise"
            )

    def q_sample(self, x_start: Video, steps: StepIndices, noise: Video) -> Video:
        """x_t of (1)."""
        return at(self.schedule.alpha, steps) * x_start + at(self.schedule.sigma, steps) * noise

    def posterior_mean(self, x_start: Video, x_t: Video, steps: StepIndices) -> Video:
        """The mean of (2)."""
        schedule = self.schedule
        return at(schedule.posterior_mean_coef1, steps) * x_start + at(schedule.posterior_mean_coef2, steps) * x_t

    def predict_xstart(self, prediction: Video, x_t: Video, steps: StepIndices) -> Video:
        """x_0 from the network's estimate of eps, v or x_0."""
        schedule = self.schedule
        if self.prediction == "x_start":
            return prediction
        if self.prediction == "v":
            return at(schedule.v_noise, steps) * x_t - at(schedule.sigma, steps) * prediction
        return at(1 / schedule.alpha, steps) * x_t - at(schedule.sigma / schedule.alpha, steps) * prediction

    def p_mean_variance(
        self, model_output: ModelOutput, x_t: Video, steps: StepIndices, clip: bool = False
    ) -> Prediction:
        """Reads a network's output as p(x_{t-1} | x_t); `clip` limits pred_xstart to [-1, 1]."""
        min_log = at(self.schedule.posterior_log_variance_clipped, steps)
        if self.learn_sigma:
            model_output, fraction = jnp.split(model_output, 2, axis=-1)
            v = (fraction + 1) / 2
            log_variance = v * at(self.schedule.log_betas, steps) + (1 - v) * min_log  # (4)
        else:
            log_variance = jnp.broadcast_to(min_log, x_t.shape)
        pred_xstart = self.predict_xstart(model_output, x_t, steps)
        if clip:
            pred_xstart = jnp.clip(pred_xstart, -1, 1)
        return Prediction(self.posterior_mean(pred_xstart, x_t, steps), log_variance, pred_xstart)

    def _target(self, x_start: Video, steps: StepIndices, noise: Video) -> Video:
        if self.prediction == "x_start":
            return x_start
        if self.prediction == "v":
            return at(self.schedule.v_noise, steps) * noise - at(self.schedule.v_start, steps) * x_start
        return noise

    @functools.cached_property
    def _loss_weight(self) -> Table:
        """Factor of the squared error of `prediction` that makes it that of `loss_on`, with the limit of min-SNR."""
        alpha, sigma = self.schedule.alpha, self.schedule.sigma
        weight_on_xstart = {"x_start": np.ones_like(alpha), "eps": (alpha / sigma) ** 2, "v": 1 / sigma**2}
        weight = weight_on_xstart[self.loss_on or self.prediction]
        if self.min_snr_gamma is not None:
            weight = np.minimum(weight, self.min_snr_gamma)
        return weight / weight_on_xstart[self.prediction]

    def training_losses(
        self,
        denoise_fn: DenoiseFn,
        x_start: Video,
        mask: Mask,
        steps: StepIndices,
        noise: Video,
        loss: str = "normalised",
        given_noise: Float[Array, " b"] | None = None,
    ) -> dict[str, Float[Array, " b"]]:
        """The losses of (5) for one step of each example.

        Args:
          denoise_fn: (x_t, timesteps) -> model_output.
          x_start: clean video or latents (B, F, h, w, C).
          mask: (B, F, h, w, 1), 1 = generate (noised, in the loss), 0 = given (clean in the network's input but for
            `given_noise`).
          steps: (B,) indices into the schedule.
          noise: (B, F, h, w, C), standard normal.
          loss: `normalised` averages both terms over the generated positions only, so that all tasks have the same
            weight; `parity` is the official loss: the squared error at generated positions, averaged over *all*
            positions, and the variational bound unmasked.
          given_noise: (B,) standard deviations of noise on given positions in the network's input; None is none.

        Returns:
          `loss`, `mse` and, if the variance is learned, `vb` in bits: (B,) each.

        Raises:
          UserError: an unknown loss.
        """
        if loss not in LOSSES:
            raise UserError(f"loss must be one of {', '.join(LOSSES)}, got '{loss}'")
        if self.residual:
            x_start = apply_mask(mask, x_start - linear_blend(x_start, mask), x_start)
        everywhere = tuple(range(1, x_start.ndim))
        share = mask / jnp.maximum(mask.mean(everywhere, keepdims=True), 1 / mask[0].size)
        x_t = self.q_sample(x_start, steps, noise)
        timesteps = jnp.asarray(self.schedule.timestep_map)[steps]
        given = x_start if given_noise is None else x_start + given_noise[:, None, None, None, None] * noise
        model_output = denoise_fn(apply_mask(mask, x_t, given), timesteps)

        prediction = model_output[..., : x_start.shape[-1]]
        square = at(self._loss_weight, steps) * (self._target(x_start, steps, noise) - prediction) ** 2
        mse = (square * (mask if loss == "parity" else share)).mean(everywhere)
        if not self.learn_sigma:
            return {"loss": mse, "mse": mse}

        fraction = model_output[..., x_start.shape[-1] :]
        frozen = jnp.concatenate([jax.lax.stop_gradient(prediction), fraction], axis=-1)
        bits = self._vb_bits(frozen, x_start, x_t, steps)
        vb = (bits if loss == "parity" else bits * share).mean(everywhere)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def _vb_bits(self, model_output: ModelOutput, x_start: Video, x_t: Video, steps: StepIndices) -> Video:
        """The term of (3) at each position, in bits."""
        out = self.p_mean_variance(model_output, x_t, steps)
        log_variance = at(self.schedule.posterior_log_variance_clipped, steps)
        kl = normal_kl(self.posterior_mean(x_start, x_t, steps), log_variance, out.mean, out.log_variance)
        decoder_nll = -discretized_gaussian_log_likelihood(x_start, out.mean, 0.5 * out.log_variance)
        first = (steps == 0)[:, None, None, None, None]
        return jnp.where(first, decoder_nll, kl) / np.log(2.0)


@functools.lru_cache(maxsize=64)
def make_diffusion(
    noise_schedule: str = "linear",
    num_diffusion_timesteps: int = 1000,
    timestep_respacing: str = "",
    prediction: str = "eps",
    learn_sigma: bool = True,
    loss_on: str | None = None,
    min_snr_gamma: float | None = None,
    clip_denoised: bool = False,
    zero_terminal_snr: bool = False,
    residual: bool = False,
) -> GaussianDiffusion:
    """A GaussianDiffusion from plain values: the `diffusion` section of a config.

    Equal values return the same object, so that jit finds the programs it compiled for it. See `GaussianDiffusion` and
    `make_schedule` for the arguments.
    """
    schedule = make_schedule(noise_schedule, num_diffusion_timesteps, timestep_respacing, zero_terminal_snr)
    return GaussianDiffusion(schedule, prediction, learn_sigma, loss_on, min_snr_gamma, clip_denoised, residual)


def normal_kl(mean1: Values, log_variance1: Values, mean2: Values, log_variance2: Values) -> Values:
    """KL(N(mean1, exp(log_variance1)) || N(mean2, exp(log_variance2))) in nats, elementwise."""
    ratio = log_variance1 - log_variance2
    # expm1(r) - r rather than exp(r) - 1 - r, which cancels where the variances agree.
    return 0.5 * (jnp.expm1(ratio) - ratio + (mean1 - mean2) ** 2 * jnp.exp(-log_variance2))


def discretized_gaussian_log_likelihood(
    x: Float[Array, "*shape"], means: Float[Array, "*shape"], log_scales: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """log of the mass of N(means, exp(log_scales)^2) in the bin of x, 1/127.5 wide, in nats (Ho et al., eq. 13).

    The normal cdf is approximated as ADM does, Phi(u) = (1 + tanh q(u)) / 2 = sigmoid(2 q(u)) with
    q(u) = sqrt(2 / pi) (u + 0.044715 u^3). Subtracting two tanh loses digits in float32 (up to 1 % of the official
    loss); with a = 2 q(u+) and b = 2 q(u-) the same number is

        log(Phi(u+) - Phi(u-)) = log_sigmoid(a) + log_sigmoid(-b) + log(1 - exp(b - a)).

    Bins at the ends of [-1, 1] reach to infinity. Floored at log 1e-12.
    """
    centered, precision = x - means, jnp.exp(-log_scales)

    def logit(u):
        u = jnp.clip(u, -100, 100)  # far past the floor; without it u^3 overflows and inf - inf poisons the gradient
        return 2 * np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)

    a, b = logit(precision * (centered + 1 / 255)), logit(precision * (centered - 1 / 255))
    below_right, above_left = jax.nn.log_sigmoid(a), jax.nn.log_sigmoid(-b)
    inside = below_right + above_left + jnp.log(-jnp.expm1(jnp.minimum(b - a, -1e-30)))
    return jnp.maximum(jnp.where(x < -0.999, below_right, jnp.where(x > 0.999, above_left, inside)), np.log(1e-12))
