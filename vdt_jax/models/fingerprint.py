"""A hash of a network's sizes and parameters, independent of its name and path."""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np
from flax import linen as nn

# Fields that do not change what a network computes.
_HOW = ("dtype", "remat", "unroll", "attention", "gather", "parent", "name")


def fingerprint(model: nn.Module, params: Any) -> str:
    """SHA-256 in hexadecimal of a network's sizes and parameters."""
    names = [field.name for field in dataclasses.fields(model) if field.name not in _HOW]
    digest = hashlib.sha256(repr([(name, getattr(model, name)) for name in names]).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
