"""Noise schedules and respacing, as float64 NumPy tables.

A schedule is the list of betas of the forward process (Ho et al. 2020, arXiv 2006.11239)

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                                        (1)

and everything else follows from `alphas_cumprod[t] = prod_{s <= t} (1 - beta_s)`. Tables are made in NumPy, because
jnp.float64 silently becomes float32, and cast once where they are used.
"""

import dataclasses
import functools

import numpy as np

from vdt_jax.errors import UserError


def linear_betas(num_diffusion_timesteps: int) -> np.ndarray:
    """Betas (T,) from 1e-4 to 0.02 at T = 1000, scaled so that other lengths end as noisy (Ho et al. 2020, sec. 4)."""
    scale = 1000 / num_diffusion_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_diffusion_timesteps, dtype=np.float64)


def cosine_betas(num_diffusion_timesteps: int) -> np.ndarray:
    """Betas (T,) of the cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17), capped at 0.999."""
    u = np.arange(num_diffusion_timesteps + 1, dtype=np.float64) / num_diffusion_timesteps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


NOISE_SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Tables of one diffusion process, each (T,) float64 and indexed by timestep.

    Attributes:
      betas: variances of (1), in (0, 1].
      timestep_map: (T,) int, the timestep of the original process that the network is told at each step.
    """

    betas: np.ndarray
    timestep_map: np.ndarray

    def __len__(self) -> int:
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        return np.append(1.0, self.alphas_cumprod[:-1])

    def shifted_steps(self, noise_shift: float) -> np.ndarray:
        """Steps (T,) int that, drawn evenly, have `noise_shift` times the noise over signal of 0, ..., T - 1.

        Frames that repeat each other tell at a given noise what one of them would hide, so that a video is decided at
        more noise than a picture (Hoogeboom et al. 2023, arXiv 2301.11093, sec. 3.1, on large pictures; Esser et al.
        2024, arXiv 2403.03206, eq. 23).
        """
        log_snr = np.log(self.alphas_cumprod / (1 - self.alphas_cumprod))
        return np.minimum(np.searchsorted(-log_snr, 2 * np.log(noise_shift) - log_snr), len(self) - 1)

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """beta-tilde of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7); 0 at t = 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """log(posterior_variance) with the zero at t = 0 replaced by the value at t = 1 (beta_0 if T = 1)."""
        floor = self.posterior_variance[1] if len(self) > 1 else self.betas[0]
        return np.log(np.append(floor, self.posterior_variance[1:]))

    @functools.cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        """The weight of x_start in the posterior's mean."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        """The weight of x_t in the posterior's mean."""
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)


def respace_timesteps(alphas_cumprod: np.ndarray, timestep_respacing: str) -> np.ndarray:
    """The timesteps to keep, (K,) int, ascending.

    Args:
      alphas_cumprod: (T,) of the original process.
      timestep_respacing: "" keeps all. As ADM does (Dhariwal and Nichol 2021, arXiv 2105.05233): "16" spreads 16 over
        the whole, both ends kept; "10,15,20" spreads counts over equal sections; "ddim25" takes a constant integer
        stride that gives exactly 25. "trailing16" ends at T - 1 and leaves out 0 (Lin et al. 2024, table 2,
        arXiv 2305.08891); "logsnr16" is even in log(alpha-bar / (1 - alpha-bar)), as solvers of the ODE like it.

    Raises:
      UserError: a count that cannot be had.
    """
    total = len(alphas_cumprod)
    if not timestep_respacing:
        return np.arange(total)
    kind, counts = _parse_respacing(timestep_respacing)
    if kind:
        if not 1 <= counts[0] <= total:
            raise UserError(f"{counts[0]} steps do not fit {total} timesteps: choose 1 to {total}")
        return _SPACINGS[kind](alphas_cumprod, counts[0])
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


def _integer_stride(alphas_cumprod: np.ndarray, count: int) -> np.ndarray:
    total = len(alphas_cumprod)
    for stride in range(1, total + 1):
        if len(range(0, total, stride)) == count:
            return np.arange(0, total, stride)
    raise UserError(f"no integer stride over {total} timesteps gives {count} steps: use '{count}' instead")


def _trailing(alphas_cumprod: np.ndarray, count: int) -> np.ndarray:
    total = len(alphas_cumprod)
    return np.round(total - np.arange(count)[::-1] * total / count).astype(int) - 1


def _even_in_log_snr(alphas_cumprod: np.ndarray, count: int) -> np.ndarray:
    log_snr = np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)  # falls with the timestep
    levels = np.linspace(log_snr[-1], log_snr[0], count) if count > 1 else log_snr[-1:]
    nearest = np.abs(log_snr[:, None] - levels[None, ::-1]).argmin(axis=0)
    # No timestep twice: where many levels fall on few timesteps they move up, and at the end down again.
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


def make_schedule(
    name: str = "linear", num_diffusion_timesteps: int = 1000, timestep_respacing: str = ""
) -> NoiseSchedule:
    """A named schedule, respaced: betas are rebuilt so that the kept steps have the original alphas_cumprod."""
    if name not in NOISE_SCHEDULES:
        raise UserError(f"no noise schedule '{name}': choose from {', '.join(NOISE_SCHEDULES)}")
    alphas_cumprod = np.cumprod(1 - NOISE_SCHEDULES[name](num_diffusion_timesteps))
    timestep_map = respace_timesteps(alphas_cumprod, timestep_respacing)
    kept = alphas_cumprod[timestep_map]
    return NoiseSchedule(betas=1 - kept / np.append(1.0, kept[:-1]), timestep_map=timestep_map)
