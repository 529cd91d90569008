"""Pipeline: every task from Python, on files, arrays and lists; what the scripts do is the same."""

import contextlib
import dataclasses
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vdt_jax
import vdt_jax.video as video_package
from vdt_jax.checkpoints import save_model
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.errors import UserError
from vdt_jax.inference import functional
from vdt_jax.inference.clip import Clip
from vdt_jax.inference.functional import task_masks
from vdt_jax.inference.inputs import open_videos
from vdt_jax.models.vdt import VDT
from vdt_jax.video import probe, read_frames, to_uint8, write_video

GOLDENS = Path(__file__).parents[1] / "goldens"
F, H, W = 6, 16, 24
SIZES = dict(num_frames=F, patch_size=8, hidden_size=8, depth=1, num_heads=1, learn_sigma=False)


def save_random_model(folder, data, **sizes):
    model = VDT(**SIZES | sizes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.video_shape)), jnp.zeros(1))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    diffusion = {"prediction": "x_start", "noise_schedule": "cosine", "clip_denoised": True}
    save_model(folder, {"model": SIZES | sizes, "diffusion": diffusion, "data": data}, params)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    data = {"name": "moving_digits", "num_digits": 1}
    save_random_model(folder, data, input_size=(H, W), in_channels=1, num_classes=10)
    return vdt_jax.Pipeline.load(folder)


@pytest.fixture(scope="module")
def video():
    """(9, H, W, 1) uint8; each frame is brighter than the last."""
    return np.broadcast_to(20 * np.arange(9, dtype=np.uint8)[:, None, None, None], (9, H, W, 1)).copy()


def given_frames(clip):
    return [number for number, frame in enumerate(clip.mask) if not frame.any()]


GIVEN = {"predict": [0, 1, 2], "backward": [3, 4, 5], "interpolation": [0, 4], "unconditional": []}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_keeps_the_given_frames(pipe, video, task):
    clip = pipe.sample(video, task, steps=2)
    assert clip.video.shape == (F, H, W, 1) and clip.video.dtype == np.uint8 and clip.truth_known
    assert given_frames(clip) == GIVEN.get(task, given_frames(clip))
    keep = np.broadcast_to(clip.mask == 0, clip.video.shape)
    np.testing.assert_array_equal(clip.video[keep], video[:F][keep])
    assert (clip.video[~keep] != video[:F][~keep]).mean() > 0.8


def test_blocks_stand_where_the_weights_were_trained_to_have_them(pipe):
    """By `loss.mask_mixture` of config.json; that of a converted folder of old has no section `loss`."""
    configs = {"varied": {"loss": {"mask_mixture": "varied"}}, "official": {"loss": {"mask_mixture": "official"}}}
    for name, loss in [*configs.items(), ("official", {})]:
        trained = dataclasses.replace(pipe, config={**pipe.config, **loss})
        masks = np.asarray(trained.task_masks("spatial_temporal", range(40)))
        np.testing.assert_array_equal(masks, task_masks(0, range(40), "spatial_temporal", pipe.model, mixture=name))
        assert masks[:, -1].any() == (name == "varied")  # the last frame is hidden


def test_shortcuts_are_the_tasks(pipe, video):
    for shortcut, task in [(pipe.predict, "predict"), (pipe.backward, "backward"), (pipe.interpolate, "interpolation")]:
        np.testing.assert_array_equal(shortcut(video, steps=2).video, pipe.sample(video, task, steps=2).video)
    np.testing.assert_array_equal(
        pipe.generate(steps=2, labels=[3]).video, pipe.sample(None, "unconditional", steps=2, labels=[3]).video
    )
    assert np.abs(pipe.generate(steps=2, labels=[3]).video.astype(int) - pipe.generate(steps=2, labels=[4]).video).max()


def test_a_task_may_leave_a_sample_as_it_is(pipe, video, monkeypatch):
    """Masks of a task are drawn: that of one sample among several may be empty."""

    def masks(self, task, numbers, *_):
        return np.full((1, F, H, W, 1), numbers[0] % 2, np.float32)

    monkeypatch.setattr(vdt_jax.Pipeline, "task_masks", masks)
    given, made = pipe.sample(video, "arbitrary_interpolation", num_samples=2, steps=2)
    np.testing.assert_array_equal(given.video, video[:F])
    assert made.mask.all()


def test_a_mask_as_an_array(pipe, video):
    hole = np.zeros((H, W), bool)
    hole[4:10, 2:5] = True
    clip = pipe.inpaint(video, hole, steps=2)
    changed = (clip.video != video[:F])[..., 0]
    assert not changed[:, ~hole].any() and changed[:, hole].mean() > 0.8
    np.testing.assert_array_equal(clip.mask[2, ..., 0], hole)


def test_a_list_of_inputs_is_a_batch(pipe, video, tmp_path):
    write_video(tmp_path / "a.npz", video[2:])
    clips = pipe.predict([video, tmp_path / "a.npz"], num_given=2, steps=2)
    assert [clip.video.shape for clip in clips] == [(F, H, W, 1)] * 2
    np.testing.assert_array_equal(clips[0].video[:2], video[:2])
    np.testing.assert_array_equal(clips[1].video[:2], video[2:4])
    alone = pipe.predict(video, num_given=2, steps=2, batch_size=1)
    assert np.abs(alone.video.astype(int) - clips[0].video).max() <= 1  # another batch, another rounding
    assert len(pipe.predict([video], steps=2)) == 1
    samples = pipe.predict(video, steps=2, num_samples=3, batch_size=2)
    assert len(samples) == 3 and np.abs(samples[0].video.astype(int) - samples[2].video).max() > 20


def classless(pipe):
    return dataclasses.replace(pipe, model=pipe.model.clone(num_classes=1))


def trained_on(pipe, **data):
    return dataclasses.replace(pipe, config={**pipe.config, "data": {"name": "video_folder", **data}})


def test_a_rate_that_no_player_shows_is_refused_before_any_work(pipe, video, tmp_path, monkeypatch):
    monkeypatch.setattr(vdt_jax.Pipeline, "complete", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(UserError, match=r"out.mp4: fps must be from 0.1 to 1000, got 5000"):
        trained_on(pipe, fps=5000.0).predict(video, steps=2, output=tmp_path / "out.mp4")


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A folder of two videos whose frame n is grey 6 n, at 30 and 60 frames per second."""
    folder = tmp_path_factory.mktemp("counted")
    frames = np.broadcast_to(6 * np.arange(40, dtype=np.uint8)[:, None, None, None], (40, H, W, 3))
    write_video(folder / "a30.mp4", frames, 30)
    write_video(folder / "b60.mp4", frames, 60)
    return folder


@pytest.mark.parametrize(
    ("data", "options", "stride", "fps"),
    [
        ({}, {}, 1, 30),
        ({"fps": 10}, {}, 3, 10),
        ({"stride": 3}, {}, 3, 10),
        ({"fps": 10}, {"stride": 1}, 1, 30),
        ({"stride": 3}, {"fps": 15}, 2, 15),
        ({"fps": 10}, {"stride": 2, "fps": 8}, 2, 8),
    ],
)
def test_frames_are_chosen_and_shown_as_in_training(pipe, counted, tmp_path, data, options, stride, fps):
    clip = trained_on(pipe, **data).predict(
        counted / "a30.mp4", start=10, steps=2, output=tmp_path / "out.mp4", **options
    )
    np.testing.assert_allclose(clip.input[:, 8, 8, 0], 6 * (10 + stride * np.arange(F)), atol=3)
    assert clip.fps == fps and probe(tmp_path / "out.mp4").fps == fps


@pytest.mark.parametrize("data", [{}, {"fps": 10}, {"stride": 3}])
def test_frames_of_an_array_are_those_of_a_clip(pipe, data):
    """Whatever the model was trained on; a stride is applied where it is asked for."""
    array = np.broadcast_to(6 * np.arange(40, dtype=np.uint8)[:, None, None, None], (40, H, W, 1))
    for options, stride in (({}, 1), ({"stride": 2}, 2)):
        clip = trained_on(pipe, **data).predict(array, start=3, steps=1, **options)
        assert clip.input[:, 8, 8, 0].tolist() == (6 * (3 + stride * np.arange(F))).tolist()


def test_an_extension_goes_on_at_the_rate_of_training(pipe, counted):
    clip = trained_on(pipe, fps=10).extend(counted / "b60.mp4", 4, num_given=3, start=2, steps=2)
    assert clip.fps == 10 and clip.truth_known
    np.testing.assert_allclose(clip.input[:, 8, 8, 0], 6 * (2 + 6 * np.arange(7)), atol=3)


def test_held_out_clips_follow_stride_and_rate(pipe, monkeypatch):
    asked = []
    source = pipe.source("held_out")
    monkeypatch.setattr(vdt_jax.Pipeline, "source", lambda *arguments: asked.append(arguments[2]) or source)
    model = trained_on(pipe, fps=10)
    assert model.predict(steps=2).fps == 10
    assert model.predict(steps=2, fps=5).fps == 5
    model.predict(steps=2, stride=2)
    assert [(data["fps"], data.get("stride")) for data in asked] == [(10, None), (5, None), (None, 2)]
    assert pipe.predict(steps=2, fps=5).fps == 5  # digits have no rate of their own


def test_a_folder_of_videos_is_sampled_by_one_program(pipe, counted, tmp_path):
    options = dict(num_given=2, steps=2, batch_size=1)
    pipe.predict(counted / "a30.mp4", **options)
    programs = functional._begin, functional._advance
    before = [program._cache_size() for program in programs]
    clips = pipe.predict([counted, counted / "a30.mp4"], start=5, output=tmp_path / "out.npz", **options)
    assert [Path(clip.name).name for clip in clips] == ["a30.mp4", "b60.mp4", "a30.mp4"]
    assert [clip.fps for clip in clips] == [30, 60, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"out_{n}.npz" for n in range(3)]
    assert [program._cache_size() for program in programs] == before
    assert len(pipe.predict(counted, **options)) == 2


def test_a_picture_and_a_video_in_one_batch(pipe, video):
    clips = pipe.predict([video[:1], video], steps=2)
    assert [given_frames(clip) for clip in clips] == [[0], [0, 1, 2]]


def test_each_label_gets_a_sample(pipe, video):
    clips = pipe.generate(labels=[3, 4], steps=2)
    assert len(clips) == 2
    alone = pipe.generate(labels=[3], steps=2)
    assert np.abs(alone.video.astype(int) - clips[0].video).max() <= 1
    assert len(pipe.predict([video] * 3, labels=[3, 4], steps=2)) == 3
    assert len(pipe.generate(labels=[3, 4], num_samples=3, steps=2)) == 3


def test_a_short_video_is_named_before_any_work(pipe, video, tmp_path):
    with pytest.raises(UserError, match=r"array of shape \(2, 16, 24, 1\) from frame 0 at stride 1 has only 2 frame"):
        pipe.predict([video, video, video[:2]], batch_size=1, steps=2, output=tmp_path / "out.npz")
    assert not list(tmp_path.iterdir())


def test_arrays_of_jax_and_numpy_options(pipe, video):
    expected = pipe.sample(video, given_frames=[0, 2], steps=2).video
    arguments = {"given_frames": np.array([0, 2]), "steps": np.int64(2)}
    np.testing.assert_array_equal(pipe.sample(jnp.asarray(video), **arguments).video, expected)


def test_a_pipeline_and_a_clip_are_shown_in_one_line(pipe, video):
    assert repr(pipe) == "Pipeline(clips (6, 16, 24, 1) (F, H, W, C), PixelSpace)"
    assert repr(pipe.predict(video, steps=2, fps=12)) == "Clip(6 frames of 16x24, 50% generated, 12 fps)"


def test_extend_and_raise_the_frame_rate(pipe, video):
    longer = pipe.extend(video, 7, num_given=2, steps=2)
    assert longer.video.shape == (9, H, W, 1) and given_frames(longer) == [0, 1] and longer.truth_known
    np.testing.assert_array_equal(longer.video[:2], video[:2])
    before = pipe.extend(video, 4, task="backward", num_given=3, steps=2)
    assert given_frames(before) == [4, 5, 6]
    np.testing.assert_array_equal(before.video[4:], video[:3])
    smooth = pipe.raise_frame_rate(video, 2, steps=2, fps=10)
    assert smooth.video.shape == (17, H, W, 1) and smooth.fps == 20
    np.testing.assert_array_equal(smooth.video[::2], video)
    assert given_frames(smooth) == list(range(0, 17, 2))
    two = pipe.raise_frame_rate([video, video[:4]], 2, steps=2)
    assert [len(clip.video) for clip in two] == [17, 7]
    np.testing.assert_array_equal(two[1].video[::2], video[:4])


def nullwriter():
    return contextlib.nullcontext(types.SimpleNamespace(write=lambda frame: None))


@pytest.mark.parametrize(
    ("options", "sound"),
    [({}, ["a30.mp4", 0.5]), ({"fps": 30}, ["a30.mp4", 0.5]), ({"fps": 15}, []), ({"sound": False}, [])],
)
def test_sound_is_kept_where_the_rate_is_raised(pipe, counted, tmp_path, monkeypatch, options, sound):
    asked = []
    monkeypatch.setattr(video_package, "VideoWriter", lambda *arguments: asked.append(arguments) or nullwriter())
    pipe.raise_frame_rate(counted / "a30.mp4", 2, start=15, steps=1, output=tmp_path / "out.mp4", **options)
    (path, fps, *kept), *others = asked
    assert (path, fps) == (tmp_path / "out.mp4", 2 * options.get("fps", 30)) and not others
    assert [getattr(value, "name", value) for value in kept] == sound


def test_arrays_and_folders_of_frames_have_no_sound(video, tmp_path):
    (tmp_path / "frames").mkdir()
    write_video(tmp_path / "frames" / "0.png", video[:1])
    for value in (video, tmp_path / "frames"):
        assert open_videos(value)[0].sound(0) == ()


def test_a_long_video_is_written_as_it_is_made(pipe, video, tmp_path):
    frames = np.concatenate([video] * 5)
    clip = pipe.raise_frame_rate(frames, 2, steps=1, output=tmp_path / "out.npz")
    written = np.load(tmp_path / "out.npz")["video"]
    assert len(written) == 89 and 64 <= len(clip.video) < 89
    np.testing.assert_array_equal(written[::2, ..., :1], frames)
    np.testing.assert_array_equal(written[: len(clip.video), ..., :1], clip.video)


def test_progress_counts_all_steps_and_changes_no_bits(pipe, video):
    seen = []
    arguments = {"num_samples": 3, "batch_size": 2, "steps": 25}
    watched = pipe.predict(video, progress=lambda done, total: seen.append((done, total)), **arguments)
    assert seen[-1] == (50, 50) and len(seen) > 10 and seen == sorted(seen)
    for a, b in zip(watched, pipe.predict(video, **arguments), strict=True):
        np.testing.assert_array_equal(a.video, b.video)


@pytest.mark.parametrize("name", ["out.gif", "out.png"])
@pytest.mark.parametrize("long", [False, True])
def test_an_output_that_is_an_image_is_the_sample(pipe, video, tmp_path, name, long):
    options = {"extend": 3, "num_given": 2} if long else {}
    clip = pipe.sample(video, steps=2, output=tmp_path / name, **options)
    clip.save(tmp_path / f"again_{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again_{name}").read_bytes()


def test_saving(pipe, video, tmp_path):
    clip = dataclasses.replace(pipe.predict(video, steps=2), fps=12.5)
    clip.save(tmp_path / "out.mp4")
    assert probe(tmp_path / "out.mp4").fps == 12.5
    clip.save(tmp_path / "out.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["video"][..., :1], clip.video)
    clip.save_comparison(tmp_path / "out.gif")
    three = next(read_frames(tmp_path / "out.gif")).shape[1]
    dataclasses.replace(clip, truth_known=False).save_comparison(tmp_path / "two.gif")
    assert next(read_frames(tmp_path / "two.gif")).shape[1] < three
    with pytest.raises(UserError, match=r"must be \.gif or \.png"):
        clip.save_comparison(tmp_path / "out.mp4")


def test_the_cost_is_measured_and_nothing_is_written(pipe, video, tmp_path):
    cost = pipe.cost(video, fps_factor=2, steps=7)
    assert (cost.window, cost.batch_size, cost.num_batches, cost.steps) == ((F, H, W, 1), 1, 7, 7)
    assert cost.memory > 0 and cost.seconds_per_step > 0
    assert pipe.cost(video, num_samples=5, batch_size=2)[1:3] == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe, video: pipe.predict(video, step=3), "unknown option 'step': did you mean 'steps'"),
        (lambda pipe, video: pipe.predict(video, steps=0), "steps must be >= 1, got 0"),
        (lambda pipe, video: pipe.predict(video, seed=-1), "seed must be >= 0, got -1"),
        (lambda pipe, video: pipe.predict(video, guidance=float("nan")), "guidance must be a finite number, got nan"),
        (
            lambda pipe, video: pipe.predict(video * 1.0),
            r"array of shape \(9, 16, 24, 1\) holds numbers that are not in",
        ),
        (lambda pipe, video: pipe.predict(video[..., 0]), r"\(9, 16, 24\)"),
        (lambda pipe, video: pipe.predict(video[:2], num_given=4), r"array of shape .* has only 2 frame\(s\)"),
        (lambda pipe, video: pipe.inpaint(video, np.zeros((3, 4))), "mask an array of shape .* is 3x4"),
        (lambda pipe, video: pipe.extend([video], 3, num_given=6), "num_given must be < 6"),
        (lambda pipe, video: pipe.raise_frame_rate(video, 2, start=9), r"has no frame 9: choose a smaller start"),
        (lambda pipe, video: pipe.predict(video, fps=5000), r"fps must be <= 1000, got 5000\.0"),
        (lambda pipe, video: pipe.raise_frame_rate(video, 2, stride=2), "fps_factor keeps every frame .* got 2"),
        (lambda pipe, video: pipe.predict(""), "an input or mask must be a path or an array, got an empty path"),
        (lambda pipe, video: pipe.generate(labels=[3, 2**30]), r"labels must be 0 to 10 .*, got \[3, 1073741824\]"),
        (
            lambda pipe, video: classless(pipe).generate(labels=[0]),
            "labels need a model with classes, and this one has",
        ),
        (lambda pipe, video: pipe.predict(video, labels=[]), "labels must name at least one class, got none"),
        (
            lambda pipe, video: pipe.sample(video, given_frames=()),
            "given_frames must name at least one frame, got none",
        ),
        (lambda pipe, video: pipe.predict(video, output="out.avi"), "output must end in"),
        (lambda pipe, video: pipe.predict([]), "input must name at least one video, got an empty list"),
        (lambda pipe, video: pipe.predict(5), "must be a path or an array, got a value of type int"),
        (lambda pipe, video: pipe.inpaint(video, [[1]]), "must be a path or an array, got a value of type list"),
        (
            lambda pipe, video: pipe.inpaint(video, None),
            r"inpaint needs a mask \(an image, video, .npz or array\), got",
        ),
        (lambda pipe, video: pipe.diffusion(0), "steps must be >= 1, got 0"),
        (
            lambda pipe, video: pipe.complete(video[None, :F], None, None, diffusion=None),
            r"clips must be floats in \[-1, 1\] of shape \(B, 6, 16, 24, 1\), got uint8 of shape \(1, 6, 16, 24, 1\)",
        ),
        (
            lambda pipe, video: pipe.complete(video[None] / 255.0, None, None, diffusion=None),
            r"got float64 of shape \(1, 9, 16, 24, 1\)",
        ),
    ],
)
def test_mistakes_get_one_line(pipe, video, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(pipe, video)
    assert "\n" not in str(error.value)


def test_a_model_of_latents_with_its_autoencoder(tmp_path, monkeypatch):
    """A converted model on latents: pixels in, pixels out, the given pixels untouched."""
    save_random_model(tmp_path / "model", {"name": "synthetic"}, input_size=(4, 4), in_channels=4, patch_size=2)
    with pytest.raises(UserError, match=r"latent-space model \(4 channels\): name its autoencoder"):
        vdt_jax.Pipeline.load(tmp_path / "model")
    pipe = vdt_jax.Pipeline.load(tmp_path / "model", vae=GOLDENS / "vae_tiny")
    assert pipe.shape == (F, 16, 16, 3)
    video = np.random.default_rng(0).integers(0, 256, (F, 16, 16, 3), np.uint8)
    write_video(tmp_path / "in.npz", video)
    clip = pipe.predict(tmp_path / "in.npz", num_given=4, steps=2)
    clip.save(tmp_path / "out.mp4")
    assert len(list(read_frames(tmp_path / "out.mp4"))) == F
    np.testing.assert_array_equal(clip.video[:4], to_uint8(open_videos(video)[0].read(range(4), pipe.shape[1:])))
    assert np.abs(clip.video[4:].astype(int) - video[4:]).max() > 20
    decoded = pipe.predict(tmp_path / "in.npz", num_given=4, steps=2, paste=False)
    assert np.abs(decoded.video[:4].astype(int) - clip.video[:4]).max() > 0
    assert isinstance(clip, Clip)
