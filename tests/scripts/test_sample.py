"""sample.py, flag by flag, in this process on a model of a thousand parameters; every mistake gets one clear line."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from helpers.torch_files import save_torch
from PIL import Image

import sample
from vdt_jax.checkpoints import save_model
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT
from vdt_jax.video import fit_frame, probe, read_frames, write_video

SIZES = dict(input_size=(16, 24), num_frames=6, in_channels=1, patch_size=8, hidden_size=8, depth=1, num_heads=1)
F, H, W = 6, 16, 24


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = VDT(**SIZES, num_classes=10, learn_sigma=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.video_shape)), jnp.zeros(1))["params"]
    rng = np.random.default_rng(0)  # large weights: labels and noise shall be seen in the samples
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.7, leaf.shape).astype(np.float32), shapes)
    config = {
        "model": SIZES | {"num_classes": 10, "learn_sigma": False},
        "diffusion": {"prediction": "x_start", "noise_schedule": "cosine", "clip_denoised": True},
        "data": {"name": "moving_digits", "num_digits": 1},
    }
    save_model(folder, config, params)
    return folder


def video(num_frames=9, height=32, width=48):
    """Each frame is brighter than the last; 2x2 pixels become one, exactly."""
    frames = np.full((num_frames, height, width, 3), 20, np.uint8)
    frames[..., : width // 2, :] += (10 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    return frames


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for suffix in ("mp4", "gif", "npz"):
        write_video(folder / f"a.{suffix}", video(), fps=10)
    (folder / "frames").mkdir()
    for number, frame in enumerate(video()):
        Image.fromarray(frame).save(folder / "frames" / f"frame_{number}.png")
    Image.fromarray(video()[0]).save(folder / "a.png")
    official = np.moveaxis(video().astype(np.float32) / 127.5 - 1, -1, 1)[None]  # (B, T, C, H, W)
    save_torch(folder / "a.pt", np.concatenate([official, -official]))
    hole = np.zeros((32, 48), np.uint8)
    hole[9:20, 5:7] = 255
    Image.fromarray(hole).save(folder / "hole.png")
    np.savez(folder / "hole.npz", mask=np.arange(F)[:, None, None] * np.ones((H, W)) > 3)
    write_video(folder / "hole.mp4", np.repeat(hole[None, ..., None], 9, axis=0).repeat(3, axis=-1))
    write_video(folder / "short.mp4", video(2))
    return folder


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """Runs sample.py; gives the folder that it wrote."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR", "unused"))

    def run(*arguments, steps=2, output="out.npz"):
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        defaults = [f"--checkpoint={checkpoint}", f"--steps={steps}", f"--output={tmp_path}/{output}"]
        monkeypatch.setattr("sys.argv", ["sample.py", *defaults, *map(str, arguments)])
        flags.FLAGS(sys.argv)
        sample.main([])
        return tmp_path

    return run


def sampled(folder, name="out.npz"):
    return np.load(folder / name)["video"]


def truth(numbers=range(F)):
    return np.stack([fit_frame(frame, (H, W), 1) for frame in video()[list(numbers)]])


@pytest.mark.parametrize(("name", "tolerance"), [("a.mp4", 6), ("a.gif", 3), ("frames", 0), ("a.npz", 0), ("a.pt", 1)])
def test_every_kind_of_input(run, inputs, name, tolerance):
    out = sampled(run(f"--input={inputs}/{name}", "--task=predict", "--num_given=4", "--start=2", "--num_samples=1"))
    assert out.shape == (F, H, W, 3)
    np.testing.assert_allclose(out[:4, ..., :1].astype(int), truth(range(2, 6)), atol=tolerance)
    assert np.abs(out[4:, ..., :1].astype(int) - truth(range(6, 8))).max() > 20


def test_a_picture_becomes_a_video(run, inputs):
    folder = run(f"--input={inputs}/a.png")
    np.testing.assert_array_equal(sampled(folder)[0, ..., :1], truth()[0])
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "out.gif", "out.npz", "out.png"]
    assert Image.open(folder / "out.gif").width < 2.5 * 8 * W  # given | sample: the truth is not known


def test_clips_of_an_array_are_taken_in_turn(run, inputs):
    folder = run(f"--input={inputs}/a.pt", "--given_frames=0,5", "--num_samples=3", "--batch_size=2")
    first, second, third = (sampled(folder, f"out_{i}.npz")[..., :1].astype(int) for i in range(3))
    np.testing.assert_allclose(first[[0, 5]], truth([0, 5]), atol=1)
    np.testing.assert_allclose(second[[0, 5]], 255 - truth([0, 5]).astype(int), atol=1)
    np.testing.assert_array_equal(third[[0, 5]], first[[0, 5]])
    assert np.abs(third - first)[1:5].max() > 20
    page = (folder / "index.html").read_text()
    assert all(f'src="out_{i}.gif"' in page for i in range(3)) and "--given_frames=0,5" in page


@pytest.mark.parametrize("name", ["hole.png", "hole.mp4"])
def test_a_mask_of_the_size_of_the_input_hides_every_pixel_that_it_touches(run, inputs, name):
    out = sampled(run(f"--input={inputs}/a.npz", f"--mask={inputs}/{name}", "--given_frames=2"))[..., :1]
    changed = out != truth()
    assert not changed[2].any() and changed[3, 4:10, 2:4].mean() > 0.9
    changed[:, 4:10, 2:4] = False  # rows 9 to 19 of 32 and columns 5 and 6 of 48, halved and rounded outwards
    assert not changed.any()


def test_a_mask_for_each_frame(run, inputs):
    out = sampled(run(f"--input={inputs}/a.npz", f"--mask={inputs}/hole.npz"))[..., :1]
    np.testing.assert_array_equal(out[:4], truth()[:4])
    assert (out[4:] != truth()[4:]).mean() > 0.9


def test_samples_are_the_same_in_any_batch(run, inputs):
    arguments = [f"--input={inputs}/a.npz", "--num_samples=3"]
    together = [sampled(run(*arguments), f"out_{i}.npz") for i in range(3)]
    for number in range(3):
        alone = sampled(run(*arguments, "--batch_size=1"), f"out_{number}.npz")
        assert np.abs(alone.astype(int) - together[number]).max() <= 1
    assert np.abs(sampled(run(*arguments, "--seed=1"), "out_0.npz").astype(int) - together[0]).max() > 20


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sampler=ddim", "--eta=0.5"],
        ["--sampler=dpm_solver_pp", "--timestep_respacing=logsnr3"],
        ["--sampler=unipc", "--timestep_respacing=trailing3"],
        ["--sampler=repaint", "--resamples=3"],
        ["--guidance=4"],
        ["--mask_guidance=2", "--labels=3"],
        ["--labels=7"],
    ],
)
def test_every_sampler_and_guidance_says_something_else(run, arguments):
    plain = sampled(run("--labels=3", "--task=predict"))
    out = sampled(run("--labels=3", "--task=predict", *arguments))
    np.testing.assert_array_equal(out[:3], plain[:3])
    assert np.abs(out[3:].astype(int) - plain[3:]).max() > 2


def test_extend_forward(run, inputs, caplog):
    caplog.set_level("INFO")
    folder = run(f"--input={inputs}/a.npz", "--extend=11", "--num_given=2", "--num_samples=2")
    for number in range(2):
        out = sampled(folder, f"out_{number}.npz")
        assert out.shape == (13, H, W, 3)
        np.testing.assert_array_equal(out[:2, ..., :1], truth([0, 1]))
    assert np.abs(out.astype(int) - sampled(folder, "out_0.npz")).max() > 20
    assert "out_1.npz: frames 0-1 of 13 given; 8 frames per second" in caplog.text


def test_extend_backward_to_an_mp4(run, inputs):
    folder = run(f"--input={inputs}/a.npz", "--extend=4", "--task=backward", output="out.mp4", steps=1)
    out = np.stack(list(read_frames(folder / "out.mp4")))
    assert out.shape == (7, H, W, 3)
    assert np.abs(out[4:, ..., :1].astype(int) - truth(range(3))).mean() < 4


def test_held_out_clips_are_extended_beside_their_truth(run):
    folder = run("--extend=7", "--task=backward", "--num_given=5", steps=1)
    assert sampled(folder).shape == (12, H, W, 3)
    assert Image.open(folder / "out.png").height > 2.5 * 5 * H  # given, sample and truth


@pytest.mark.parametrize("arguments", [[], ["--overlap=1"]])
def test_raise_the_frame_rate(run, inputs, arguments):
    folder = run(
        f"--input={inputs}/frames", "--fps_factor=2", "--fps=10", "--batch_size=2", *arguments, output="out.mp4"
    )
    out = np.stack(list(read_frames(folder / "out.mp4")))
    assert out.shape == (17, H, W, 3) and probe(folder / "out.mp4").fps == 20
    assert np.abs(out[::2, ..., :1].astype(int) - truth(range(9))).mean() < 4
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("arguments", [[], ["--extend=20"], ["--fps_factor=2", "--input=frames"]])
def test_dry_run_measures_and_writes_nothing(run, inputs, arguments, capsys):
    arguments = [argument.replace("frames", f"{inputs}/frames") for argument in arguments]
    assert not list(run("--dry_run", *arguments).iterdir())
    printed = capsys.readouterr().out
    assert "(6, 16, 24, 1)" in printed and "MiB" in printed and "s per step" in printed


def test_a_page_of_somebody_else_is_not_overwritten(run, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match="not a page of this program"):
        run()
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=/nowhere"], "no checkpoint in /nowhere"),
        (["--output=out.webp"], r"output must end in \.mp4, \.gif, \.png, \.npz, got"),
        (["--steps=0"], "steps must be >= 1, got 0"),
        (["--num_given=99"], "num_given must be 1 to 5 for 6 frames, got 99"),
        (["--sampler=euler"], "sampler must be one of ddpm, ddim, .*, got 'euler'"),
        (["--task=fly"], "task must be one of predict, .*, got 'fly'"),
        (["--timestep_respacing=leading5"], "'leading5' is not a count"),
        (["--timestep_respacing=trailing0"], "0 steps do not fit"),
        (["--sampler=ddim", "--eta=2"], r"eta must be <= 1, got 2\.0"),
        (["--eta=1"], r"eta=1\.0 is for sampler ddim, not ddpm"),
        (["--sampler=repaint", "--resamples=0"], "resamples must be >= 1, got 0"),
        (["--labels=11"], r"labels must be 0 to 10 .*, got \[11\]"),
        (["--labels=cat"], "labels must be a list of integers, got 'cat'"),
        (["--num_samples=0"], "num_samples must be >= 1, got 0"),
        (["--batch_size=0"], "batch_size must be >= 1, got 0"),
        (["--start=-1"], "start must be >= 0, got -1"),
        (["--given_frames=0,6"], r"given_frames must be < 6 \(clips have 6 frames\), got 6"),
        (["--given_frames=first"], "given_frames must be a list of integers, got 'first'"),
        (["--given_frames=0,1,2,3,4,5"], "nothing is left to generate: list fewer given frames"),
        (
            ["--given_frames=0", "--task=predict"],
            "given_frames says which frames are given: leave out task and num_given",
        ),
        (["--mask=a.png", "--num_given=2"], "mask says which frames are given: leave out task"),
        (["--extend=3", "--fps_factor=2"], "do not go together"),
        (["--extend=3", "--task=interpolation"], "extend needs task predict or backward, got 'interpolation'"),
        (["--extend=3", "--num_given=6"], "num_given must be < 6, the frames of a window, got 6"),
        (["--extend=0"], "extend must be >= 1, got 0"),
        (["--fps_factor=2"], "fps_factor raises the frame rate of a video: give an input, got none"),
        (["--labels="], "labels must name at least one class, got none"),
        (["--fps_factor=0", "--input=DIR/a.npz"], "fps_factor must be >= 2, got 0"),
        (["--fps_factor=6", "--input=DIR/a.npz"], "fps_factor must be from 2 to 5 with this model, got 6"),
        (
            ["--fps_factor=2", "--overlap=3", "--input=DIR/a.npz"],
            "overlap must be from 1 to 2, .* has 3 given frames; got 3",
        ),
        (["--fps_factor=2", "--input=DIR/a.png"], "nothing between them"),
        (["--input=DIR/none.mp4"], "file not found"),
        (["--input=DIR/hole.npz"], "holds mask: an array 'video' is needed"),
        (["--input=DIR/short.mp4"], r"from frame 0 at stride 1 has only 2 frame\(s\), but frame 2"),
        (["--input=DIR/short.mp4", "--start=2"], "has no frame 2"),
        (["--input=DIR/short.mp4", "--extend=3"], "has only 2 such frames: choose a smaller num_given"),
        (["--mask=DIR/empty"], "mask .* has no frames: give an image"),
        (["--mask=DIR/none.png"], "mask not found"),
        (["--mask=DIR/a.mp4", "--input=DIR/a.mp4"], "nothing white"),
        (["--mask=DIR/hole.png"], "32x48 .* 16x24 is needed"),
        (["--mask=DIR/wide.png", "--input=DIR/a.mp4"], "8x9 .* 16x24 or 32x48 is needed"),
        (["--mask=DIR/flat.npz"], r"shape \(16,\): \(H, W\) or \(F, H, W\)"),
        (["--mask=DIR/two.npz"], "has 2 frames: 1, the clip's 6"),
        (["--mask=DIR/wide.npz"], "holds video: an array 'mask'"),
        (["--input=DIR/flat.npz"], r"shape \(5, 5, 5\)"),
        (["--input=DIR/large.npz"], r"not in \[-1, 1\]"),
        (["--input=DIR/broken.npz"], "cannot be read"),
        (["--input=DIR/broken.pt"], "cannot be loaded"),
    ],
)
def test_mistakes(run, inputs, arguments, message, tmp_path):
    Image.fromarray(np.full((8, 9), 255, np.uint8)).save(inputs / "wide.png")
    (inputs / "empty").mkdir(exist_ok=True)
    np.savez(inputs / "flat.npz", mask=np.ones(16), video=np.zeros((5, 5, 5), np.uint8))
    np.savez(inputs / "two.npz", mask=np.ones((2, H, W)))
    np.savez(inputs / "wide.npz", video=video())
    np.savez(inputs / "large.npz", video=np.full((F, H, W, 1), 255.0))
    (inputs / "broken.npz").write_bytes(b"PK\x03\x04 no more")
    (inputs / "broken.pt").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(UserError, match=message) as raised:
        run(*[argument.replace("DIR", str(inputs)) for argument in arguments])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_several_inputs_and_a_folder_of_videos(run, inputs, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "in" / name).write_bytes((inputs / "a.mp4").read_bytes())
    folder = run(f"--input={inputs}/a.npz", f"--input={tmp_path}/in", "--task=predict", steps=1)
    names = [f"out_{number}.{suffix}" for number in range(3) for suffix in ("gif", "npz", "png")]
    assert sorted(path.name for path in folder.iterdir()) == ["in", "index.html", *names]
    page = (folder / "index.html").read_text()
    assert f"{tmp_path}/in/a.mp4" in page and f"{tmp_path}/in/b.mp4" in page
