"""Samplers: one function each, with the paper's algorithm in its docstring.

* ancestral: ddpm, ddim and repaint, which look at one network output at a time;
* multistep: dpm_solver_pp and unipc, which remember earlier ones and need fewer;
* guidance: a network's answers pushed away from those without a label, or without the given frames;
* loop: what they share.

Given positions carry their clean values: `x_t = where(mask, x_t, clean)` before the first step and after each, so that
the network sees them clean, they come out bit-equal, and what the sampler would have made of them, which no training
ever constrained and which can overflow, never enters.
"""

from vdt_jax.diffusion.guidance import guide
from vdt_jax.diffusion.samplers.ancestral import ddim, ddpm, repaint
from vdt_jax.diffusion.samplers.loop import Sampling, advance, run, sample_noise
from vdt_jax.diffusion.samplers.multistep import dpm_solver_pp, unipc

__all__ = [
    "SAMPLERS",
    "Sampling",
    "advance",
    "ddim",
    "ddpm",
    "dpm_solver_pp",
    "guide",
    "repaint",
    "run",
    "sample_noise",
    "unipc",
]

SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm_solver_pp": dpm_solver_pp, "unipc": unipc, "repaint": repaint}
