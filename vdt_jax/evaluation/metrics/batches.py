"""Networks over many rows: in batches of one size, each spread over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdt_jax.distributed.mesh import batch_sharding, replicated


def over_batches(
    function: Callable[..., jax.Array], params: Any, mesh: Mesh, batch_size: int
) -> Callable[..., np.ndarray]:
    """A jitted `function(params, *arrays) -> array`, rows to rows, that takes any number of rows.

    The last batch is filled up with its own last row, and what comes of that is thrown away: one program serves any
    number of rows. Products are taken in full float32 on every device, so that devices agree.

    Args:
      batch_size: rows at once, rounded up to a multiple of the devices of the mesh.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    params = jax.device_put(params, replicated(mesh))
    sharding = batch_sharding(mesh)
    jitted = jax.jit(function, out_shardings=sharding)

    def apply(*arrays: np.ndarray) -> np.ndarray:
        results = []
        for start in range(0, len(arrays[0]), batch_size):
            rows = [np.asarray(array[start : start + batch_size]) for array in arrays]
            count = len(rows[0])
            padded = [np.concatenate([row, row[-1:].repeat(batch_size - count, 0)]) for row in rows]
            with jax.default_matmul_precision("highest"):
                result = jitted(params, *(jax.device_put(row, sharding) for row in padded))
            results.append(np.asarray(result)[:count])
        return np.concatenate(results)

    return apply
