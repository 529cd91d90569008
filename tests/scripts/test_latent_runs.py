"""Latent-space models in the scripts: from the official file to a video, training on videos, and from its weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import ROOT, fail, line_of, scripts, succeed
from helpers.videos import moving_square
from PIL import Image

from vdt_jax.latents.space import load_space
from vdt_jax.video import fit_frame, read_frames, to_float, to_uint8, write_video

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.slow
def test_from_the_official_file_to_a_video(tmp_path):
    write_video(tmp_path / "clip.mp4", moving_square(24))
    golden = GOLDENS / "vdt_tiny.pt"
    succeed("convert_torch_ckpt.py", f"--input={golden}", f"--output={tmp_path}/tiny", "--num_heads=3")
    arguments = [f"--checkpoint={tmp_path}/tiny", "--task=predict", f"--input={tmp_path}/clip.mp4", "--steps=2"]
    assert "latent-space model (4 channels): name its autoencoder (--vae)" in fail("sample.py", *arguments)
    vae = f"--vae={GOLDENS}/vae_tiny"
    succeed("sample.py", *arguments, vae, f"--output={tmp_path}/out.npz")
    succeed("sample.py", *arguments, vae, f"--output={tmp_path}/through.npz", "--nopaste", "--encode_full")
    out, through = (np.load(tmp_path / f"{name}.npz")["video"] for name in ("out", "through"))
    truth = np.stack([fit_frame(frame, (32, 32)) for frame in read_frames(tmp_path / "clip.mp4")])[:5]
    assert out.shape == through.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(out[:2], to_uint8(to_float(truth[:2])))
    assert (through[:2] != truth[:2]).any() and (out[2:] != truth[2:]).any()


def test_train_and_evaluate_a_model_of_latents_on_videos(tmp_path):
    """By the default recipe, whose optimizer is AdamW; learned variances, and residuals of latents."""
    (tmp_path / "videos").mkdir()
    for name in "ab":
        write_video(tmp_path / "videos" / f"{name}.mp4", moving_square(24))
    sizes = dict(input_size=(8, 8), num_frames=4, in_channels=4, patch_size=4, hidden_size=16, depth=1, num_heads=2)
    run, vae = f"{tmp_path}/run", shutil.copytree(GOLDENS / "vae_tiny", tmp_path / "vae")
    arguments = [
        f"--config={ROOT}/configs/default.py",
        f"--workdir={run}",
        "--config.data.name=video_folder",
        f"--config.data.path={tmp_path}/videos",
        "--config.total_steps=2",
        "--config.batch_size=2",
        "--config.log_every=1",
        "--config.preview.num_steps=2",
        "--config.preview.num_clips=1",
        "--config.diffusion.residual=True",
        *(f"--config.model.{name}={value}" for name, value in sizes.items()),
    ]
    succeed("train.py", *arguments, f"--config.vae={vae}")
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(np.isfinite(line["loss"]) for line in lines)
    samples = Path(run, "samples", "step_0000002")
    assert len(list(samples.glob("*.gif"))) == 7
    assert Image.open(samples / "predict_0.png").height > 32  # pixels, not latents
    evaluation = [f"--checkpoint={run}", f"--output={tmp_path}/out", "--num_clips=1", "--steps=2"]
    named = [*evaluation, f"--vae={vae}", "--tasks=interpolation,spatial_temporal"]
    mistaken, done = scripts("evaluate.py", evaluation, named)
    assert "latent-space model (4 channels): name its autoencoder (--vae)" in line_of(mistaken)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [report["protocol"][size] for size in ("frames", "height", "width", "channels")] == [4, 32, 32, 3]
    scores = report["tasks"]["interpolation"]
    assert 0 < scores["model"]["PSNR"] < scores["linear blending"]["PSNR"]

    weights = bytearray((vae / "diffusion_pytorch_model.safetensors").read_bytes())
    weights[-3] ^= 1
    (vae / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    sampling = ["sample.py", f"--checkpoint={run}", f"--input={tmp_path}/videos/a.mp4", f"--output={tmp_path}/a.npz"]
    assert "name the autoencoder that it was trained with" in fail(*sampling, f"--vae={vae}")
    line = fail("train.py", *arguments, f"--config.vae={vae}")
    assert f"belongs to a run with autoencoder={load_space(GOLDENS / 'vae_tiny').hash}" in line


@pytest.mark.slow
def test_train_from_a_converted_model(tmp_path):
    golden = GOLDENS / "vdt_tiny.pt"
    succeed("convert_torch_ckpt.py", f"--input={golden}", f"--output={tmp_path}/tiny", "--num_heads=3")
    sizes = dict(input_size=(8, 8), num_frames=4, in_channels=4, hidden_size=48, depth=3, num_heads=3)
    arguments = [
        f"--config={ROOT}/configs/default.py",
        f"--workdir={tmp_path}/run",
        f"--config.init_from={tmp_path}/tiny",
        "--config.total_steps=1",
        "--config.batch_size=2",
        "--config.preview.every=0",
        "--config.learning_rate.peak=0.0",
        *(f"--config.model.{name}={value}" for name, value in sizes.items()),
    ]
    line = fail("train.py", *arguments)
    assert "time_embed has shape (1, 5, 48) there and (1, 4, 48) here" in line and "--config.init_fresh" in line
    assert not (tmp_path / "run").exists()
    assert "no parameter is called tme_embed" in fail("train.py", *arguments, "--config.init_fresh=tme_embed")
    printed = succeed("train.py", *arguments, "--config.init_fresh=time_embed,y_embedder")
    assert f"parameters from {tmp_path}/tiny, fresh: time_embed, y_embedder" in printed

    from vdt_jax.checkpoints import load_model

    theirs, ours = (load_model(tmp_path / name)[1] for name in ("tiny", "run"))
    np.testing.assert_array_equal(theirs["blocks"]["attn"]["qkv"]["kernel"], ours["blocks"]["attn"]["qkv"]["kernel"])
    table = ours["y_embedder"]["embedding_table"]["embedding"]
    assert (table != theirs["y_embedder"]["embedding_table"]["embedding"]).all()
