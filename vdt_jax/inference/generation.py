"""From a checkpoint and clips to samples: what the scripts call.

The loop over steps is one program, compiled for the shapes of a batch and reused for any other batch, scale of
guidance or stretch of steps. A batch is spread over the devices that hold the parameters.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdt_jax.diffusion.gaussian import GaussianDiffusion
from vdt_jax.diffusion.masks import task_mask
from vdt_jax.diffusion.samplers import SAMPLERS, advance, guide, sample_noise
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT

_OPTIONS_OF = {"eta": "ddim", "resamples": "repaint"}
_PROGRESS_PARTS = 20  # stretches of steps between two words to whoever watches


def sample_keys(seed: int, numbers: range) -> jax.Array:
    """A key for each sample number: a sample depends on the seed and its number, not on its batch."""
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.asarray(numbers))


def task_masks(seed: int, numbers: range, task: str, model: VDT, num_given: int | None = None) -> jax.Array:
    """The masks (B, F, h, w, 1) of a task for these sample numbers; 1 = generate, 0 = given."""
    return _task_masks(sample_keys(seed, numbers), task, model.video_shape[:3], num_given)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _task_masks(keys: jax.Array, task: str, shape: tuple[int, int, int], num_given: int | None) -> jax.Array:
    return jax.vmap(lambda key: task_mask(jax.random.fold_in(key, 1), task, shape, num_given))(keys)


def generate(
    model: VDT,
    params: Any,
    diffusion: GaussianDiffusion,
    clean: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
    keys: jax.Array,
    *,
    sampler: str = "ddpm",
    labels: jax.Array | np.ndarray | None = None,
    on_steps: Callable[[int], object] | None = None,
    **options: float | None,
) -> np.ndarray:
    """Samples what the mask asks for.

    Args:
      params: on the devices to sample on, on each of them or spread: all of them where `load` put them.
      clean: (B, F, H, W, C) in [-1, 1], read where mask = 0.
      mask: (B, F, H, W, 1), 1 = generate, 0 = given.
      keys: (B,) one for each sample.
      sampler: one of SAMPLERS.
      labels: (B,) classes; None is "no label". A model of one class does not look at them.
      on_steps: told now and then how many more steps are done.
      options: guidance (on labels) and mask_guidance (on what is given), scales of `guide`; eta of ddim; resamples of
        repaint. None is as if not said.

    Returns:
      (B, F, H, W, C), equal to `clean` where mask = 0. Hosts that share the parameters must all call this, with the
      same values, and each gets all of it.

    Raises:
      UserError: an unknown sampler, an option that it does not have, or a label that the model does not have.
    """
    size, arguments = len(keys), _arguments(model, params, diffusion, clean, mask, keys, sampler, labels, options)
    state, num_steps = _begin(*arguments), len(diffusion.schedule)
    stretch = num_steps if on_steps is None else -(-num_steps // _PROGRESS_PARTS)
    for first in range(0, num_steps, stretch):
        last = min(first + stretch, num_steps)
        state = _advance(*arguments, state, first, last)
        if on_steps is not None:
            jax.block_until_ready(state)
            on_steps(last - first)
    samples = state[0]
    if not samples.is_fully_addressable:
        samples = multihost_utils.process_allgather(samples, tiled=True)
    return np.asarray(samples)[:size]


def measure_step(
    model: VDT,
    params: Any,
    diffusion: GaussianDiffusion,
    clean: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
    keys: jax.Array,
    *,
    sampler: str = "ddpm",
    labels: jax.Array | np.ndarray | None = None,
    **options: float | None,
) -> tuple[int, float]:
    """What `generate` would cost, with the same arguments: bytes that its program takes on each device, parameters and
    all, and seconds for one of its steps,"""
    arguments = _arguments(model, params, diffusion, clean, mask, keys, sampler, labels, options)
    state = _begin(*arguments)
    program = _advance.lower(*arguments, state, 0, 1).compile()
    memory: Any = program.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    size -= memory.alias_size_in_bytes  # the state is given away
    state = jax.block_until_ready(program(*arguments[3:], state, 0, 1))
    start = time.monotonic()
    jax.block_until_ready(program(*arguments[3:], state, 0, 1))
    return size, time.monotonic() - start


def _arguments(model, params, diffusion, clean, mask, keys, sampler, labels, options) -> tuple:
    """What `_begin` and `_advance` take, on the devices."""
    options = {name: value for name, value in options.items() if value is not None}
    _check(model, sampler, options)
    if model.num_classes == 1:
        labels = np.zeros(len(keys), np.int32)
    elif labels is None:
        if "guidance" in options:
            raise UserError(f"guidance={options['guidance']} pushes towards a class: say which (--labels)")
        labels = np.full(len(keys), model.null_label, np.int32)
    elif not bool(((labels >= 0) & (labels <= model.num_classes)).all()):
        raise UserError(f"labels {labels.tolist()} are not all in 0..{model.num_classes} (the last is 'no label')")
    mesh, size = _mesh_of(params), len(keys)
    inputs = {"clean": np.asarray(clean), "mask": np.asarray(mask), "labels": np.asarray(labels), "keys": keys}
    if size % mesh.size:  # every device takes the same number: the last sample several times
        rows = np.minimum(np.arange(-(-size // mesh.size) * mesh.size), size - 1)
        inputs = {name: x[rows] for name, x in inputs.items()}
    inputs = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("samples")))
    return model, diffusion, sampler, params, inputs, options


def _mesh_of(params: Any) -> Mesh:
    """The devices that hold the parameters: of all hosts, or of one that samples while the others do not."""
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.sharding.device_set if isinstance(leaf, jax.Array) else jax.local_devices()[:1]
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("samples",), axis_types=(AxisType.Auto,))


def _check(model: VDT, sampler: str, options: Mapping[str, float]) -> None:
    if sampler not in SAMPLERS:
        raise UserError(f"no sampler '{sampler}': choose from {', '.join(SAMPLERS)}")
    for name, value in options.items():
        if name in _OPTIONS_OF and sampler != _OPTIONS_OF[name]:
            raise UserError(f"{name}={value} is for sampler {_OPTIONS_OF[name]}, not {sampler}: leave it out")
    if "guidance" in options and model.num_classes == 1:
        raise UserError("this model has no classes that guidance could push to: mask_guidance works with any model")
    if not 0 <= options.get("eta", 0.0) <= 1:
        raise UserError(f"eta={options['eta']} cannot be: 0 (nothing drawn) to 1 (as ddpm)")
    if options.get("resamples", 1) < 1:
        raise UserError(f"resamples={options['resamples']} cannot be: at least 1")


def _sampling(model, diffusion, sampler, params, inputs, options):
    clean, mask, labels, keys = (inputs[name] for name in ("clean", "mask", "labels", "keys"))
    options = dict(options)
    scales = {name: options.pop(name) for name in ("guidance", "mask_guidance") if name in options}
    params = _cast_kernels(params, model.dtype)

    def network(x_t, timesteps, labels):
        return model.apply({"params": params}, x_t, timesteps, labels)

    noise = sample_noise(jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys), clean.shape[1:])
    denoise_fn = guide(network, diffusion, labels, clean, mask, noise, null_label=model.null_label, **scales)
    return SAMPLERS[sampler](diffusion, denoise_fn, keys, clean, mask, **options)


def _cast_kernels(params: Any, dtype: Any) -> Any:
    """Matrices in the dtype that the layers would cast them to in each call, once for all steps."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(model, diffusion, sampler, params, inputs, options):
    return _sampling(model, diffusion, sampler, params, inputs, options).state


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=6)
def _advance(model, diffusion, sampler, params, inputs, options, state, first, last):
    return advance(_sampling(model, diffusion, sampler, params, inputs, options), state, first, last)
