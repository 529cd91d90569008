"""Samplers, one algorithm a file; each is a loop over the steps of a diffusion, with one network call a step.

* ddpm, ddim, repaint: use the newest network output only;
* dpm_solver_pp, unipc: solvers of the probability-flow ODE that also use earlier outputs and need fewer steps.

All take `(diffusion, denoise_fn, keys, clean, mask)` and return the samples `(B, F, h, w, C)`; all are traceable. Given
positions carry their clean values: `x_t = where(mask, x_t, clean)` before the first step and after each. So the network
receives them clean, they come out bit-equal, and the sampler's own values there, which training does not constrain and
which may overflow, are never used.
"""

from vdt_jax.diffusion.samplers.common import Loop, sample_noise
from vdt_jax.diffusion.samplers.ddim import ddim
from vdt_jax.diffusion.samplers.ddpm import ddpm
from vdt_jax.diffusion.samplers.dpm_solver_pp import dpm_solver_pp
from vdt_jax.diffusion.samplers.repaint import repaint
from vdt_jax.diffusion.samplers.unipc import unipc

__all__ = ["SAMPLERS", "Loop", "ddim", "ddpm", "dpm_solver_pp", "repaint", "sample_noise", "unipc"]

SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm_solver_pp": dpm_solver_pp, "unipc": unipc, "repaint": repaint}
