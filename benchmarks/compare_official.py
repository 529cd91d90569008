"""The official PyTorch code beside this one: same device, same weights, same batch, outputs compared first.

    python benchmarks/compare_official.py --official=FOLDER

FOLDER is your own clone of github.com/RERV/VDT; nothing of it is here. It needs torch and timm, and the last three
kinds of --work also diffusers, which `make bench OFFICIAL=FOLDER` installs. Modes of the official code:

    stock     as it is, float32
    tf32      with TF32 matrix products (GPUs; elsewhere the same as stock)
    compiled  bfloat16 autocast and torch.compile, attention through SDPA, the default of timm

The training step is theirs and ours with AdamW and an EMA; the loss is the official one on both sides. Ours runs in
float32, TF32 and bfloat16 beside them. --work=video is interpolation from frames of 256x256 to frames: all are encoded
at once, sampled, and all decoded at once, by an autoencoder of the public ones' sizes. --work=encode and --work=decode
take --frames of them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs its share of the card

import jax
import numpy as np
import torch
from absl import flags
from measure import report, timed
from official import Official, load_official, to_torch, wait

from vdt_jax import cli
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.errors import UserError
from vdt_jax.inference.functional import generate_on_devices, sample_keys
from vdt_jax.latents.codec import encode_moments, sample_posterior
from vdt_jax.latents.space import VaeSpace
from vdt_jax.models.autoencoder import AutoencoderKL
from vdt_jax.models.vdt import REMAT, VDT, VDT_VARIANTS
from vdt_jax.training.memory import keep_freed_memory
from vdt_jax.training.optimizer import make_learning_rate, make_optimizer
from vdt_jax.training.step import TrainState, make_train_step
from vdt_jax.weights.autoencoder import from_torch, param_shapes
from vdt_jax.weights.tables import read_table
from vdt_jax.weights.vdt import vdt_table

WORK = ("forward", "training", "sampling", "encode", "decode", "video")
_OFFICIAL = flags.DEFINE_string("official", None, "A clone of the official repository.")
_MODEL = flags.DEFINE_enum("model", "VDT-S/2", list(VDT_VARIANTS), "Network.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Samples of 16 x 32x32 latents.")
_MODES = flags.DEFINE_multi_enum("mode", ["stock"], ("stock", "tf32", "compiled"), "May be given more than once.")
_WORK = flags.DEFINE_multi_enum("work", ["forward", "training", "sampling"], WORK, "May be given more than once.")
_SAMPLING_STEPS = flags.DEFINE_multi_integer("sampling_steps", [16], "May be given more than once.")
_FRAMES = flags.DEFINE_integer("frames", 16, "Frames that encode and decode take at once.", lower_bound=1)
_UNROLL = flags.DEFINE_integer("unroll", 1, "Blocks per iteration of our scan over depth.")
_REMAT = flags.DEFINE_enum("remat", "matmuls", list(REMAT), "Rematerialisation of our training step.")
_KEEP_MEMORY = flags.DEFINE_bool("keep_memory", False, "Keep freed memory, as train.py does; torch keeps it, too.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/compare_official.json", "The report.")

_PRECISION = {"stock": "highest", "tf32": "tensorfloat32", "compiled": None}  # of our products
_WORST = 1e-3  # relative to the largest value: float32 on both sides; TF32 and bf16 are reported, not judged
_WORST_DECODED = 3e-2  # in whatever precision ours has


def main(_) -> None:
    if _OFFICIAL.value is None or not (Path(_OFFICIAL.value) / "models.py").is_file():
        raise UserError(f"official must be a clone of github.com/RERV/VDT, with models.py, got {_OFFICIAL.value}")
    if _KEEP_MEMORY.value:
        keep_freed_memory()
    rows = []
    for mode in _MODES.value:
        torch.backends.cuda.matmul.allow_tf32 = mode != "stock"  # convolutions keep the default of torch
        jax.config.update("jax_default_matmul_precision", _PRECISION[mode])
        official = load_official(Path(_OFFICIAL.value), _MODEL.value, compiled=mode == "compiled")
        dtype = "bfloat16" if mode == "compiled" else "float32"
        ours = VDT(**VDT_VARIANTS[_MODEL.value], dtype=dtype, unroll=_UNROLL.value, remat=_REMAT.value)
        params = converted(official.model, ours)
        works = [work for work in ("forward", "training") if work in _WORK.value]
        pairs = {work: PAIRS[work](official, ours, params) for work in works}
        if "sampling" in _WORK.value:
            pairs |= {f"{n} steps": sampling_pair(official, ours, params, n) for n in _SAMPLING_STEPS.value}
        autoencoders = autoencoder_pair(official, mode) if {"encode", "decode", "video"} & set(_WORK.value) else None
        if "encode" in _WORK.value:
            pairs["encode"] = encode_pair(official, autoencoders, 8 * ours.frame_size[0])
        if "decode" in _WORK.value:
            pairs["decode"] = decode_pair(official, autoencoders, ours.frame_size[0])
        if "video" in _WORK.value:
            for n in _SAMPLING_STEPS.value:
                pairs[f"encode + {n} steps + decode"] = video_pair(official, ours, params, autoencoders, n)
        with torch.autocast(official.device.type, torch.bfloat16, enabled=mode == "compiled"):
            with torch.backends.cudnn.flags(allow_tf32=mode != "stock"):
                difference = largest_difference(official, ours, params)
            if mode == "stock" and difference > _WORST:
                raise SystemExit(f"the outputs differ by {difference:.1e} of the largest value: not the same network")
            timings = {work: timed(*pair, repeats=_REPEATS.value) for work, pair in pairs.items()}
        for work, (theirs, mine) in timings.items():
            rows.append(
                {
                    "official mode": mode,
                    "what": work,
                    "batch": _BATCH_SIZE.value,
                    "official": theirs,
                    "ours": mine,
                    "official / ours": f"{theirs.median / mine.median:.2f}",
                    "outputs differ by": f"{difference:.1e}",
                }
            )
    report(_OUTPUT.value, rows, ("torch", "timm"))


def converted(model: Any, ours: VDT) -> Any:
    """Their weights under our names, on the device."""
    weights = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    x, t = np.zeros((1, *ours.video_shape), np.float32), np.zeros(1)
    expected = jax.eval_shape(ours.init, jax.random.key(0), x, t)["params"]
    return jax.device_put(read_table(weights, vdt_table(ours.depth, ours.patch_size), expected)[0])


def clips(ours: VDT) -> np.ndarray:
    """Random latents (B, F, h, w, C)."""
    return np.random.default_rng(0).standard_normal((_BATCH_SIZE.value, *ours.video_shape), np.float32)


def largest_difference(official: Official, ours: VDT, params: Any) -> float:
    """The largest difference of the two outputs, relative to the largest value."""
    theirs, mine = (call() for call in forward_pair(official, ours, params))
    theirs = theirs.float().cpu().numpy().transpose(0, 1, 3, 4, 2)
    return float(np.abs(theirs - np.asarray(mine)).max() / np.abs(theirs).max())


def forward_pair(official: Official, ours: VDT, params: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One call of the network."""
    x, t = clips(ours), np.full(_BATCH_SIZE.value, 500)
    x_torch, t_torch = to_torch(official, x), torch.from_numpy(t).to(official.device)
    x, t = jax.device_put(x), jax.device_put(t.astype(np.int32))
    apply = jax.jit(lambda params, x, t: ours.apply({"params": params}, x, t))

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            out = official.network(x_torch, t_torch)
        wait(official)
        return out

    return theirs, lambda: jax.block_until_ready(apply(params, x, t))


def training_pair(official: Official, ours: VDT, params: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Loss, gradient, AdamW and EMA, interpolation masks for theirs and drawn masks for ours."""
    x = clips(ours)
    x_torch, diffusion = to_torch(official, x), official.create_diffusion(timestep_respacing="", training=True)
    mask = torch.ones(len(x), *ours.video_shape[:3], device=official.device)
    mask[:, ::4] = 0
    model = official.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    averages = [parameter.detach().clone() for parameter in trained]
    adamw = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0)

    def theirs() -> None:
        timesteps = torch.randint(0, 1000, (len(x),), device=official.device)
        adamw.zero_grad()
        losses = diffusion.training_losses(official.network, x_torch, timesteps, mask=mask)
        losses["loss"].mean().backward()
        adamw.step()
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in trained], 1e-4)
        wait(official)

    optimizer = make_optimizer(make_learning_rate(1e-4, 0, 1, "constant"))
    step = jax.jit(make_train_step(ours, make_diffusion(), optimizer, loss="parity"), donate_argnums=0)
    params = jax.tree.map(jax.numpy.copy, params)  # the step donates its state
    state = TrainState(
        jax.numpy.int32(0),
        params,
        jax.tree.map(jax.numpy.copy, params),
        optimizer.init(params),
        jax.numpy.zeros(2, int),
    )
    batch = {"video": jax.device_put(x), "labels": jax.numpy.zeros(len(x), int)}

    def mine() -> None:
        nonlocal state
        state, metrics = step(state, batch, jax.random.key(0))
        jax.block_until_ready(metrics)

    return theirs, mine


def sampling_pair(
    official: Official, ours: VDT, params: Any, num_steps: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Interpolation by ancestral sampling."""
    x = clips(ours)
    mask = np.ones((*x.shape[:-1], 1), np.float32)
    mask[:, ::4] = 0
    respaced = official.create_diffusion(timestep_respacing=str(num_steps))
    raw_x, mask_torch = to_torch(official, x), torch.from_numpy(mask[..., 0]).to(official.device)
    shape = (len(x), ours.in_channels, *ours.video_shape[:3])

    def theirs() -> None:
        respaced.p_sample_loop(
            official.network, shape, clip_denoised=False, device=official.device, raw_x=raw_x, mask=mask_torch
        )
        wait(official)

    diffusion, keys = make_diffusion(timestep_respacing=str(num_steps)), sample_keys(0, range(len(x)))
    clean, mask = jax.device_put(x), jax.device_put(mask)
    return theirs, lambda: jax.block_until_ready(generate_on_devices(ours, params, diffusion, clean, mask, keys))


def autoencoder_pair(official: Official, mode: str) -> tuple[Any, VaeSpace]:
    """The autoencoder of Stable Diffusion as diffusers builds it, with random weights, and ours with the same."""
    from diffusers import AutoencoderKL as TheirAutoencoder

    model = AutoencoderKL(dtype="bfloat16" if mode == "compiled" else "float32")
    levels = len(model.block_out_channels)
    theirs = TheirAutoencoder(
        block_out_channels=model.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=model.layers_per_block,
    )
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = jax.device_put(from_torch(weights, param_shapes(model)))
    latents = np.random.default_rng(0).standard_normal((1, 8, 8, model.latent_channels), np.float32)
    mine = np.asarray(model.apply({"params": params}, latents, method="decode")).transpose(0, 3, 1, 2)
    with torch.no_grad():
        decoded = theirs.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2))).sample.numpy()
    if (difference := np.abs(decoded - mine).max() / np.abs(decoded).max()) > _WORST_DECODED:
        raise SystemExit(f"decoded frames differ by {difference:.1e} of the largest value: not the same autoencoder")
    if mode == "compiled":
        theirs.encoder, theirs.decoder = torch.compile(theirs.encoder), torch.compile(theirs.decoder)
    return theirs.to(official.device).eval(), VaeSpace(model, params)


def encode_pair(official: Official, autoencoders: Any, size: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Square frames to the distributions of their latents."""
    theirs, mine = autoencoders
    frames = np.random.default_rng(0).uniform(-1, 1, (1, _FRAMES.value, size, size, 3)).astype(np.float32)
    frames_torch, frames = to_torch(official, frames)[0], jax.device_put(frames[0])

    @torch.no_grad()
    def encode() -> None:
        theirs.encode(frames_torch)
        wait(official)

    return encode, lambda: jax.block_until_ready(encode_moments(mine.model, mine.params, frames))


def decode_pair(official: Official, autoencoders: Any, size: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Square latents to frames."""
    theirs, mine = autoencoders
    latents = np.random.default_rng(0).standard_normal((1, _FRAMES.value, size, size, 4), np.float32)
    latents_torch, latents = to_torch(official, latents)[0], jax.device_put(latents)
    ours = jax.jit(lambda latents: decode_all(mine, latents))

    @torch.no_grad()
    def decode() -> None:
        theirs.decode(latents_torch)
        wait(official)

    return decode, lambda: jax.block_until_ready(ours(latents))


def video_pair(
    official: Official, ours: VDT, params: Any, autoencoders: tuple[Any, VaeSpace], num_steps: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Interpolation from pixels to pixels."""
    theirs_vae, vae = autoencoders
    num_frames, height, width, channels = vae.clip_shape(ours)
    frames = np.random.default_rng(0).uniform(-1, 1, (_BATCH_SIZE.value, num_frames, height, width, channels))
    frames = frames.astype(np.float32)
    mask = np.ones((len(frames), *ours.video_shape[:3], 1), np.float32)
    mask[:, ::4] = 0
    respaced = official.create_diffusion(timestep_respacing=str(num_steps))
    frames_torch, mask_torch = to_torch(official, frames), torch.from_numpy(mask[..., 0]).to(official.device)
    shape = (len(frames), ours.in_channels, *ours.video_shape[:3])

    @torch.no_grad()
    def theirs() -> None:
        latents = theirs_vae.encode(frames_torch.flatten(0, 1)).latent_dist.sample() * vae.model.scaling_factor
        samples = respaced.p_sample_loop(
            official.network,
            shape,
            clip_denoised=False,
            device=official.device,
            raw_x=latents.unflatten(0, frames_torch.shape[:2]),
            mask=mask_torch,
        )
        theirs_vae.decode(samples.transpose(1, 2).flatten(0, 1) / vae.model.scaling_factor)
        wait(official)

    diffusion, keys = make_diffusion(timestep_respacing=str(num_steps)), sample_keys(0, range(len(frames)))
    clean = jax.device_put(frames)
    encode = jax.jit(lambda clips: encode_all(vae, clips))
    decode = jax.jit(lambda latents: decode_all(vae, latents))

    def mine() -> None:
        samples = generate_on_devices(ours, params, diffusion, encode(clean), mask, keys)
        jax.block_until_ready(decode(samples))

    return theirs, mine


def encode_all(vae: VaeSpace, clips: jax.Array) -> jax.Array:
    """Scaled latents (B, F, h, w, C) of clips (B, F, H, W, 3), all frames at once, drawn from the posterior."""
    moments: Any = vae.model.apply({"params": vae.params}, clips.reshape(-1, *clips.shape[2:]), method="encode")
    latents = sample_posterior(*moments, jax.random.key(0)) * vae.model.scaling_factor
    return latents.reshape(*clips.shape[:2], *latents.shape[1:])


def decode_all(vae: VaeSpace, latents: jax.Array) -> Any:
    """Frames (B * F, H, W, 3) of scaled latents (B, F, h, w, C), all at once."""
    latents = latents.reshape(-1, *latents.shape[2:]) / vae.model.scaling_factor
    return vae.model.apply({"params": vae.params}, latents, method="decode")


PAIRS = {"forward": forward_pair, "training": training_pair}


if __name__ == "__main__":
    cli.run(main)
