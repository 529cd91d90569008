"""Noise schedules, their derived tables and respacing, in float64 NumPy.

A schedule is a list of noise levels of the forward process

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I),  alpha_t / sigma_t falling with t                        (1)

and everything else follows from the tables `alpha` and `sigma`. There are two kinds of path:

* alpha^2 + sigma^2 = 1, from the betas of Ho et al. 2020 (arXiv 2006.11239), with alpha-bar_t = alpha_t^2 =
  prod_{s <= t} (1 - beta_s): `linear` and `cosine`;
* alpha + sigma = 1, a straight line from data to noise (Liu et al. 2022, arXiv 2209.03003): `rectified_flow`.

Tables are computed in NumPy, because jnp.float64 silently becomes float32; `at` reads them as float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vdt_jax.errors import UserError

Table = Float[np.ndarray, " t"]


def at(table: Table | Array, steps: Int[Array, "..."] | int) -> Float[Array, "..."]:
    """The entries of a table as float32: (B, 1, 1, 1, 1) for steps (B,), a scalar for a single step."""
    values = jnp.asarray(table, jnp.float32)[steps]
    return values[:, None, None, None, None] if values.ndim else values


def linear_betas(num_diffusion_timesteps: int) -> Table:
    """Betas (T,) from 1e-4 to 0.02 at T = 1000, scaled so that other lengths end as noisy (Ho et al. 2020, sec. 4)."""
    scale = 1000 / num_diffusion_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_diffusion_timesteps, dtype=np.float64)


def cosine_betas(num_diffusion_timesteps: int) -> Table:
    """Betas (T,) of the cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17), capped at 0.999."""
    u = np.arange(num_diffusion_timesteps + 1, dtype=np.float64) / num_diffusion_timesteps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


NOISE_SCHEDULES = ("linear", "cosine", "rectified_flow")
TIMES = ("uniform", "logit_normal")


class NoiseSchedule:
    """Tables of one diffusion process, each (T,) float64 and indexed by step.

    Args:
      alpha, sigma: of (1).
      timestep_map: the timestep of the original process at each step, which is what the network receives.
      straight: whether alpha + sigma = 1; else alpha^2 + sigma^2 = 1.
    """

    def __init__(self, alpha: Table, sigma: Table, timestep_map: Int[np.ndarray, " t"], straight: bool = False):
        self.alpha, self.sigma, self.timestep_map = alpha, sigma, timestep_map
        self.alpha_prev, self.sigma_prev = np.append(1.0, alpha[:-1]), np.append(0.0, sigma[:-1])  # of the step before
        # v = v_noise eps - v_start x_0 is the derivative of x_t along the path: in time where it is straight, else in
        # the angle of (alpha, sigma). On both, alpha v_noise + sigma v_start = 1.
        self.v_noise, self.v_start = (np.ones_like(alpha), np.ones_like(alpha)) if straight else (alpha, sigma)
        # log(alpha / sigma), the lambda of the ODE solvers; falls with the step. It is finite, if far below all others,
        # at a step without signal.
        self.half_log_snr = np.log(np.maximum(alpha, np.finfo(np.float64).tiny) / sigma)

        # q(x_t | x_{t-1}) = N(ratio x_{t-1}, beta I) (Kingma et al. 2021, arXiv 2107.00630, eq. 22, 23).
        self.ratio = alpha / self.alpha_prev
        self.betas = sigma**2 - self.ratio**2 * self.sigma_prev**2
        self.log_betas = np.log(self.betas)

        # q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7): beta-tilde, 0 at t = 0, and the weights of x_start and x_t in
        # the mean. In the logarithm the value at t = 1 replaces that zero (beta_0 if T = 1).
        self.posterior_variance = self.betas * self.sigma_prev**2 / sigma**2
        self.sqrt_posterior_variance = np.sqrt(self.posterior_variance)
        floor = self.posterior_variance[1] if len(alpha) > 1 else self.betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(floor, self.posterior_variance[1:]))
        self.posterior_mean_coef1 = self.betas * self.alpha_prev / sigma**2
        self.posterior_mean_coef2 = self.ratio * self.sigma_prev**2 / sigma**2

    def __len__(self) -> int:
        return len(self.alpha)

    def draw_steps(
        self, key: Key[Array, ""], count: int, times: str = "uniform", noise_shift: float = 1.0
    ) -> Int[Array, " {count}"]:
        """Random steps for training.

        Args:
          times: `uniform` over the steps; or `logit_normal`, the first step at which log(sigma / alpha) is at least a
            standard normal draw: on a straight path the time is logit-normal (Esser et al. 2024, arXiv 2403.03206,
            eq. 19), and noise_shift is its location.
          noise_shift: factor of each noise-to-signal ratio, see `shifted_steps`.
        """
        if times == "logit_normal":
            log_noise = np.log(noise_shift) + jax.random.normal(key, (count,))
            return jnp.minimum(jnp.searchsorted(jnp.asarray(-self.half_log_snr, jnp.float32), log_noise), len(self) - 1)
        return jnp.asarray(self.shifted_steps(noise_shift))[jax.random.randint(key, (count,), 0, len(self))]

    def shifted_steps(self, noise_shift: float) -> Int[np.ndarray, " t"]:
        """For each step, the first step with at least `noise_shift` times its noise-to-signal ratio, or the last step.

        Uniform draws from these steps train at more noise. Neighbouring frames share content, so at the same noise
        level a video shows more of itself than an image (Hoogeboom et al. 2023, arXiv 2301.11093, sec. 3.1, on
        resolution; Esser et al. 2024, arXiv 2403.03206, eq. 23).
        """
        steps = np.searchsorted(-self.half_log_snr, np.log(noise_shift) - self.half_log_snr)
        return np.minimum(steps, len(self) - 1)


def make_schedule(
    name: str = "linear",
    num_diffusion_timesteps: int = 1000,
    timestep_respacing: str = "",
    zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """A named schedule, respaced: the kept timesteps have the noise of the original process.

    Args:
      name: one of NOISE_SCHEDULES.
      num_diffusion_timesteps: T of the original process; the times of rectified flow are 1/T, 2/T, ..., 1.
      timestep_respacing: see `respace_timesteps`.
      zero_terminal_snr: shifts and scales alpha so that it is 0 at the last timestep and unchanged at the first (Lin et
        al. 2023, arXiv 2305.08891, algorithm 1). Rectified flow ends in pure noise without it.

    Raises:
      UserError: an unknown name, or a respacing that `respace_timesteps` refuses.
    """
    if name not in NOISE_SCHEDULES:
        raise UserError(f"noise_schedule must be one of {', '.join(NOISE_SCHEDULES)}, got '{name}'")
    timesteps = np.arange(num_diffusion_timesteps)
    straight = name == "rectified_flow"
    if straight:
        sigma = (timesteps + 1) / num_diffusion_timesteps
        alpha = 1 - sigma
    else:
        betas = {"linear": linear_betas, "cosine": cosine_betas}[name](num_diffusion_timesteps)
        alpha = np.sqrt(np.cumprod(1 - betas))
        if zero_terminal_snr:
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        sigma = np.sqrt(1 - alpha**2)
    original = NoiseSchedule(alpha, sigma, timesteps, straight)
    kept = respace_timesteps(original, timestep_respacing)
    return NoiseSchedule(alpha[kept], sigma[kept], kept, straight)


def respace_timesteps(schedule: NoiseSchedule, timestep_respacing: str) -> Int[np.ndarray, " k"]:
    """The timesteps to keep, ascending.

    Args:
      schedule: the original process, T timesteps.
      timestep_respacing: "" keeps all. As in ADM (Dhariwal and Nichol 2021, arXiv 2105.05233): "16" spreads 16 evenly,
        first and last included; "10,15,20" spreads these counts over equal sections; "ddim25" uses the constant integer
        stride that gives exactly 25. "trailing16" ends at T - 1 and leaves out 0 (Lin et al. 2024, table 2,
        arXiv 2305.08891); "logsnr16" is even in log(alpha / sigma), which suits ODE solvers.

    Raises:
      UserError: text of any other form, or a count that does not fit the timesteps.
    """
    total = len(schedule)
    if not timestep_respacing:
        return np.arange(total)
    kind, counts = _parse_respacing(timestep_respacing)
    if not kind:
        return _even_in_sections(total, counts)
    if not 1 <= counts[0] <= total:
        raise UserError(f"{counts[0]} steps do not fit {total} timesteps: choose 1 to {total}")
    return _SPACINGS[kind](schedule, counts[0])


def _even_in_sections(total: int, counts: list[int]) -> np.ndarray:
    size, extra = divmod(total, len(counts))
    kept, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if not 1 <= count <= length:
            raise UserError(f"{count} steps do not fit a section of {length} timesteps: choose 1 to {length}")
        # The stride is added up, not multiplied, so that halves round as they do in the official code.
        stride, position = (length - 1) / max(count - 1, 1), 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return np.array(sorted(set(kept)))


def _integer_stride(schedule: NoiseSchedule, count: int) -> np.ndarray:
    total = len(schedule)
    for stride in range(1, total + 1):
        if len(range(0, total, stride)) == count:
            return np.arange(0, total, stride)
    raise UserError(f"no integer stride over {total} timesteps gives {count} steps: use '{count}' instead")


def _trailing(schedule: NoiseSchedule, count: int) -> np.ndarray:
    total = len(schedule)
    return np.round(total - np.arange(count)[::-1] * total / count).astype(int) - 1


def _even_in_log_snr(schedule: NoiseSchedule, count: int) -> np.ndarray:
    log_snr = schedule.half_log_snr
    levels = np.linspace(log_snr[schedule.alpha > 0][-1], log_snr[0], count)
    nearest = np.abs(log_snr[:, None] - levels[None, ::-1]).argmin(axis=0)
    nearest[-1] = len(log_snr) - 1  # which may have no signal
    # Where several levels have the same nearest timestep, later ones move up, and back down at the end.
    for i in range(1, count):
        nearest[i] = max(nearest[i], nearest[i - 1] + 1)
    return np.minimum(nearest, len(log_snr) - count + np.arange(count))


_SPACINGS = {"ddim": _integer_stride, "trailing": _trailing, "logsnr": _even_in_log_snr}


def _parse_respacing(timestep_respacing: str) -> tuple[str, list[int]]:
    """("trailing", [16]) of "trailing16"; ("", [10, 15, 20]) of "10,15,20"."""
    kind = next((kind for kind in _SPACINGS if timestep_respacing.startswith(kind)), "")
    rest = timestep_respacing.removeprefix(kind)
    try:
        return kind, [int(rest)] if kind else [int(count) for count in rest.split(",")]
    except ValueError:
        raise UserError(
            f"timestep_respacing '{timestep_respacing}' is not a count ('16'), a list ('10,15,20'), 'ddim25', "
            "'trailing16' or 'logsnr16'"
        ) from None
