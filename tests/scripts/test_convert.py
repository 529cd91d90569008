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

from vdt_jax import Pipeline
from vdt_jax.checkpoints import conversion, load_config, load_model
from vdt_jax.checkpoints.conversion import ConvertOptions, convert
from vdt_jax.errors import UserError
from vdt_jax.inference.functional import sample_keys
from vdt_jax.models.vdt import VDT, VDT_VARIANTS, grid_embedding
from vdt_jax.training.optimizer import count_trained
from vdt_jax.weights.positions import resize_pos_embed
from vdt_jax.weights.safetensors_files import load_safetensors, save_safetensors
from vdt_jax.weights.sources import Source
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
    np.testing.assert_array_equal(params["pos_embed"], resize_pos_embed(official["pos_embed"], (8, 8)))
    np.testing.assert_allclose(params["time_embed"][0, ::2], official["time_embed"][0], atol=1e-6)
    np.testing.assert_array_equal(params["final_layer"]["linear"]["bias"], official["final_layer.linear.bias"])


def test_frames_that_are_not_square_go_there_and_back(official, tmp_path):
    source = save_torch(tmp_path / "a.pt", official)
    convert(ConvertOptions(str(source), str(tmp_path / "wide"), num_heads=3, image_size=(64, 112)))
    model, params = load_model(tmp_path / "wide")
    assert model.video_shape[1:3] == (8, 14)
    np.testing.assert_array_equal(params["pos_embed"], resize_pos_embed(official["pos_embed"], (4, 7)))
    back = str(tmp_path / "back.safetensors")
    convert(ConvertOptions(str(tmp_path / "wide"), back, to_torch=True))
    with pytest.raises(UserError, match="28 positions, which is no square grid: say image_size"):
        convert(ConvertOptions(back, str(tmp_path / "again"), num_heads=3))
    convert(ConvertOptions(back, str(tmp_path / "again"), num_heads=3, image_size=(64, 112)))
    again, same = load_model(tmp_path / "again")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("image_size", "size"),
    [
        ((64, 112), (8, 14)),
        ((112, 64), (14, 8)),
        ((16, 256), (2, 32)),
        ((96, 96), 12),
        ((64,), 8),
        ((160, 48), (20, 6)),
    ],
)
def test_frames_that_are_not_square(official, image_size, size):
    options = ConvertOptions("a.pt", "out", num_heads=3, image_size=image_size)
    state_dict, sizes, _ = conversion._adapted(Source(official, {}), options)
    grid = (image_size[0] // 16, image_size[-1] // 16)
    assert sizes["input_size"] == size and VDT(**sizes).grid == grid
    np.testing.assert_array_equal(state_dict["pos_embed"], resize_pos_embed(official["pos_embed"], grid))
    again, same, _ = conversion._adapted(Source(state_dict, {}), options)
    assert same == sizes  # of official names that --to_torch wrote
    ours = dict(again) | {"pos_embed": grid_embedding(grid, 48)[None].astype(np.float32)}
    np.testing.assert_array_equal(conversion._adapted(Source(ours, {}), options)[0]["pos_embed"], ours["pos_embed"])


def test_frames_that_are_not_square_by_the_flag(tmp_path):
    printed = succeed(
        "convert_torch_ckpt.py",
        f"--input={OFFICIAL}",
        f"--output={tmp_path}/out",
        "--num_heads=3",
        "--image_size=64,112",
    )
    assert "'input_size': (8, 14)" in printed
    model, params = load_model(tmp_path / "out")
    assert model.video_shape == (5, 8, 14, 4) and params["pos_embed"].shape == (1, 28, 48)


@pytest.mark.parametrize(
    ("rows", "num_classes", "classes", "row"),
    [
        (11, None, 10, "last"),
        (11, 10, 10, "last"),
        (10, 10, 10, "mean"),
        (1, None, 1, "mean"),
        (1000, None, 1000, "mean"),
    ],
)
def test_label_tables_without_a_null_row(official, rows, num_classes, classes, row):
    table = np.random.default_rng(0).standard_normal((rows, 48)).astype(np.float32)
    name = "y_embedder.embedding_table.weight"
    options = ConvertOptions("a.pt", "out", num_heads=3, num_classes=num_classes)
    state_dict, sizes, _ = conversion._adapted(Source(official | {name: table}, {}), options)
    assert sizes["num_classes"] == classes and len(state_dict[name]) == classes + 1
    np.testing.assert_array_equal(state_dict[name][:classes], table[:classes])
    np.testing.assert_allclose(state_dict[name][-1], table[-1] if row == "last" else table.mean(0), atol=1e-5)


def test_guidance_needs_a_null_row(official, tmp_path):
    table = {"y_embedder.embedding_table.weight": np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32)}
    source = save_torch(tmp_path / "a.pt", official | table)
    convert(ConvertOptions(str(source), f"{tmp_path}/out", num_heads=3, num_classes=3))
    pipe = Pipeline(*load_model(tmp_path / "out"), load_config(tmp_path / "out"))
    clips = np.zeros((1, *pipe.shape), np.float32)
    with pytest.raises(UserError, match=r"trained with loss\.label_dropout > 0, got 0"):
        pipe.complete(
            clips, np.ones((1, 5, 8, 8, 1)), sample_keys(0, range(1)), diffusion=pipe.diffusion(2), guidance=2.0
        )


def test_dit_under_diffusers_names_needs_a_size(tmp_path):
    weights = {"pos_embed.proj.weight": np.zeros((48, 4, 2, 2)), "transformer_blocks.0.norm1.linear.weight": np.ones(1)}
    with pytest.raises(
        UserError, match="does not tell its image size: add --image_size, as in its training, such as 256"
    ):
        conversion._adapted(Source(weights, {}), ConvertOptions("a.pt", "out"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {}, "exists: choose another output"),
        ({}, {"num_heads": 5}, "num_heads=5"),
        ({}, {}, "say num_heads"),
        ({}, {"num_heads": 3, "weights": "ema"}, "leave out weights=ema"),
        ({}, {"num_heads": 3, "weights": "best"}, "weights must be one of ema, model, got 'best'"),
        ({}, {"num_heads": 3, "image_size": (100,)}, "image_size must be a multiple of 16 pixels, one token, got 100"),
        ({}, {"num_heads": 3, "image_size": (64, 100)}, "multiple of 16 pixels, one token, got 64,100"),
        (
            {},
            {"num_heads": 3, "image_size": (64, 64, 3)},
            "image_size must be one number, or height,width; got 64,64,3",
        ),
        ({}, {"num_heads": 3, "image_size": ()}, "image_size must be one number, or height,width; got nothing"),
        ({}, {"num_heads": 3, "image_size": (10**6,)}, "image_size must be <= 8192, got 1000000"),
        ({}, {"num_heads": 3, "num_frames": 10**9}, "num_frames must be <= 65536, got 1000000000"),
        ({}, {"num_heads": 3, "num_classes": 7}, "num_classes must be 1, or 2 without a null row, got 7"),
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
    (tmp_path / "folder").mkdir()
    for config in (b"3", b"[" * 200_000, b"\xff\xfe"):
        (tmp_path / "folder" / "config.json").write_bytes(config)
        with pytest.raises(UserError, match=r"folder/config\.json cannot be read"):
            convert(ConvertOptions(f"{tmp_path}/folder", f"{tmp_path}/a.safetensors", to_torch=True))


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
