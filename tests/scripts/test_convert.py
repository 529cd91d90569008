"""convert_torch_ckpt.py as a person runs it, on the official tiny VDT."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.scripts import ROOT, fail, succeed
from helpers.torch_files import Call, save_torch

from vdt_jax.checkpoints import load_config, load_model
from vdt_jax.checkpoints.conversion import ConvertOptions, convert
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT, VDT_VARIANTS
from vdt_jax.training.optimizer import count_trained
from vdt_jax.weights.positions import resize_pos_embed
from vdt_jax.weights.safetensors_files import load_safetensors, save_safetensors
from vdt_jax.weights.torch_files import load_torch
from vdt_jax.weights.vdt import from_torch, read_sizes, to_torch

GOLDENS = ROOT / "tests" / "goldens"
OFFICIAL = GOLDENS / "vdt_tiny.pt"


@pytest.fixture(scope="module")
def official():
    return {name: np.array(array) for name, array in load_torch(OFFICIAL).items()}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(folder, what was printed) of the golden file."""
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    arguments = [f"--input={OFFICIAL}", f"--output={folder}", "--num_heads=3", "--verify"]
    return folder, succeed("convert_torch_ckpt.py", *arguments)


def test_the_converted_model_gives_the_official_numbers(converted):
    golden = np.load(GOLDENS / "vdt_tiny_forward.npz")
    model, params = load_model(converted[0])
    x = jnp.asarray(golden["x"].transpose(0, 1, 3, 4, 2), jnp.float32)
    out = np.asarray(jax.jit(model.apply)({"params": params}, x, jnp.asarray(golden["t"]))).transpose(0, 1, 4, 2, 3)
    assert np.abs(out - golden["out"]).max() < 1e-5 * np.abs(golden["out"]).max()


def test_the_report(converted, official):
    folder, printed = converted
    report = json.loads((folder / "conversion.json").read_text())
    sha256 = hashlib.sha256(OFFICIAL.read_bytes()).hexdigest()
    assert report["source"] == {"file": "vdt_tiny.pt", "sha256": sha256} and sha256 in printed
    assert report["parameters"] == sum(array.size for array in official.values())
    assert report["tensors"].keys() == official.keys()
    for name, array in official.items():
        row = report["tensors"][name]
        assert (tuple(row["shape"]), row["dtype"]) == (array.shape, "float32")
        assert row["mean"] == pytest.approx(array.mean(dtype=np.float64), rel=1e-6, abs=1e-9)
    assert "67 tensors" in printed
    assert load_config(folder)["loss"] == {"mask_mixture": "official"}


def test_verify_says_what_the_model_makes_of_a_fixed_input(converted):
    folder, printed = converted
    model, params = load_model(folder)
    x = np.sin(np.arange(5 * 4 * 8 * 8)).reshape(1, 5, 4, 8, 8).transpose(0, 1, 3, 4, 2).astype(np.float32)
    out = np.asarray(jax.jit(model.apply)({"params": params}, x, jnp.full(1, 500.0)), np.float64)
    said = json.loads((folder / "conversion.json").read_text())["verify"]
    assert float(said["mean"]) == pytest.approx(out.mean(), rel=1e-4)
    assert float(said["largest"]) == pytest.approx(np.abs(out).max(), rel=1e-4)
    assert [float(value) for value in said["first pixel"]] == pytest.approx(out[0, 0, 0, 0, :4].tolist(), rel=1e-4)
    assert said["std"] in printed


def test_back_to_torch_is_bit_exact(converted, official, tmp_path):
    printed = succeed(
        "convert_torch_ckpt.py", "--to_torch", f"--input={converted[0]}", f"--output={tmp_path}/a.safetensors"
    )
    back = load_safetensors(tmp_path / "a.safetensors")
    assert back.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    assert hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest() in printed


def test_an_old_autoencoder_gets_todays_names(tmp_path):
    folder = GOLDENS / "vae_tiny"
    report = convert(ConvertOptions(f"{folder}", f"{tmp_path}/vae.safetensors", to_torch=True))
    again = load_safetensors(tmp_path / "vae.safetensors")
    for name, array in load_safetensors(folder / "diffusion_pytorch_model.safetensors").items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    assert report["tensors"] == len(again)


def test_a_trainers_file_for_other_frames(official, tmp_path):
    named = {f"module.{name}": array for name, array in official.items()}
    value = {"model": {name: array + 1 for name, array in official.items()}, "ema": named}
    value |= {"opt": {"state": {}}, "pos_embed": official["pos_embed"], "args": Call("argparse", "Namespace")}
    save_torch(tmp_path / "a.pt", value)
    arguments = ["--num_heads=3", "--image_size=128", "--num_frames=9"]
    printed = succeed(
        "convert_torch_ckpt.py", f"--input={tmp_path}/a.pt", f"--output={tmp_path}/out", "--weights=ema", *arguments
    )
    assert "ignored: model (not chosen: weights=model takes it)" in printed and "ignored: args" in printed
    model, params = load_model(tmp_path / "out")
    assert model.video_shape == (9, 16, 16, 4)
    np.testing.assert_array_equal(params["pos_embed"], resize_pos_embed(official["pos_embed"], 8))
    np.testing.assert_allclose(params["time_embed"][0, ::2], official["time_embed"][0], atol=1e-6)
    np.testing.assert_array_equal(params["final_layer"]["linear"]["bias"], official["final_layer.linear.bias"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {}, "exists: choose another output"),
        ({}, {"num_heads": 5}, "num_heads=5"),
        ({}, {}, "say num_heads"),
        ({}, {"num_heads": 3, "weights": "ema"}, "leave out weights=ema"),
        ({}, {"num_heads": 3, "weights": "best"}, "weights must be one of ema, model, got 'best'"),
        ({}, {"num_heads": 3, "image_size": 100}, "image_size must be a multiple of 16 pixels, one token, got 100"),
        ({}, {"num_heads": 3, "num_frames": 0}, "num_frames must be >= 1, got 0"),
        ({}, {"num_heads": 3, "zero_time_embed": True}, "zero_time_embed is for image weights"),
        ({"extra": np.ones(2, np.float32)}, {"num_heads": 3}, "unknown extra"),
        ({"blocks.1.mlp.fc1.bias": np.full(192, np.nan, np.float32)}, {"num_heads": 3}, "blocks.1.mlp.fc1.bias holds"),
        ({"pos_embed": np.ones((1, 15, 48), np.float32)}, {"num_heads": 3}, "15 positions, which is no square"),
    ],
)
def test_mistakes(official, tmp_path, change, options, message):
    output = tmp_path if change is None else tmp_path / "out"
    source = save_torch(tmp_path / "a.pt", official | (change or {}))
    with pytest.raises(UserError, match=re.escape(message)):
        convert(ConvertOptions(str(source), str(output), **options))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_mistakes_in_the_script(official, tmp_path):
    """The same text, in one line."""
    source = save_torch(tmp_path / "a.pt", official)
    line = fail(
        "convert_torch_ckpt.py", f"--input={source}", f"--output={tmp_path}/out", "--num_heads=3", "--weights=ema"
    )
    assert "leave out weights=ema" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_mistakes_on_the_way_back(converted, tmp_path):
    with pytest.raises(UserError, match="input and output must be given"):
        ConvertOptions(to_torch=True)
    with pytest.raises(UserError, match=r"output must end in \.safetensors with to_torch, got .*a\.pt"):
        ConvertOptions(str(converted[0]), f"{tmp_path}/a.pt", to_torch=True)
    with pytest.raises(UserError, match="no checkpoint in /nowhere"):
        convert(ConvertOptions("/nowhere", f"{tmp_path}/a.safetensors", to_torch=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_no_output(official, tmp_path, stop):
    command = [sys.executable, str(ROOT / "convert_torch_ckpt.py"), f"--input={OFFICIAL}", "--num_heads=3"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [*command, f"--output={tmp_path}/out"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    for line in process.stdout:
        if line.startswith(b"converting: 100 %"):
            break
    process.send_signal(stop)
    process.wait(timeout=60)
    # Either it was too late to stop it, or there is nothing under that name.
    assert not (tmp_path / "out").exists() or (tmp_path / "out" / "config.json").is_file()
    if stop == signal.SIGINT:
        assert not (tmp_path / "out.partial").exists()
    assert process.returncode != 0 or (tmp_path / "out").exists()


def test_a_failed_write_leaves_no_output(tmp_path, official):
    class Broken(dict):
        def values(self):
            yield from list(super().values())[:3]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_safetensors(tmp_path / "a.safetensors", Broken(official))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "parameters"), [("VDT-S/2", 41_360_000), ("VDT-L/2", 859_700_000)])
def test_full_sizes_go_there_and_back_bit_exactly(variant, parameters, tmp_path):
    model = VDT(**VDT_VARIANTS[variant])
    x = jax.ShapeDtypeStruct((1, *model.video_shape), jnp.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), expected)
    save_safetensors(tmp_path / "a.safetensors", to_torch(params, model.patch_size))
    assert count_trained(params) == pytest.approx(parameters, rel=1e-4)
    state_dict = load_safetensors(tmp_path / "a.safetensors")
    sizes = read_sizes(state_dict)
    assert VDT(**sizes) == model
    again = from_torch(state_dict, sizes, expected)
    jax.tree.map(np.testing.assert_array_equal, params, again)
