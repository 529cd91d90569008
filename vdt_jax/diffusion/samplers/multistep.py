"""The exact solution of the probability-flow ODE, and its weights, for dpm_solver_pp and unipc.

With lambda = log(alpha / sigma), half the log of the signal-to-noise ratio, the ODE has the exact solution (Lu et al.
2022, arXiv 2211.01095, proposition 4.1)

    x_t = (sigma_t / sigma_s) x_s + alpha_t int_{lambda_s}^{lambda_t} exp(lambda - lambda_t) x_0(lambda) dlambda  (1)

where x_0(lambda) is the network's estimate along the path. A solver interpolates some of the estimates by a polynomial:
then x_t is a weighted sum of x_s and these, with weights that depend on the schedule only. They are float64 tables, so
that a step is a dot product.

The last step leads to no noise, lambda = infinity, where (1) is the newest estimate. Given positions hold their clean
values in the estimates too.

`lower_order_final` is an option of the authors of both solvers: the last of the T levels is reached with order 1, the
one before it with order 2 at most, and so on. With even steps the last interval of lambda is by far the longest, and
extrapolating the estimates that far overshoots where data have sharp peaks.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdt_jax.diffusion.schedules import NoiseSchedule, Table


def levels(schedule: NoiseSchedule) -> tuple[Table, Table, Table]:
    """alpha, sigma and lambda, (T,) each, the noisiest first."""
    return schedule.alpha[::-1], schedule.sigma[::-1], schedule.half_log_snr[::-1]


def either(
    lower_order_final: jax.Array | bool, weights: Callable[[bool], tuple[np.ndarray, ...]]
) -> list[Float[Array, "..."]]:
    """The tables `weights(lower_order_final)` of an option that may be traced."""
    return [jnp.where(lower_order_final, *tables) for tables in zip(weights(True), weights(False), strict=True)]


def polynomial_weights(nodes: Float[np.ndarray, " n"], start: float, end: float) -> Float[np.ndarray, " n"]:
    """Weights for which sum_j w_j p(nodes_j) is the integral in (1), from start to end, of polynomials of degree < n.

    In v = (lambda - start) / (end - start) the moments of exp(lambda - end) are, by parts, I_0 = 1 - exp(-h) and
    I_k = 1 - (k / h) I_{k-1} with h = end - start; for small h, where that loses digits, the series is summed.
    """
    h, n = end - start, len(nodes)
    if h > 0.5:
        moments = [-np.expm1(-h)]
        for k in range(1, n):
            moments.append(1 - k / h * moments[-1])
        moments = np.array(moments)
    else:  # int_0^1 h exp(h (v - 1)) v^k dv = h sum_j (-h)^j k! / (k + j + 1)!
        moments = np.zeros(n)
        for k in range(n):
            term = h / (k + 1)
            for j in range(30):
                moments[k] += term
                term *= -h / (k + j + 2)
    powers = ((nodes - start) / h)[None, :] ** np.arange(n)[:, None]
    return np.linalg.solve(powers, moments)
