"""Devices as a mesh, and arrays spread over it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdt_jax.errors import UserError


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with one axis, `data`, over all devices (of all hosts), or over the first few.

    Its axes are Auto: Explicit, the default of jax.make_mesh, and Linen do not go together.
    """
    devices = np.array(jax.devices()[:num_devices])
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's part of a batch, onto the devices: arrays whose axis 0 is the global batch."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), x), batch)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError where the global batch cannot be split evenly; it is never changed to fit."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(f"batch_size={batch_size} is the batch of all {mesh.size} devices together: make it a multiple")
