"""Networks over many rows: in batches of one size, each spread over all devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdt_jax.distributed.mesh import batch_sharding, map_batches, replicated


def over_batches(
    function: Callable[..., jax.Array], params: Any, mesh: Mesh, batch_size: int
) -> Callable[..., np.ndarray]:
    """A jitted `function(params, *arrays) -> array`, row by row, that takes any number of rows.

    Products are in full float32 on every device, so that devices agree.

    Args:
      function: of a network; row i of its result depends on row i of the arrays only.
      params: of the network.
      mesh: the devices.
      batch_size: rows at once, rounded up to a multiple of the number of devices.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    params, sharding = jax.device_put(params, replicated(mesh)), batch_sharding(mesh)
    jitted = jax.jit(function, out_shardings=sharding)

    def one_batch(*rows: np.ndarray) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return jitted(params, *jax.device_put(rows, sharding))

    return functools.partial(map_batches, one_batch, batch_size)
