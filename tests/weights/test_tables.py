"""Names both ways, strictly."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT
from vdt_jax.weights.torch_files import load_torch
from vdt_jax.weights.vdt import from_torch, read_sizes, to_torch

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def official():
    state_dict = dict(load_torch(GOLDENS / "vdt_tiny.pt"))
    sizes = read_sizes(state_dict, num_heads=3)
    model = VDT(**sizes)
    x = jnp.zeros((1, *model.video_shape))
    return state_dict, sizes, jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1))["params"]


def test_there_and_back_is_bit_exact(official):
    state_dict, sizes, expected = official
    params = from_torch(state_dict, sizes, expected)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, dict(expected))
    back = to_torch(params, sizes["patch_size"])
    assert back.keys() == state_dict.keys()
    for name, array in state_dict.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_blocks_are_stacked_in_order(official):
    state_dict, sizes, expected = official
    kernel = from_torch(state_dict, sizes, expected)["blocks"]["attn"]["qkv"]["kernel"]
    for layer in range(3):
        np.testing.assert_array_equal(kernel[layer], state_dict[f"blocks.{layer}.attn.qkv.weight"].T)


def test_all_that_does_not_fit_is_said_at_once(official):
    state_dict, sizes, expected = official
    broken = dict(state_dict)
    del broken["blocks.1.mlp.fc1.bias"]
    broken["blocks.0.attn.proj.bias"] = np.zeros(7)
    broken["x_embedder.proj.weight"] = np.zeros((48, 16))
    broken["ema.decay"] = np.zeros(1)
    with pytest.raises(UserError) as error:
        from_torch(broken, sizes, expected)
    for part in (
        "missing blocks.1.mlp.fc1.bias",
        "blocks.0.attn.proj.bias has shape (7,)",
        "x_embedder.proj.weight has shape (48, 16)",
        "unknown ema.decay",
    ):
        assert part in str(error.value)


def test_sizes_that_no_shape_tells(official):
    state_dict, _, _ = official
    with pytest.raises(UserError, match="say num_heads"):
        read_sizes(state_dict)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("conv.weight", "weights of an unknown model, conv.weight"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a model of Stable Diffusion, of which --vae takes"),
        ("diffusion_model.out.2.bias", "a model of Stable Diffusion"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "a model of Stable Diffusion"),
        ("first_stage_model.encoder.down.0.block.0.norm1.weight", "an autoencoder, which --vae takes"),
        ("encoder.down_blocks.0.resnets.0.norm1.weight", "an autoencoder, which --vae takes"),
        ("quant_conv.weight", "an autoencoder, which --vae takes"),
        ("down_blocks.0.attentions.0.proj_in.weight", "a U-Net"),
        ("input_blocks.1.0.in_layers.0.weight", "a U-Net"),
        ("transformer.blocks.0.attn.qkv.lora_A.weight", "LoRA adapters"),
        ("transformer_blocks.0.attn1.to_q.weight", "a transformer"),
        ("\x1b[31m\n", r"an unknown model, \\x1b\[31m\\n"),
    ],
)
def test_weights_of_another_model_are_named(name, model):
    with pytest.raises(UserError, match=model) as error:
        read_sizes({name: np.zeros(3), "z.weight": np.zeros(3)} | {f"z.{n}.bias": np.zeros(3) for n in range(2000)})
    assert "it has no x_embedder.proj.weight" in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 300
