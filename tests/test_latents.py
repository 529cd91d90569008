"""A VDT of latents samples a video: encode, sample, decode, with nothing hidden leaking and nothing given changing."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_data import moving_square
from test_scripts import ROOT, fail, succeed

from vdt_jax.codec import encode_batch, encode_video
from vdt_jax.errors import UserError
from vdt_jax.generation import enlarge_mask, generate, load_vae, respaced, sample_keys
from vdt_jax.models import VDT
from vdt_jax.video import fit_frame, read_frames, to_float, to_uint8, write_video

GOLDENS = Path(__file__).parent / "goldens"
MODEL = VDT(input_size=4, num_frames=2, patch_size=2, hidden_size=8, depth=1, num_heads=1)


@pytest.fixture(scope="module")
def vae():
    return load_vae(GOLDENS / "vae_tiny")


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).uniform(-1, 1, (2, 2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def mask():
    """The first frame of one clip is given; of the other, the left half of both frames."""
    mask = np.zeros((2, 2, 4, 4, 1), np.float32)
    mask[0, 1] = 1
    mask[1, :, :, 2:] = 1
    return mask


def test_masks_grow_with_their_cells():
    mask = np.array([[0, 1], [0, 0]], np.float32).reshape(1, 1, 2, 2, 1)
    assert enlarge_mask(mask, 2)[0, 0, :, :, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_hidden_pixels_do_not_reach_the_latents(vae, clips, mask):
    assert vae.clip_shape(MODEL) == clips.shape[1:]
    keys = sample_keys(0, range(2))
    hidden = enlarge_mask(mask, 4) > 0.5
    others = np.where(hidden, -clips, clips)
    np.testing.assert_array_equal(vae.encode(clips, mask, keys), vae.encode(others, mask, keys))
    full = [vae.encode(x, mask, keys, encode_full=True) for x in (clips, others)]
    given = np.broadcast_to(mask[1:] < 0.5, full[0][1:].shape)
    assert np.abs(np.asarray(full[0] - full[1])[1:][given]).max() > 1e-3  # they leak through the attention


def test_hidden_pixels_are_the_mean_of_the_given(vae, clips, mask):
    hidden = enlarge_mask(mask, 4)[..., 0] > 0.5
    filled = clips.copy()
    for clip, where in zip(filled, hidden, strict=True):
        clip[where] = clip[~where].mean(axis=0)
    keys = sample_keys(0, range(2))
    expected = vae.encode(filled, mask, keys, encode_full=True)
    np.testing.assert_allclose(vae.encode(clips, mask, keys), expected, atol=1e-5)
    assert np.asarray(expected)[0, 0].any() and not np.asarray(expected)[0, 1].any()  # nothing given, not encoded
    assert not np.asarray(vae.encode(clips, np.ones_like(mask), keys)).any()


def test_given_pixels_come_back_as_they_were(vae, clips, mask):
    keys = sample_keys(0, range(2))
    x = np.zeros((1, *MODEL.video_shape), np.float32)
    params = MODEL.init(jax.random.key(0), x, np.zeros(1))["params"]
    latents = vae.encode(clips, mask, keys)
    samples = generate(MODEL, params, respaced({}, 2, True), latents, mask, keys)
    given = np.broadcast_to(mask < 0.5, samples.shape)
    np.testing.assert_array_equal(np.asarray(samples)[given], np.asarray(latents)[given])
    pasted, decoded = (vae.decode(samples, clips, mask, paste) for paste in (True, False))
    hidden = np.broadcast_to(enlarge_mask(mask, 4) > 0.5, clips.shape)
    np.testing.assert_array_equal(pasted[~hidden], clips[~hidden])
    np.testing.assert_allclose(pasted[hidden], decoded[hidden], atol=1e-5)  # frames alone, or in one chunk
    assert (decoded[~hidden] != clips[~hidden]).any()


def test_an_autoencoder_of_other_latents(vae):
    with pytest.raises(UserError, match="takes 3 channels, the autoencoder makes 4"):
        vae.clip_shape(VDT(in_channels=3))


def test_from_the_official_file_to_a_video(tmp_path):
    write_video(tmp_path / "clip.mp4", moving_square(24))
    golden = GOLDENS / "vdt_tiny.pt"
    succeed("convert_torch_ckpt.py", f"--input={golden}", f"--output={tmp_path}/tiny", "--num_heads=3")
    arguments = [f"--checkpoint={tmp_path}/tiny", "--task=predict", f"--input={tmp_path}/clip.mp4", "--steps=2"]
    assert "model of latents (4 channels): add --vae" in fail("sample.py", *arguments)
    vae = f"--vae={GOLDENS}/vae_tiny"
    succeed("sample.py", *arguments, vae, f"--output={tmp_path}/out.npz")
    succeed("sample.py", *arguments, vae, f"--output={tmp_path}/through.npz", "--nopaste", "--encode_full")
    out, through = (np.load(tmp_path / f"{name}.npz")["video"] for name in ("out", "through"))
    truth = np.stack([fit_frame(frame, (32, 32)) for frame in read_frames(tmp_path / "clip.mp4")])[:5]
    assert out.shape == through.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(out[:2], to_uint8(to_float(truth[:2])))
    assert (through[:2] != truth[:2]).any() and (out[2:] != truth[2:]).any()


def test_a_training_batch_is_encoded_as_clips_are(vae, clips):
    batch = jax.jit(functools.partial(encode_batch, vae.model))(vae.params, clips, None)
    clip_by_clip = [encode_video(vae.model, vae.params, clip, key=None) for clip in clips]
    np.testing.assert_allclose(batch, np.stack(clip_by_clip), atol=1e-5)
    drawn = [encode_batch(vae.model, vae.params, clips, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).mean() > 0.9


def test_train_and_evaluate_a_model_of_latents_on_videos(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in "ab":
        write_video(tmp_path / "videos" / f"{name}.mp4", moving_square(24))
    sizes = dict(input_size=(8, 8), num_frames=4, in_channels=4, patch_size=4, hidden_size=16, depth=1, num_heads=2)
    run, vae = f"{tmp_path}/run", f"{GOLDENS}/vae_tiny"
    arguments = [
        f"--config={ROOT}/configs/video_folder_tiny.py",
        f"--workdir={run}",
        f"--config.data.path={tmp_path}/videos",
        "--config.total_steps=2",
        "--config.batch_size=2",
        "--config.preview.num_steps=2",
        "--config.preview.num_clips=1",
        "--config.diffusion.clip_denoised=False",
        *(f"--config.model.{name}={value}" for name, value in sizes.items()),
    ]
    succeed("train.py", *arguments, f"--config.vae={vae}")
    assert Image.open(f"{run}/samples/step_0000002/predict_0.png").height > 32  # pixels, not latents
    evaluation = ["evaluate.py", f"--checkpoint={run}", f"--output={tmp_path}/out", "--num_clips=1", "--steps=2"]
    assert "model of latents (4 channels): add --vae" in fail(*evaluation)
    succeed(*evaluation, f"--vae={vae}", "--tasks=interpolation,spatial_temporal")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [report["protocol"][size] for size in ("frames", "height", "width", "channels")] == [4, 32, 32, 3]
    scores = report["tasks"]["interpolation"]
    assert 0 < scores["model"]["PSNR"] < scores["linear blending"]["PSNR"]


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
