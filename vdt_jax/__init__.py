"""VDT, the Video Diffusion Transformer (Lu et al., ICLR 2024, arXiv 2305.13311), in JAX and Flax.

loaded = vdt_jax.load("demo")
mask = vdt_jax.task_masks(0, range(2), "predict", loaded.model)
samples = vdt_jax.generate(*loaded[:2], loaded.diffusion(20), clean, mask, vdt_jax.sample_keys(0, range(2)))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdt_jax.inference.generation import (
        generate,
        generate_clips,
        load,
        load_model,
        load_vae,
        sample_keys,
        task_masks,
    )

__all__ = ["generate", "generate_clips", "load", "load_model", "load_vae", "sample_keys", "task_masks"]


def __getattr__(name: str) -> Any:
    """These names are looked up when they are asked for, so that `import vdt_jax` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'vdt_jax' has no attribute '{name}'")
    return getattr(importlib.import_module("vdt_jax.inference.generation"), name)
