"""The autoencoder against diffusers' numbers, under both sets of names, and with its memory bounded."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.torch_files import save_torch

from vdt_jax.errors import UserError
from vdt_jax.latents import codec
from vdt_jax.latents.codec import decode_video, encode_video, sample_posterior
from vdt_jax.models.autoencoder import SCALING_FACTOR, AutoencoderKL, Upsample
from vdt_jax.weights.autoencoder import (
    from_torch,
    load_autoencoder,
    param_shapes,
    present_names,
    read_config,
    to_torch,
)
from vdt_jax.weights.safetensors_files import load_safetensors, save_safetensors

GOLDENS = Path(__file__).parents[1] / "goldens"
FOLDER = GOLDENS / "vae_tiny"
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def tiny():
    return load_autoencoder(FOLDER)


@pytest.fixture(scope="module")
def golden():
    """Channels last."""
    return {name: array.transpose(0, 2, 3, 1) for name, array in np.load(GOLDENS / "vae_tiny.npz").items()}


def relative_error(ours, official):
    return np.abs(np.asarray(ours, np.float64) - official).max() / np.abs(official).max()


def apply(method, model, params, x):
    """In one program: outside jit every operation would be compiled on its own."""
    return jax.jit(functools.partial(model.apply, method=method))({"params": params}, x)


def test_encode(tiny, golden):
    mean, logvar = apply("encode", *tiny, golden["x"])
    assert relative_error(mean, golden["mean"]) < 1e-5
    assert relative_error(logvar, golden["logvar"]) < 1e-5


def test_decode(tiny, golden):
    decoded = apply("decode", *tiny, golden["z"])
    assert relative_error(decoded, golden["decoded"]) < 1e-5


def test_upsampling_is_a_convolution_of_repeated_pixels():
    rng = np.random.default_rng(0)
    for height, width in ((3, 5), (1, 2)):  # one row has edges alone
        x = rng.standard_normal((2, height, width, 6), np.float32)
        shapes = jax.eval_shape(Upsample(4, jnp.float32).init, jax.random.key(1), x)
        params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
        repeated = x.repeat(2, axis=1).repeat(2, axis=2)
        expected = jax.jit(nn.Conv(4, (3, 3)).apply)(params, repeated)
        assert relative_error(jax.jit(Upsample(4, jnp.float32).apply)(params, x), expected) < 1e-5


def test_video_there_and_back_is_scaled_once(tiny, golden):
    model, params = tiny
    latents = encode_video(model, params, golden["x"], key=None)
    np.testing.assert_allclose(latents, 0.18215 * golden["mean"], atol=1e-5)
    decoded = decode_video(model, params, SCALING_FACTOR * golden["z"])
    np.testing.assert_allclose(decoded, np.clip(golden["decoded"], -1, 1), atol=1e-5)


def test_posterior_is_drawn_with_a_key_alone():
    mean, logvar = jnp.full((1, 200, 200, 4), 3.0), jnp.full((1, 200, 200, 4), np.log(0.25))
    np.testing.assert_array_equal(sample_posterior(mean, logvar, None), mean)
    drawn = sample_posterior(mean, logvar, jax.random.key(0))
    assert float(drawn.mean()) == pytest.approx(3, abs=0.01) and float(drawn.std()) == pytest.approx(0.5, abs=0.01)


def test_bfloat16_is_near(golden):
    mean, _ = apply("encode", *load_autoencoder(FOLDER, "bfloat16"), golden["x"])
    assert mean.dtype == jnp.float32 and 1e-5 < relative_error(mean, golden["mean"]) < 0.05


@pytest.mark.parametrize("num_frames", [1, 4, 5])
def test_chunks_change_nothing(tiny, num_frames):
    model, params = tiny
    video = np.random.default_rng(0).uniform(-1, 1, (num_frames, 16, 16, 3)).astype(np.float32)
    whole = encode_video(model, params, video, key=None, chunk=num_frames)
    np.testing.assert_allclose(encode_video(model, params, video, key=None, chunk=2), whole, atol=1e-5)
    back = decode_video(model, params, np.asarray(whole), chunk=2)
    np.testing.assert_allclose(decode_video(model, params, np.asarray(whole), chunk=num_frames), back, atol=1e-5)


def alike_everywhere(height, width):
    """Noise: a tile's statistics, which the norms divide by, are nearly those of the frame."""
    return np.random.default_rng(0).uniform(-1, 1, (1, height, width, 3)).astype(np.float32)


def test_tiles_are_near_and_leave_no_hole(tiny):
    model, params = tiny
    video = alike_everywhere(72, 100)
    whole = np.asarray(encode_video(model, params, video, key=None))
    tiled = np.asarray(encode_video(model, params, video, key=None, tile=48))
    assert tiled.shape == (1, 18, 25, 4) and np.isfinite(tiled).all()
    assert np.corrcoef(tiled.ravel(), whole.ravel())[0, 1] > 0.95
    decoded, decoded_tiled = (decode_video(model, params, 4 * whole, tile=tile) for tile in (512, 48))
    assert decoded_tiled.shape == video.shape
    assert np.corrcoef(decoded_tiled.ravel(), decoded.ravel())[0, 1] > 0.95


def test_tiling_blends_a_local_function_exactly(monkeypatch):
    video = np.random.default_rng(0).standard_normal((2, 50, 70, 3))
    doubled = codec._by_tiles(lambda tile: 2 * tile.repeat(2, 1).repeat(2, 2), 16, 2, video)
    np.testing.assert_allclose(doubled, 2 * video.repeat(2, 1).repeat(2, 2), rtol=1e-5)
    halved = codec._by_tiles(lambda tile: tile[:, ::2, ::2], 16, 0.5, video)
    np.testing.assert_allclose(halved, video[:, ::2, ::2], rtol=1e-5)


def test_one_shape_of_tiles_is_compiled(tiny):
    shapes = set()
    video = alike_everywhere(72, 100)
    codec._by_tiles(lambda tile: shapes.add(tile.shape) or tile, 48, 1, video)
    assert shapes == {(1, 48, 48, 3)}


def test_frames_without_latents(tiny):
    with pytest.raises(UserError, match="30x32 have no latents: both sides must be multiples of 4"):
        encode_video(*tiny, np.zeros((1, 30, 32, 3), np.float32), key=None)


def old_file(path, convolutions):
    """The golden weights as the public files have them: old names, and 1x1 convolutions in the oldest."""
    renamed = {}
    for name, array in load_safetensors(FOLDER / "diffusion_pytorch_model.safetensors").items():
        if ".attentions." in name and not name.split(".attentions.0.")[1].startswith("group_norm"):
            for new, old in OLD.items():
                name = name.replace(f".{new}.", f".{old}.")
            array = array[:, :, None, None] if convolutions and name.endswith("weight") else array
        renamed[name] = np.array(array)
    return save_torch(path, renamed)


@pytest.mark.parametrize("convolutions", [False, True])
def test_old_names(tiny, tmp_path, convolutions):
    old_file(tmp_path / "diffusion_pytorch_model.bin", convolutions)
    shutil.copy(FOLDER / "config.json", tmp_path)
    for where in (tmp_path, tmp_path / "diffusion_pytorch_model.bin"):
        model, params = load_autoencoder(where)
        assert model == tiny[0]
        jax.tree.map(np.testing.assert_array_equal, params, tiny[1])


def compvis_names(weights):
    """The names of the first stage of Stable Diffusion: up blocks are counted from the last one."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    levels = 3
    renamed = {}
    for name, array in weights.items():
        parts = name.split(".")
        if "_blocks" in name:
            half, blocks, level, kind, number, *rest = parts
            level = str(levels - 1 - int(level)) if blocks == "up_blocks" else level
            layer = {"resnets": ["block", number], "downsamplers": ["downsample"], "upsamplers": ["upsample"]}[kind]
            rest = ["nin_shortcut" if part == "conv_shortcut" else part for part in rest]
            parts = [half, blocks.removesuffix("_blocks"), level, *layer, *rest]
        elif "mid_block.resnets" in name:
            half, _, _, number, *rest = parts
            parts = [half, "mid", f"block_{int(number) + 1}", *rest]
        elif "mid_block.attentions" in name:
            layer, leaf = ".".join(parts[4:-1]), parts[-1]
            parts = [parts[0], "mid", "attn_1", attention[layer], leaf]
            array = array if layer == "group_norm" or leaf == "bias" else array[:, :, None, None]
        renamed[".".join(parts).replace("conv_norm_out", "norm_out")] = np.array(array)
    return renamed


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", ""])
def test_the_single_file_of_stable_diffusion(tiny, tmp_path, prefix):
    weights = compvis_names(load_safetensors(FOLDER / "diffusion_pytorch_model.safetensors"))
    assert "encoder.down.0.block.0.norm1.weight" in weights and "decoder.up.2.upsample.conv.weight" in weights
    assert weights["encoder.mid.attn_1.q.weight"].ndim == 4 and "decoder.norm_out.bias" in weights
    others = {
        "model.diffusion_model.input_blocks.0.0.bias": np.zeros(3, np.float32),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": np.zeros((1, 77), np.int64),
        "loss.logvar": np.zeros((), np.float32),
    }
    named = {prefix + name: array for name, array in weights.items()} | (
        others if prefix else {"loss.logvar": others["loss.logvar"]}
    )
    for path in (tmp_path / "a.safetensors", tmp_path / "b.ckpt"):
        if path.suffix == ".ckpt":
            save_torch(path, {"state_dict": named, "global_step": 840000})
        else:
            save_safetensors(path, named)
        shutil.copy(FOLDER / "config.json", tmp_path)
        model, params = load_autoencoder(path)
        assert model == tiny[0]
        jax.tree.map(np.testing.assert_array_equal, params, tiny[1])


def test_a_file_of_another_model_is_named(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", {"blocks.0.attn.qkv.weight": np.zeros((6, 2), np.float32)})
    with pytest.raises(UserError, match=r"a\.safetensors holds the weights of a transformer: an autoencoder is needed"):
        load_autoencoder(tmp_path / "a.safetensors")


def test_there_and_back_is_bit_exact(tiny):
    official = load_safetensors(FOLDER / "diffusion_pytorch_model.safetensors")
    back = to_torch(tiny[1])
    assert back.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.slow
def test_the_full_size_goes_there_and_back_bit_exactly(tmp_path):
    expected = param_shapes(AutoencoderKL())
    assert sum(leaf.size for leaf in jax.tree.leaves(expected)) == 83_653_863
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), expected)
    save_safetensors(tmp_path / "vae.safetensors", to_torch(params))
    model, again = load_autoencoder(tmp_path / "vae.safetensors")
    assert model == AutoencoderKL(dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_all_that_does_not_fit_is_said_at_once(tiny):
    broken = {name: np.array(array) for name, array in present_names(to_torch(tiny[1])).items()}
    del broken["quant_conv.bias"]
    broken["encoder.conv_in.weight"] = np.zeros((16, 3, 1, 1), np.float32)
    broken["decoder.mid_block.attentions.0.to_x.weight"] = np.zeros(3, np.float32)
    broken["decoder.conv_out.bias"] = np.full(3, np.nan, np.float32)
    with pytest.raises(UserError) as error:
        from_torch(broken, param_shapes(tiny[0]))
    for part in ("missing quant_conv.bias", "encoder.conv_in.weight has shape (16, 3, 1, 1)", "unknown decoder.mid_bl"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "AutoencoderTiny"},
            "_class_name of the autoencoder must be 'AutoencoderKL', got 'AutoencoderTiny'",
        ),
        ({"act_fn": "gelu"}, "act_fn of the autoencoder must be 'silu', got 'gelu'"),
        ({"shift_factor": 0.1}, "shift_factor of the autoencoder must be None, got 0.1"),
        ({"latents_mean": [0, 0, 0, 0]}, "latents_mean"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "AttnDownEncoderBlock2D"),
        ({"block_out_channels": [16, 32, "x"]}, "channels must be multiples of"),
        ({"block_out_channels": [16, 32, 36]}, "channels must be multiples of"),
        ({"layers_per_block": 10**6}, "at most 16 layers"),
        ({"layers_per_block": "2"}, "layers_per_block of the autoencoder must be an integer, got '2'"),
        ({"latent_channels": 4.0}, "latent_channels of the autoencoder must be an integer, got 4.0"),
        (
            {"mid_block_add_attention": "yes"},
            "mid_block_add_attention of the autoencoder must be true or false, got 'yes'",
        ),
        ({"use_quant_conv": 1}, "use_quant_conv of the autoencoder must be true or false, got 1"),
        (
            {"scaling_factor": float("nan")},
            "scaling_factor of the autoencoder must be a number above 0 and below 1e6, got nan",
        ),
        ({"scaling_factor": 0.0}, "scaling_factor of the autoencoder must be a number above 0 and below 1e6, got 0.0"),
        (
            {"scaling_factor": True},
            "scaling_factor of the autoencoder must be a number above 0 and below 1e6, got True",
        ),
    ],
)
def test_other_autoencoders_are_refused(change, message):
    config = json.loads((FOLDER / "config.json").read_text())
    assert read_config(config)["block_out_channels"] == (16, 32, 32)
    with pytest.raises(UserError, match=message):
        read_config(config | change)


def test_places_without_an_autoencoder(tmp_path):
    with pytest.raises(UserError, match="no weights in"):
        load_autoencoder(tmp_path)
    with pytest.raises(UserError, match="no autoencoder at /no/where/at/all"):
        load_autoencoder("/no/where/at/all")
    save_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", {"a": np.zeros(1, np.float32)})
    for config in (b"[[", b"[]", b"3", b"\xff\xfe", b"[" * 200_000, b'{"block_out_channels": "x"}', b"9" * 10_000):
        (tmp_path / "config.json").write_bytes(config)
        with pytest.raises(
            UserError, match=r"is no config of an autoencoder|no autoencoder has|of the autoencoder must be"
        ):
            load_autoencoder(tmp_path)


def test_a_repository_of_the_hub_is_fetched_or_said_to_be_missing(tiny, monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        load_autoencoder("somebody/some-vae")
    hub = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)

    def offline(name, allow_patterns):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(hub, "snapshot_download", offline, raising=False)
    with pytest.raises(UserError, match=r"cannot be fetched from the hub \(no route\)"):
        load_autoencoder("somebody/some-vae")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: str(FOLDER))
    assert load_autoencoder("somebody/some-vae")[0] == tiny[0]
