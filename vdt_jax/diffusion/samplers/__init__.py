"""Samplers, one algorithm per file, with one network call per step.

* ddpm, ddim, repaint: use the newest network output only;
* dpm_solver_pp, unipc: solvers of the probability-flow ODE that also use earlier outputs and need fewer steps.

Each takes a `Problem` and its own options, and returns the state before the first step and a function
`(i, state) -> state` for the steps i = 0, ..., T - 1, the noisiest first. The first array of a state is x_t, after the
last step the samples (`solve`). All are traceable. Given positions carry their clean values:
`x_t = where(mask, x_t, clean)` before the first step and after each. So the network receives them clean, they come out
bit-equal, and the sampler's own values there, which training does not constrain and which may overflow, are never used.
"""

from vdt_jax.diffusion.samplers.common import Problem, Steps, sample_noise, samples_of, solve
from vdt_jax.diffusion.samplers.ddim import ddim
from vdt_jax.diffusion.samplers.ddpm import ddpm
from vdt_jax.diffusion.samplers.dpm_solver_pp import dpm_solver_pp
from vdt_jax.diffusion.samplers.repaint import repaint
from vdt_jax.diffusion.samplers.unipc import unipc

SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm_solver_pp": dpm_solver_pp, "unipc": unipc, "repaint": repaint}

__all__ = [
    "SAMPLERS",
    "Problem",
    "Steps",
    "ddim",
    "ddpm",
    "dpm_solver_pp",
    "repaint",
    "sample_noise",
    "samples_of",
    "solve",
    "unipc",
]
