"""prepare.py: a latent cache, also interrupted, damaged or with other settings, and a dataset of clips."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.damaged_videos import KINDS, pictures, video
from helpers.scripts import SHRUNK, fail, succeed
from helpers.videos import read_clip

from vdt_jax.data import make_source
from vdt_jax.data.pipeline import batches
from vdt_jax.errors import UserError
from vdt_jax.latents.cache import write_metadata
from vdt_jax.latents.codec import decode_video, draw_latents, encode_video
from vdt_jax.latents.prepare import PrepareOptions, prepare
from vdt_jax.latents.space import PixelSpace, VaeSpace, load_space, pixel_source
from vdt_jax.models.fingerprint import fingerprint
from vdt_jax.models.vdt import VDT
from vdt_jax.video import to_float, to_uint8

ROOT = Path(__file__).parents[2]
VAE = Path(__file__).parents[1] / "goldens" / "vae_tiny"
SHAPE = (4, 4, 6, 4)  # latents of 16x24 pixels


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare") / "videos"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "a.mp4").write_bytes(video(20))
    (folder / "b.mp4").write_bytes(video(9))
    pictures(folder / "frames", 6)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def options_of(videos, folder, **more):
    chosen = {"input": str(videos), "output": str(folder), "vae": str(VAE), "size": (16, 24)}
    return PrepareOptions(**chosen | {"shard_frames": 6, "batch_size": 4, "max_bad": 0.3} | more)


def command_of(options):
    """The same on the command line."""
    values = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    shown = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
    return "prepare.py", *(f"--{name}={value}" for name, value in shown.items())


@pytest.fixture(scope="module")
def cache(videos, tmp_path_factory):
    output = tmp_path_factory.mktemp("cache") / "latents"
    prepare(options_of(videos, output))
    return output


def source_of(path, shape=SHAPE, **options):
    return make_source({"name": "latents", "path": str(path), "held_out": 0.0} | options, shape, "train")


def test_the_cache_holds_what_the_autoencoder_makes_of_each_frame(cache, videos):
    vae = load_space(VAE)
    source = source_of(cache, hop=1, labels=True)
    assert len(source) == 17 + 6 + 3 and source.num_classes == 2
    clips = [source.clip(number) for number in range(len(source))]
    expected = to_float(read_clip(videos / "x" / "a.mp4", (4, 16, 24, 3), start=11))
    mode = encode_video(vae.model, vae.params, expected, key=None)
    errors = [np.abs(draw_latents(source.scaling_factor, clip["video"], None) - mode).max() for clip in clips]
    assert min(errors) < 2e-3 and clips[int(np.argmin(errors))]["label"] == 1
    assert source.autoencoder == vae.hash
    assert "broken.mp4" in (cache / "bad_files.jsonl").read_text()


def test_moments_of_a_position_are_the_same_and_draws_are_theirs(cache):
    source = source_of(cache, hop=100)
    assert len(source) == 3

    def run(first_step, steps, **options):
        stream = batches(source, batch_size=2, seed=7, first_step=first_step, **options)
        return np.stack([next(stream)["video"] for _ in range(steps)])

    whole = run(0, 4)
    assert whole.dtype == np.float16 and whole.shape[2:] == (4, 4, 6, 8)
    np.testing.assert_array_equal(run(2, 2, num_threads=1), whole[2:])
    halves = [run(1, 1, host=host, num_hosts=2)[0] for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole[1])
    moments = source.clip(0)["video"].astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 400)
    draws = np.asarray(jax.vmap(lambda key: draw_latents(0.18215, moments, key))(keys))
    deviation = 0.18215 * np.exp(0.5 * moments[..., 4:])
    np.testing.assert_allclose(draws.std(0), deviation, rtol=0.2)
    assert (np.abs(draws.mean(0) - 0.18215 * moments[..., :4]) < 5 * deviation / 20).all()
    np.testing.assert_array_equal(draw_latents(1.0, moments, None), moments[..., :4])


def test_a_cache_is_continued_and_its_damaged_shards_are_written_again(cache, videos, tmp_path, caplog):
    copy = shutil.copytree(cache, tmp_path / "copy")
    before = {file.name: file.read_bytes() for file in sorted(copy.iterdir())}
    (copy / "shard_00001.json").unlink()
    with pytest.raises(UserError, match="2 of its 3 shards"):
        source_of(copy)
    (copy / "shard_00001.json").write_text("")
    with pytest.raises(UserError, match=r"shard_00001\.json is corrupt: re-run prepare.py to repair it"):
        source_of(copy)
    (copy / "shard_00000.npy").unlink()
    data = bytearray(before["shard_00002.npy"])
    data[-1] ^= 1
    (copy / "shard_00002.npy").write_bytes(data)
    caplog.set_level("INFO")
    prepare(options_of(videos, copy))
    assert "0 of 3 shards are there and whole" in caplog.messages
    assert {file.name: file.read_bytes() for file in sorted(copy.iterdir())} == before


@pytest.mark.slow
def test_two_hosts_share_the_work(videos, tmp_path):
    assert "0 of 3 shards" in succeed(*command_of(options_of(videos, tmp_path / "alone")))
    name, *flags = command_of(options_of(videos, tmp_path / "shared", num_processes=2))
    hosts = [
        subprocess.Popen(
            [sys.executable, str(ROOT / name), *flags, f"--process_id={number}"], stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    printed = [host.communicate(timeout=300)[0] for host in hosts]
    assert "0 of 2 shards" in printed[0] and "0 of 1 shards" in printed[1]
    for file in (tmp_path / "alone").glob("[ms]*"):  # metadata.json, and the shards
        assert (tmp_path / "shared" / file.name).read_bytes() == file.read_bytes()
    assert all("broken.mp4" in (tmp_path / "shared" / f"bad_files_{n}.jsonl").read_text() for n in range(2))


def test_videos_that_failed_before_a_kill_are_listed_and_counted_after_it(tmp_path, caplog):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(video(20))
    KINDS["bad_middle.mp4"][1](tmp_path / "videos" / "bad_middle.mp4")
    options = options_of(tmp_path / "videos", tmp_path / "cache", max_bad=0.5)
    prepare(options)
    listed = (tmp_path / "cache" / "bad_files.jsonl").read_text()
    assert "bad_middle.mp4" in listed
    caplog.set_level("INFO")
    prepare(options)
    assert "2 of 2 shards are there and whole" in caplog.messages
    assert (tmp_path / "cache" / "bad_files.jsonl").read_text() == listed
    with pytest.raises(UserError, match="1 of 2 videos cannot be read"):
        prepare(dataclasses.replace(options, max_bad=0.1))


def test_the_script_continues_a_cache_that_python_wrote(cache, videos):
    options = options_of(videos, cache)
    assert "3 of 3 shards are there and whole" in succeed(*command_of(options))
    assert "was begun with frame_size=[16, 24] (now [16, 16])" in fail(*command_of(options), "--size=16")


def test_without_an_autoencoder_a_dataset_of_clips_is_written(videos, tmp_path, caplog):
    caplog.set_level("INFO")
    options = options_of(videos, tmp_path / "clips", vae=None, num_frames=4, hop=4, held_out=0.3, labels=True)
    prepare(options)
    data = {"name": f"tfds:{tmp_path / 'clips'}", "labels": True}
    assert caplog.messages[-1].endswith(f"train on it with --config.data.name={data['name']}")
    sources = [make_source(data, (4, 16, 24, 3), split) for split in ("train", "held_out")]
    assert sum(map(len, sources)) == 5 + 2 + 1 and all(map(len, sources)) and sources[0].num_classes == 2
    assert sources[0].clip(0)["video"].shape == (4, 16, 24, 3)
    assert "broken.mp4" in (tmp_path / "clips" / "bad_files.jsonl").read_text()
    with pytest.raises(UserError, match="has a dataset already: choose another output"):
        prepare(options)


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "gone"])
def test_a_damaged_cache_is_noticed_while_it_is_read(cache, tmp_path, damage):
    copy = shutil.copytree(cache, tmp_path / "copy")
    for file in copy.glob("*.npy"):
        data = bytearray(file.read_bytes())
        data[200::1000] = bytes(b ^ 255 for b in data[200::1000])
        file.write_bytes({"changed": data, "cut": data[: len(data) // 2]}.get(damage, b""))
        if damage == "gone":
            file.unlink()
    with pytest.raises(UserError, match=r"shard_0000\d\.npy is corrupt"):
        source_of(copy).clip(0)


def test_mistakes_with_caches(cache, videos, tmp_path):
    for path, shape, message in [
        ("", SHAPE, "which prepare.py --vae wrote"),
        (tmp_path, SHAPE, "no latent cache in"),
        (cache, (4, 8, 8, 4), r"holds latents of \[4, 6, 4\]"),
        (cache, (40, 4, 6, 4), "no video for the train split"),
    ]:
        with pytest.raises(UserError, match=message):
            source_of(path, shape)
    for changed, message in [
        ({"size": (16,)}, r"was begun with frame_size=\[16, 24\] \(now \[16, 16\]\)"),
        ({"vae_dtype": "bfloat16"}, r"was begun with vae_dtype=float32 \(now bfloat16\)"),
        ({"size": (15, 24)}, "size must be multiples of the autoencoder's factor 4, got 15,24"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare(options_of(videos, cache, **changed))


def test_a_cache_from_before_dtypes_were_written_goes_on(tmp_path):
    write_metadata(tmp_path, {"num_shards": 1})
    write_metadata(tmp_path, {"num_shards": 1, "vae_dtype": "bfloat16"})
    with pytest.raises(UserError, match=r"num_shards=1 \(now 2\)"):
        write_metadata(tmp_path, {"num_shards": 2, "vae_dtype": "bfloat16"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_frames": 0}, "num_frames must be >= 1, got 0"),
        ({"hop": 0}, "hop must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"shard_frames": -1}, "shard_frames must be >= 1, got -1"),
        ({"fps": -2.0}, "fps must be >= 0, got -2"),
        ({"fps": 2.0, "stride": 2}, "fps and stride exclude each other, got fps=2 and stride=2"),
        ({"held_out": 1.5}, "held_out must be < 1, got 1.5"),
        ({"num_processes": 2, "process_id": 2}, "process_id must be from 0 to 1, got 2"),
        ({"num_processes": 2, "vae": None}, "a dataset is written by one process"),
        ({"size": (1, 2, 3)}, "size must be one number, or height,width; got 1,2,3"),
        ({"size": (0,)}, "size must be >= 1, got 0"),
        ({"output": None}, "input and output are required"),
    ],
)
def test_mistakes_in_options(changed, message):
    with pytest.raises(UserError, match=message):
        options_of("videos", "out", **changed)


def test_a_model_is_sampled_on_pixels_of_a_cache(cache):
    space, model = load_space(VAE), VDT(input_size=SHAPE[1:3], num_frames=SHAPE[0])
    data = {"name": "latents", "path": str(cache), "held_out": 0.0, "hop": 1, "labels": True}
    source = pixel_source(data, model, space, "held_out", num_frames=3)
    moments = source_of(cache, (3, *SHAPE[1:]), hop=1)
    assert len(source) == len(moments) and source.num_classes == 2
    mode = draw_latents(moments.scaling_factor, moments.clip(5)["video"], None)
    clip = source.clip(5)["video"]
    assert clip.shape == (3, 16, 24, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, to_uint8(decode_video(space.model, space.params, np.asarray(mode))))
    without = pixel_source(data, model, PixelSpace(), "held_out", num_frames=3)
    np.testing.assert_array_equal(without.clip(5)["video"], mode)
    other = VaeSpace(space.model, jax.tree.map(lambda leaf: leaf + 1, space.params))
    with pytest.raises(UserError, match="was made by the autoencoder"):
        pixel_source(data, model, other, "held_out")


@pytest.mark.slow
def test_training_on_a_cache(cache, tmp_path):
    run = [
        f"--config={ROOT}/configs/default.py",
        f"--workdir={tmp_path}/run",
        *SHRUNK,
        "--config.data.name=latents",
        f"--config.data.path={cache}",
        "--config.model.input_size=(4,6)",
        "--config.model.num_frames=4",
        "--config.total_steps=1",
    ]
    succeed("train.py", *run, f"--config.vae={VAE}")
    assert len(list((tmp_path / "run" / "samples").rglob("*.gif"))) == 7
    held_out = [f"--checkpoint={tmp_path}/run", "--steps=2"]
    assert "name its autoencoder (--vae)" in fail("sample.py", *held_out, f"--output={tmp_path}/out.npz")
    held_out.append(f"--vae={VAE}")
    succeed("sample.py", *held_out, f"--output={tmp_path}/out.npz", "--extend=3", "--num_given=1")
    assert np.load(tmp_path / "out.npz")["video"].shape == (4, 16, 24, 3)
    succeed("evaluate.py", *held_out, f"--output={tmp_path}/report", "--tasks=predict", "--num_clips=1")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "latent cache" in report["protocol"]["crop"] and report["tasks"]["predict"]["copy nearest"]["PSNR"] > 0
    other = shutil.copytree(cache, tmp_path / "other")
    metadata = json.loads((other / "metadata.json").read_text())
    (other / "metadata.json").write_text(json.dumps(metadata | {"autoencoder": "0" * 64}))
    line = fail("train.py", *run, f"--config.vae={VAE}", f"--config.data.path={other}", f"--workdir={tmp_path}/no")
    assert "was made by the autoencoder 000000000000" in line

    run[run.index(f"--config.data.path={cache}")] = f"--config.data.path={other}"
    run[1] = f"--workdir={tmp_path}/without"
    succeed("train.py", *run)
    (other / "metadata.json").write_text(json.dumps(metadata))  # made again by another autoencoder
    assert f"autoencoder={'0' * 64} (now {metadata['autoencoder']})" in fail("train.py", *run)
    evaluation = ["evaluate.py", f"--checkpoint={tmp_path}/without", f"--vae={VAE}", f"--output={tmp_path}/no"]
    assert "was trained with the autoencoder 000000000000" in fail(*evaluation)
    config = json.loads((tmp_path / "without" / "config.json").read_text())
    del config["autoencoder"]  # as before it was written
    (tmp_path / "without" / "config.json").write_text(json.dumps(config))
    succeed("train.py", *run)
    assert metadata["autoencoder"] in (tmp_path / "without" / "config.json").read_text()


def test_a_fingerprint_tells_autoencoders_apart():
    vae = load_space(VAE)
    changed = jax.tree.map(np.array, vae.params)
    next(iter(jax.tree.leaves(changed))).flat[0] += 1e-3
    assert vae.hash == load_space(VAE, "bfloat16").hash != fingerprint(vae.model, changed)
    load_space(VAE, config={})
    load_space(VAE, config={"autoencoder": vae.hash})
    with pytest.raises(UserError, match=f"trained with the autoencoder {fingerprint(vae.model, changed)[:12]}"):
        load_space(VAE, config={"autoencoder": fingerprint(vae.model, changed)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["videos", "frames", "tfds", "latents"])
def test_runs_on_all_kinds_of_data_go_on_after_a_kill(tmp_path, kind):
    (tmp_path / "videos").mkdir()
    for name in "abc":
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(video(40))
    flags = [f"--input={tmp_path}/videos", f"--output={tmp_path}/out", f"--vae={VAE}"]
    assert "losses and weights equal bit by bit" in succeed("benchmarks/resume_data.py", *flags, f"--kinds={kind}")
