"""VDT, the Video Diffusion Transformer (Lu et al., ICLR 2024, arXiv 2305.13311), in JAX and Flax.

    pipe = vdt_jax.Pipeline.load("demo")
    clip = pipe.predict("clip.mp4", num_given=4, steps=20)
    clip.save("out.mp4")

Below `Pipeline`: `generate` samples arrays with a network and its parameters.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdt_jax.checkpoints import load_model
    from vdt_jax.diffusion.gaussian import make_diffusion
    from vdt_jax.errors import UserError
    from vdt_jax.inference.clip import Clip
    from vdt_jax.inference.functional import generate, sample_keys, task_masks
    from vdt_jax.inference.pipeline import Pipeline
    from vdt_jax.models.vdt import VDT

_HOMES = {
    "Clip": "vdt_jax.inference.clip",
    "Pipeline": "vdt_jax.inference.pipeline",
    "UserError": "vdt_jax.errors",
    "VDT": "vdt_jax.models.vdt",
    "generate": "vdt_jax.inference.functional",
    "load_model": "vdt_jax.checkpoints",
    "make_diffusion": "vdt_jax.diffusion.gaussian",
    "sample_keys": "vdt_jax.inference.functional",
    "task_masks": "vdt_jax.inference.functional",
}
__all__ = [
    "VDT",
    "Clip",
    "Pipeline",
    "UserError",
    "generate",
    "load_model",
    "make_diffusion",
    "sample_keys",
    "task_masks",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import vdt_jax` is fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vdt_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
