"""The official PyTorch code beside this one: same device, same weights, same batch, outputs compared first.

    PYTHONPATH=. python benchmarks/compare_official.py --official=FOLDER

FOLDER is your own clone of github.com/RERV/VDT; nothing of it is here. It needs torch and timm, and --work=video also
diffusers, which `make bench OFFICIAL=FOLDER` installs. Modes of the official code:

    stock     as it is, float32
    tf32      with TF32 matrix products (GPUs; elsewhere the same as stock)
    compiled  bfloat16 autocast and torch.compile, attention through SDPA, which timm takes by itself

The training step is theirs and ours with AdamW and an EMA; the loss is the official one on both sides. Ours runs in
float32 beside the first two, in bfloat16 beside the last. --work=video is interpolation from frames of 256x256 to
frames: encoded, sampled and decoded, by an autoencoder of the public ones' sizes.
"""

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from absl import flags
from measure import report, timed

from vdt_jax import cli
from vdt_jax.autoencoder import AutoencoderKL
from vdt_jax.diffusion import make_diffusion
from vdt_jax.errors import UserError
from vdt_jax.generation import generate, generate_clips, sample_keys
from vdt_jax.latents import LoadedAutoencoder
from vdt_jax.models import REMAT, VDT, VDT_VARIANTS
from vdt_jax.torch_weights.autoencoder import from_torch, param_shapes
from vdt_jax.torch_weights.tables import read_table
from vdt_jax.torch_weights.vdt import vdt_table
from vdt_jax.training import TrainState, make_learning_rate, make_optimizer, make_train_step

_OFFICIAL = flags.DEFINE_string("official", None, "A clone of the official repository.")
_MODEL = flags.DEFINE_enum("model", "VDT-S/2", list(VDT_VARIANTS), "Which network.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Samples of 16 x 32x32 latents.")
_MODES = flags.DEFINE_list("modes", ["stock"], "Of stock, tf32, compiled.")
_WORK = flags.DEFINE_list("work", ["forward", "training", "sampling"], "What to time: or video.")
_SAMPLING_STEPS = flags.DEFINE_multi_integer("sampling_steps", [16], "May be given more than once.")
_UNROLL = flags.DEFINE_integer("unroll", 1, "Blocks per iteration of our scan over depth.")
_REMAT = flags.DEFINE_enum("remat", "matmuls", list(REMAT), "What our training step keeps of a block for its gradient.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each.")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/compare_official.json", "The report.")

_WORST = 1e-3  # relative to the largest value: float32 on both sides; TF32 and bf16 are reported, not judged
_WORST_DECODED = 3e-2  # in whatever precision ours has


class Official(NamedTuple):
    """The official network on its device, as it is called in this mode, and what makes its diffusions."""

    model: Any
    network: Callable[..., torch.Tensor]
    create_diffusion: Callable[..., Any]
    device: torch.device


def main(_) -> None:
    if _OFFICIAL.value is None or not (Path(_OFFICIAL.value) / "models.py").is_file():
        raise UserError(f"--official={_OFFICIAL.value} is no clone of github.com/RERV/VDT: it must hold models.py")
    if unknown := set(_MODES.value) - {"stock", "tf32", "compiled"}:
        raise UserError(f"no mode {', '.join(sorted(unknown))}: choose from stock, tf32, compiled")
    rows = []
    for mode in _MODES.value:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode != "stock"
        official = load_official(Path(_OFFICIAL.value), mode)
        dtype = "bfloat16" if mode == "compiled" else "float32"
        ours = VDT(**VDT_VARIANTS[_MODEL.value], dtype=dtype, unroll=_UNROLL.value, remat=_REMAT.value)
        params = converted(official.model, ours)
        works = [work for work in ("forward", "training") if work in _WORK.value]
        pairs = {work: PAIRS[work](official, ours, params) for work in works}
        if "sampling" in _WORK.value:
            pairs |= {f"{n} steps": sampling_pair(official, ours, params, n) for n in _SAMPLING_STEPS.value}
        if "video" in _WORK.value:
            autoencoders = autoencoder_pair(official, dtype)
            for n in _SAMPLING_STEPS.value:
                pairs[f"encode + {n} steps + decode"] = video_pair(official, ours, params, autoencoders, n)
        with torch.autocast(official.device.type, torch.bfloat16, enabled=mode == "compiled"):
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


# ---------------------------------------------------------------------- the official side
def load_official(folder: Path, mode: str) -> Official:
    """Their network with random weights, none of them zero: at its own initial values the output is zero."""
    vars(np)["int"] = int  # what their code still calls it
    if importlib.util.find_spec("torchvision") is None:
        _pretend_torchvision()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    from diffusion import create_diffusion
    from models import VDT_models

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = VDT_models[_MODEL.value](input_size=32, num_classes=1, num_frames=16, mode="video")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    model = model.to(device).eval()
    network = torch.compile(model) if mode == "compiled" else model
    return Official(model, network, create_diffusion, device)


def _pretend_torchvision() -> None:
    """timm imports torchvision for its image pipelines, none of which is used here."""

    class Anything(type):
        def __getattr__(cls, name: str) -> str:
            return name

    class Module(types.ModuleType):
        __path__: list[str] = []  # noqa: RUF012

        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {})

    for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets"):
        module = Module(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def wait(official: Official) -> None:
    """Until the device has done what it was given."""
    if official.device.type == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------------- both sides, the same work
def converted(model: Any, ours: VDT) -> Any:
    """Their weights under our names, on the device."""
    weights = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    x, t = np.zeros((1, *ours.video_shape), np.float32), np.zeros(1)
    expected = jax.eval_shape(ours.init, jax.random.key(0), x, t)["params"]
    return jax.device_put(read_table(weights, vdt_table(ours.depth, ours.patch_size), expected)[0])


def clips(ours: VDT) -> np.ndarray:
    """Random latents (B, F, h, w, C)."""
    return np.random.default_rng(0).standard_normal((_BATCH_SIZE.value, *ours.video_shape), np.float32)


def to_torch(official: Official, x: np.ndarray) -> torch.Tensor:
    """(B, F, h, w, C) in their order, (B, F, C, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3))).to(official.device)


def largest_difference(official: Official, ours: VDT, params: Any) -> float:
    """Of the two outputs, relative to the largest value."""
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
    params = jax.tree.map(jax.numpy.copy, params)  # the step gives its state away
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
    return theirs, lambda: jax.block_until_ready(generate(ours, params, diffusion, clean, mask, keys))


def autoencoder_pair(official: Official, dtype: str) -> tuple[Any, LoadedAutoencoder]:
    """The autoencoder of Stable Diffusion as diffusers builds it, with random weights, and ours with the same."""
    from diffusers import AutoencoderKL as TheirAutoencoder

    model = AutoencoderKL(dtype=dtype)
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
    return theirs.to(official.device).eval(), LoadedAutoencoder(model, params)


def video_pair(
    official: Official, ours: VDT, params: Any, autoencoders: tuple[Any, LoadedAutoencoder], num_steps: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Interpolation from pixels to pixels. Ours encodes the frames that are given alone."""
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
    return theirs, lambda: generate_clips(ours, params, diffusion, frames, mask, keys, vae=vae)


PAIRS = {"forward": forward_pair, "training": training_pair}


if __name__ == "__main__":
    cli.run(main)
