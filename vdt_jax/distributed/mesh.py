"""The device mesh, and arrays sharded over it.

The mesh has two axes. The batch is split over both. Parameters, EMA and optimizer state are replicated along `data` and
split along `fsdp` (fully sharded data parallelism: Rajbhandari et al. 2020, arXiv 1910.02054, stage 3) by the rules
`FSDP_RULES`. XLA's partitioner inserts the communication.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdt_jax.errors import UserError

GATHERED = "gathered"

# [(path regex, spec)]: the first match in a path counts. Paths of the EMA and of the optimizer's moments end with the
# path of their parameter. Kernels of blocks are (depth, in, out); all other parameters are half a percent of a VDT.
FSDP_RULES = (
    (r"blocks/.*/kernel$", PartitionSpec(None, None, "fsdp")),
    (r"", PartitionSpec()),
)


def make_mesh(num_devices: int | None = None, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh (data, fsdp) of all devices of all processes.

    Neighbours along `fsdp` are devices of one host where it has enough. Each host's share of a batch is contiguous and
    in the order of the hosts, so a run on other hosts sees the same batches.

    The axes are Auto, because Linen does not work with Explicit, the default of jax.make_mesh.

    Args:
      num_devices: takes the first N devices.
      fsdp: number of devices that each parameter is split over; 1 is pure data parallelism.
      devices: default: jax.devices(); a topology to compile for has its own.
    """
    chosen = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))[:num_devices]
    if len(chosen) % fsdp:
        raise UserError(f"mesh.fsdp must divide the number of devices, {len(chosen)}, got {fsdp}")
    return Mesh(np.array(chosen).reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose axis 0 is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def path_name(path: Any) -> str:
    """The path of a leaf, as jax.tree_util gives it, in the form a/b/c of rules and configs."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of a state, by FSDP_RULES; axes that `fsdp` does not divide stay whole."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = next(spec for pattern, spec in FSDP_RULES if re.search(pattern, name))
        if len(spec) > leaf.ndim or any(axis and leaf.shape[i] % mesh.shape[axis] for i, axis in enumerate(spec)):
            spec = PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def gather_whole(mesh: Mesh, dtype: Any) -> Callable[[Any], Any]:
    """A function that gathers the parameters of one block on every device, in `dtype`, the dtype of the computation.

    Their gradients are summed and split again in float32: a gathered kernel is an array of float32 values, rounded to
    `dtype` (XLA removes the conversions). The gathers are explicit, because the partitioner alone moves activations
    instead of weights. Gathered arrays are named GATHERED, so that they are not kept for the backward pass.
    """

    @jax.custom_vjp
    def gather(kernel: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(kernel.astype(dtype), replicated(mesh)).astype(np.float32)

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
        return (jax.lax.with_sharding_constraint(gradient, split),)

    gather.defvjp(lambda kernel: (gather(kernel), None), backward)

    def whole(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2 or leaf.shape[1] % mesh.shape["fsdp"]:
            return leaf
        return checkpoint_name(gather(leaf), GATHERED)

    return lambda params: jax.tree.map(whole, params)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes with shardings, as restoring a checkpoint takes them."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def put_whole(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every process has whole onto the devices of all processes."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def on_one_device(tree: Any, mesh: Mesh) -> Any:
    """Gathers sharded arrays on the first device of this process; every process must call it."""
    if mesh.shape["fsdp"] > 1:
        tree = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this host's part of a batch onto the devices: arrays whose axis 0 is the global batch."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), x), batch)


def map_batches(function: Callable[..., Any], size: int, *arrays: np.ndarray) -> np.ndarray:
    """The results of a function of `size` rows of arrays at a time, concatenated.

    The last row is repeated in the last batch, so that a smaller batch needs no program of its own.
    """
    length, results = len(arrays[0]), []
    for first in range(0, length, size):
        rows = np.minimum(np.arange(first, first + size), length - 1)
        results.append(np.asarray(function(*(array[rows] for array in arrays))))
    return np.concatenate(results)[:length]


def check_batch_size(batch_size: int, mesh: Mesh, grad_accum: int = 1) -> None:
    """Raises UserError where the global batch cannot be split evenly; it is never adjusted."""
    if batch_size % (mesh.size * grad_accum):
        parts = f"{mesh.size} devices" + (f" x {grad_accum} parts (grad_accum)" if grad_accum > 1 else "")
        raise UserError(f"batch_size (the global batch size) must be a multiple of {parts}, got {batch_size}")
