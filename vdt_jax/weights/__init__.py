"""Weights of other people's PyTorch models, in and out: names, layouts, sizes.

* sources: which of a file's dicts are the weights;
* tables: rows of (their name, our path, layout), carried out both ways, strictly;
* vdt, dit, autoencoder: the tables, and what the shapes say about the model;
* positions: the position tables for other sizes of frames and clips.

Nothing is skipped in silence: every name is used or reported as ignored with a reason, every parameter is filled, and
all that does not fit is said at once.
"""

from vdt_jax.weights.vdt import from_torch, read_sizes, to_torch

__all__ = ["from_torch", "read_sizes", "to_torch"]
