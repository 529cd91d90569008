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
    with pytest.raises(UserError, match=r"not weights of a video VDT.*conv\.weight"):
        read_sizes({"conv.weight": np.zeros(3)})
