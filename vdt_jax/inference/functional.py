"""Sampling of arrays: `generate`, a pure function, and `generate_on_devices`, which runs it on a batch of any size.

Both run the loop of a sampler in one compiled program, which serves every batch of the same shape and all scales of
guidance.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from vdt_jax.diffusion.blend import linear_blend
from vdt_jax.diffusion.gaussian import GaussianDiffusion
from vdt_jax.diffusion.guidance import check_guidance_interval, guide
from vdt_jax.diffusion.masks import apply_mask, task_mask
from vdt_jax.diffusion.samplers import SAMPLERS, Problem, Steps, sample_noise, samples_of
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT

AnyArray = Array | np.ndarray
Scale = jax.Array | float | int | None
Interval = tuple[float, ...] | list[float] | AnyArray | None

_OPTIONS = {  # of which samplers, smallest and largest value
    "eta": (("ddim",), 0, 1),
    "resamples": (("repaint",), 1, np.inf),
    "lower_order_final": (("dpm_solver_pp", "unipc"), 0, 1),
    "given_noise": (("ddpm", "ddim", "dpm_solver_pp", "unipc"), 0, 1),
}
_NUM_CHUNKS = 20  # of a loop that reports progress


def sample_keys(seed: int, numbers: Iterable[int]) -> Key[Array, " b"]:
    """A random key for each sample number (B,): a sample depends on the seed and its number, not on its batch."""
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.asarray(list(numbers)))


def task_masks(
    seed: int, numbers: Iterable[int], task: str, model: VDT, num_given: int | None = None, mixture: str = "varied"
) -> Float[Array, "b f h w 1"]:
    """The masks of a task for these sample numbers, over what the model denoises; 1 = generate, 0 = given.

    See `diffusion.masks.task_mask` for the tasks, `num_given` and `mixture`.
    """
    return _task_masks(sample_keys(seed, numbers), task, model.video_shape[:3], num_given, mixture)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _task_masks(keys: Any, task: str, shape: tuple[int, int, int], num_given: int | None, mixture: str) -> Any:
    return jax.vmap(lambda key: task_mask(jax.random.fold_in(key, 5), task, shape, num_given, mixture))(keys)


def generate(
    model: VDT,
    params: PyTree,
    diffusion: GaussianDiffusion,
    clean: Float[AnyArray, "b f h w c"],
    mask: Float[AnyArray, "b f h w 1"],
    keys: Key[Array, " b"],
    *,
    sampler: str = "ddpm",
    labels: Int[AnyArray, " b"] | None = None,
    guidance_interval: Interval = None,
    **options: Scale,
) -> Float[Array, "b f h w c"]:
    """Samples the positions that the mask selects: a pure function, for use within `jax.jit`, `jax.vmap`, `jax.grad`.

    Args:
      model: the network.
      params: its parameters.
      diffusion: the respaced process; its length is the number of network calls.
      clean: (B, F, h, w, C) in [-1, 1], or latents; read where mask = 0.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.
      keys: (B,) one random key for each sample.
      sampler: one of SAMPLERS.
      labels: (B,) classes in 0..num_classes; the last, the default, means "no label". Ignored by a model of one class.
      guidance_interval: (low, high), the noise levels at which the scales of guidance apply; see `guide`.
      options: `guidance` and `mask_guidance`, scales of `guide`; `given_noise` there, 0 to 1, not with `repaint`; `eta`
        of `ddim`, 0 to 1; `lower_order_final` of `dpm_solver_pp` and `unipc`; `resamples` of `repaint`, at least 1,
        which has no reverse-mode gradient. None is the same as leaving an option out.

    Returns:
      The samples (B, F, h, w, C), equal to `clean` where mask = 0.

    Raises:
      UserError: arrays of a wrong shape or type, an unknown sampler, `repaint` or `mask_guidance` for a diffusion of
        residuals, an option of a different sampler or out of range, or unknown labels. Values that are traced are not
        checked.
    """
    arguments = (model, params, diffusion, clean, mask, keys, sampler, labels, guidance_interval)
    return _generate(_request(*arguments, **options))


def generate_on_devices(
    *arguments: Any, on_steps: Callable[[int], object] | None = None, **options: Any
) -> Float[np.ndarray, "b f h w c"]:
    """`generate` with the same arguments, spread over the devices that hold the parameters.

    Hosts that share the parameters must all call this, with the same values, and each receives all samples.

    Args:
      on_steps: called with the number of steps done since the last call, some 20 times in total. It changes no bits.
    """
    whole = _request(*arguments, **options)
    request = _spread(whole)
    state, num_steps = _begin(request), len(request.diffusion.schedule)
    chunk = num_steps if on_steps is None else -(-num_steps // _NUM_CHUNKS)
    for first in range(0, num_steps, chunk):
        last = min(first + chunk, num_steps)
        state = _advance(request, state, first, last)
        if on_steps is not None:
            jax.block_until_ready(state)
            on_steps(last - first)
    samples = _samples(request, state)
    if not samples.is_fully_addressable:
        samples = multihost_utils.process_allgather(samples, tiled=True)
    return np.asarray(samples)[: len(whole.keys)]


def measure_step(*arguments: Any, **options: Any) -> tuple[int, float]:
    """Of `generate_on_devices`: bytes on each device, parameters included, and seconds of one step."""
    request = _spread(_request(*arguments, **options))
    state = _begin(request)
    program = _advance.lower(request, state, 0, 1).compile()
    memory: Any = program.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    size -= memory.alias_size_in_bytes  # of the state, which is donated
    state = jax.block_until_ready(program(request, state, 0, 1))
    start = time.monotonic()
    jax.block_until_ready(program(request, state, 0, 1))
    return size, time.monotonic() - start


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Request:
    """The arguments of `generate`, checked; static are those that a program is compiled for."""

    model: VDT = dataclasses.field(metadata={"static": True})
    diffusion: GaussianDiffusion = dataclasses.field(metadata={"static": True})
    sampler: str = dataclasses.field(metadata={"static": True})
    # Checked by `generate`; JAX also builds this class with leaves that are not arrays.
    params: Any
    clean: Any  # (B, F, h, w, C)
    mask: Any  # (B, F, h, w, 1)
    keys: Any  # (B,)
    labels: Any  # (B,)
    guiding: dict[str, Any]  # of `guide`
    sampler_options: dict[str, Any]

    def steps(self) -> Steps:
        """The state of the sampler before its first step, and its step."""
        params = _cast_kernels(self.params, self.model.dtype)
        clean, mask, labels = (jnp.asarray(x) for x in (self.clean, self.mask, self.labels))

        def network(x_t, timesteps, labels) -> Any:
            return self.model.apply({"params": params}, x_t, timesteps, labels)

        noise = sample_noise(jax.vmap(lambda key: jax.random.fold_in(key, 3))(self.keys), clean.shape[1:])
        null_label = self.model.null_label
        denoise_fn = guide(network, self.diffusion, labels, clean, mask, noise, null_label=null_label, **self.guiding)
        problem = Problem(self.diffusion, denoise_fn, self.keys, clean, mask)
        return SAMPLERS[self.sampler](problem, **self.sampler_options)


def _request(
    model: VDT,
    params: PyTree,
    diffusion: GaussianDiffusion,
    clean: AnyArray,
    mask: AnyArray,
    keys: jax.Array,
    sampler: str = "ddpm",
    labels: Int[AnyArray, " b"] | None = None,
    guidance_interval: Interval = None,
    **options: Scale,
) -> _Request:
    """Checks the arguments of `generate` and fills in its defaults."""
    if diffusion.learn_sigma != model.learn_sigma:
        raise UserError(
            f"the diffusion has learn_sigma={diffusion.learn_sigma}, the model {model.learn_sigma}: make it with "
            "Pipeline.diffusion(steps), or with the learn_sigma of the model"
        )
    _check_arrays(model, clean, mask, keys, labels)
    guidance, mask_guidance = options.pop("guidance", None), options.pop("mask_guidance", None)
    options = {name: value for name, value in options.items() if value is not None}
    _check_sampler(sampler, options)
    if diffusion.residual and (sampler == "repaint" or mask_guidance is not None):
        raise UserError(
            "a residual model needs the given frames, which sampler=repaint and mask_guidance hide: "
            f"leave out mask_guidance, and choose one of {', '.join(sorted(set(SAMPLERS) - {'repaint'}))}"
        )
    if guidance_interval is not None and all(map(_known, guidance_interval)):
        check_guidance_interval(guidance_interval, guidance, mask_guidance)
    if guidance is not None and model.num_classes == 1:
        raise UserError("guidance needs a model with classes, and this one has no classes: use mask_guidance")
    if guidance is not None and labels is None:
        raise UserError(f"guidance={guidance} needs labels: pass the class of each sample")
    if model.num_classes == 1:
        labels = np.zeros(len(keys), np.int32)
    elif labels is None:
        labels = np.full(len(keys), model.null_label, np.int32)
    elif _known(labels):
        check_labels(labels, model)
    guiding = {"guidance": guidance, "mask_guidance": mask_guidance, "guidance_interval": guidance_interval}
    guiding["given_noise"] = options.pop("given_noise", None)
    scanned = model.clone(unroll=1)  # unrolled, which is for training, it is no faster and takes long to compile
    return _Request(scanned, diffusion, sampler, params, clean, mask, keys, labels, guiding, options)


def check_labels(labels: Any, model: VDT) -> None:
    """Raises UserError where labels (B,) are no classes of a model."""
    if not bool(((labels >= 0) & (labels <= model.num_classes)).all()):
        raise UserError(f"labels must be 0 to {model.num_classes} (the last is 'no label'), got {labels.tolist()}")


def _check_arrays(model: VDT, clean: Any, mask: Any, keys: Any, labels: Any) -> None:
    if not keys.shape:
        raise UserError("keys must be one for each sample, (B,), got a single key: use sample_keys(seed, range(B))")
    shape = (len(keys), *model.video_shape)
    wanted = {"clean": (clean, shape), "mask": (mask, (*shape[:-1], 1)), "labels": (labels, shape[:1])}
    for name, (array, expected) in wanted.items():
        if array is not None and np.shape(array) != expected:
            raise UserError(f"{name} must have shape {expected} with this model and keys, got {np.shape(array)}")
    if not jnp.issubdtype(clean.dtype, jnp.floating):
        raise UserError(f"clean must be floats in [-1, 1], got {clean.dtype}: uint8 / 127.5 - 1")


def _check_sampler(sampler: str, options: dict[str, Any]) -> None:
    if sampler not in SAMPLERS:
        raise UserError(f"sampler must be one of {', '.join(SAMPLERS)}, got '{sampler}'")
    for name, value in options.items():
        if name not in _OPTIONS:
            raise TypeError(f"generate() got an unexpected keyword argument '{name}'")
        owners, minimum, maximum = _OPTIONS[name]
        if sampler not in owners:
            raise UserError(f"{name}={value} is for sampler {' or '.join(owners)}, not {sampler}: leave it out")
        if _known(value) and not value >= minimum:
            raise UserError(f"{name} must be >= {minimum}, got {value}")
        if _known(value) and not value <= maximum:
            raise UserError(f"{name} must be <= {maximum}, got {value}")


def _known(value: Any) -> bool:
    """Whether a value can be checked now: not while a function of it is traced."""
    return not isinstance(value, Tracer)


def _cast_kernels(params: PyTree, dtype: Any) -> PyTree:
    """Casts matrices to the dtype that the layers would cast them to in each call, once for all steps."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
    )


def _spread(request: _Request) -> _Request:
    """The request with its samples divided evenly over the devices; the last sample is repeated to fill them."""
    mesh, size = _mesh_of(request.params), len(request.keys)
    inputs: dict[str, Any] = {name: np.asarray(getattr(request, name)) for name in ("clean", "mask", "labels")}
    inputs["keys"] = request.keys
    if size % mesh.size:
        rows = np.minimum(np.arange(-(-size // mesh.size) * mesh.size), size - 1)
        inputs = {name: x[rows] for name, x in inputs.items()}
    inputs = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("samples")))
    return dataclasses.replace(request, **inputs)


def _mesh_of(params: PyTree) -> Mesh:
    """The devices that hold the parameters: of all hosts, or of one host that samples alone."""
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.sharding.device_set if isinstance(leaf, jax.Array) else jax.local_devices()[:1]
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("samples",), axis_types=(AxisType.Auto,))


def _samples(request: _Request, state: PyTree) -> Float[Array, "b f h w c"]:
    """The samples in the state after the last step."""
    samples = samples_of(state)
    return _add_blend(request, samples) if request.diffusion.residual else samples


@jax.jit
def _add_blend(request: _Request, residuals: Any) -> Float[Array, "b f h w c"]:
    mask = jnp.asarray(request.mask)
    samples = apply_mask(mask, residuals + linear_blend(jnp.asarray(request.clean), mask), residuals)
    return jnp.clip(samples, -1, 1) if request.diffusion.clip_denoised else samples


@jax.jit
def _generate(request: _Request) -> Float[Array, "b f h w c"]:
    state, step = request.steps()
    return _samples(request, jax.lax.fori_loop(0, len(request.diffusion.schedule), step, state))


@jax.jit
def _begin(request: _Request) -> PyTree:
    """The state of the sampler before the first step."""
    return request.steps()[0]


@functools.partial(jax.jit, donate_argnums=1)
def _advance(request: _Request, state: PyTree, first: Any, last: Any) -> PyTree:
    """The state after the steps first, ..., last - 1, given the state before them."""
    return jax.lax.fori_loop(first, last, request.steps()[1], state)
