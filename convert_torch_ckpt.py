"""Convert an official PyTorch VDT checkpoint, without torch and without trusting the file.

    python convert_torch_ckpt.py --input=model.pt --output=checkpoints/sky

Reads a state_dict that torch.save wrote. Every tensor is used and every parameter filled, or nothing is written.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import save_model
from vdt_jax.errors import UserError
from vdt_jax.models import VDT
from vdt_jax.safe_pickle import load_torch
from vdt_jax.torch_weights import from_torch, read_sizes
from vdt_jax.training import count_trained

_INPUT = flags.DEFINE_string("input", None, "A .pt file with the state_dict of a VDT.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")
_NUM_HEADS = flags.DEFINE_integer("num_heads", None, "Needed where the sizes are no known variant: no shape tells it.")


def main(_) -> None:
    if _INPUT.value is None or _OUTPUT.value is None:
        raise UserError("say what to convert and where to write: --input=model.pt --output=checkpoints/NAME")
    if Path(_OUTPUT.value).exists():
        raise UserError(f"{_OUTPUT.value} exists: choose another --output, or remove it first")
    cli.quiet_start()
    state_dict = load_torch(_INPUT.value)
    if not isinstance(state_dict, dict) or not all(isinstance(array, np.ndarray) for array in state_dict.values()):
        keys = ", ".join(map(str, list(state_dict)[:5])) if isinstance(state_dict, dict) else type(state_dict).__name__
        raise UserError(f"{_INPUT.value} is no state_dict of tensors, it holds: {keys}")
    sizes = read_sizes(state_dict, _NUM_HEADS.value)
    model = VDT(**sizes)
    x = jax.ShapeDtypeStruct((1, *model.video_shape), jnp.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]
    params = from_torch(state_dict, sizes, expected)
    # The official process; `data` names no clips, so sampling needs --input.
    diffusion = dict(noise_schedule="linear", num_diffusion_timesteps=1000, prediction="eps", clip_denoised=False)
    save_model(_OUTPUT.value, {"model": sizes, "diffusion": diffusion, "data": {"name": "synthetic"}}, params)
    print(
        f"{_OUTPUT.value}: {len(state_dict)} tensors, {count_trained(params) / 1e6:.2f} M trained parameters, {sizes}"
    )


if __name__ == "__main__":
    cli.run(main)
