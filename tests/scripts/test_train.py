"""The scripts as a person runs them: each recipe, shrunk, trains and samples; mistakes get one line and exit code 2."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.event_files import pictures, scalars
from helpers.scripts import DIGITS, ROOT, SHRUNK, environment, fail, line_of, script, scripts, succeed
from helpers.videos import moving_square

from vdt_jax.data.pipeline import clip_numbers
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.errors import INTERRUPTED
from vdt_jax.video import read_frames, write_video

RECIPES = ["moving_digits", "video_folder_tiny"]  # test_latent_runs.py has the default, test_recipes.py all


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name in "abc":
        write_video(folder / f"{name}.mp4", moving_square(24))
    return folder


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, videos):
    """A run of a video recipe: trained to step 2 of 4, then to the end by the same command."""
    workdir = tmp_path_factory.mktemp("runs") / "videos"
    command = [
        f"--config={ROOT}/configs/video_folder_tiny.py",
        f"--workdir={workdir}",
        f"--config.data.path={videos}",
        "--config.total_steps=4",
        "--config.validation.every=3",
        *SHRUNK,
    ]
    for done, steps in zip(
        scripts("train.py", [*command, "--stop_after=2"], command), ("0 to 2", "2 to 4"), strict=True
    ):
        assert done.returncode == 0 and f"step {steps}" in done.stdout, done.stdout + done.stderr[-2000:]
    return workdir


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The working directory of two steps of a recipe that needs no files."""
    workdir = tmp_path_factory.mktemp("recipes") / "digits"
    succeed("train.py", DIGITS, f"--workdir={workdir}", "--config.total_steps=2", *SHRUNK)
    return workdir


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_without_an_autoencoder_train_and_preview(recipe, request):
    if recipe == "video_folder_tiny":
        workdir, last = request.getfixturevalue("workdir"), 4
    else:
        workdir, last = request.getfixturevalue("digits"), 2
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, last + 1))
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert "steps_per_second" in lines[1] and "mfu" not in lines[1]  # the peak of a CPU is not known
    assert len(list((workdir / "samples" / f"step_000000{last}").glob("*.gif"))) == 7


def test_working_directory_after_a_resumed_run(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert ["validation/predict" in line for line in lines] == [False, False, True, False]
    assert lines[2]["evaluation/interpolation PSNR"] > 0
    validated = {name.replace(" ", "_"): value for name, value in lines[2].items() if "/" in name}
    logged = {name: steps for name, steps in scalars(workdir).items() if "/" in name}
    assert len(logged) == 7 + 4 + 2 * 7 and logged == {name: {3: pytest.approx(x)} for name, x in validated.items()}
    shown = pictures(workdir)
    assert shown.keys() == {f"samples/{task}_0" for task in TASKS} and all(
        steps.keys() == {2, 4} for steps in shown.values()
    )
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]
    assert len(list(workdir.glob("events.*"))) == 2
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 2


# SIGTERM to another process of the run: this one stops after step 2 with the others, and samples meanwhile.
INTERRUPTED_ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import train
train.Interruption.requested = lambda self, step: step == 2
train.cli.run(train.main)
"""


@pytest.mark.slow
def test_previews_of_the_step_after_which_a_run_is_interrupted_are_logged(tmp_path):
    arguments = [DIGITS, f"--workdir={tmp_path}", "--config.validation.every=2", "--config.preview.every=2", *SHRUNK]
    command = [sys.executable, "-c", INTERRUPTED_ELSEWHERE, str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert done.returncode == INTERRUPTED, done.stderr[-2000:]
    assert len(list(tmp_path.glob("samples/step_0000002/*.gif"))) == len(TASKS)
    shown = pictures(tmp_path)
    assert {name: list(steps) for name, steps in shown.items()} == {f"samples/{task}_0": [2] for task in TASKS}


@pytest.mark.slow
def test_a_damaged_file_that_is_held_out_does_not_end_a_run(tmp_path, videos):
    """Its first frame can be decoded, so that the index does not know of it."""
    for name in "abc":
        write_video(tmp_path / "held_out" / f"{name}.mp4", moving_square(24))
    damaged = bytearray((tmp_path / "held_out" / "a.mp4").read_bytes())
    damaged[len(damaged) // 3 : len(damaged) // 2] = bytes(len(damaged) // 2 - len(damaged) // 3)
    (tmp_path / "held_out" / "a.mp4").write_bytes(damaged)
    data = [f"--config.data.path={videos}", f"--config.data.held_out_path={tmp_path / 'held_out'}"]
    run = [f"--config={ROOT}/configs/video_folder_tiny.py", f"--workdir={tmp_path / 'run'}", "--config.total_steps=1"]
    more = ["--config.validation.every=1", "--config.data.max_bad=0.5", *data]
    succeed("train.py", *run, *SHRUNK, *more)
    assert "a.mp4" in (tmp_path / "run" / "bad_files_held_out.jsonl").read_text()
    assert not (tmp_path / "run" / "bad_files.jsonl").exists()
    sample = [f"--checkpoint={tmp_path / 'run'}", "--task=predict", "--steps=2", f"--output={tmp_path / 'out.mp4'}"]
    succeed("sample.py", *sample)


def test_sample_a_video_file(workdir, videos, tmp_path):
    out = tmp_path / "out.mp4"
    succeed(
        "sample.py",
        f"--checkpoint={workdir}",
        "--task=interpolation",
        f"--input={videos}/a.mp4",
        f"--output={out}",
        "--steps=2",
    )
    sampled = np.stack(list(read_frames(out)))
    config = json.loads((workdir / "config.json").read_text())["model"]
    assert sampled.shape == (config["num_frames"], *config["input_size"], 3)
    assert out.with_suffix(".gif").is_file() and out.with_suffix(".png").is_file()
    # A given frame is the file's own, but for what mp4 loses; red stays red, on the left.
    first = sampled[0].astype(int)
    height, width = first.shape[:2]
    square = first[height // 2, width // 8]
    assert square[0] > square[2] + 80
    assert first[1, -2, 2] > first[1, -2, 0] + 80


def test_sample_held_out_clips_with_numbers(workdir, tmp_path):
    arguments = [f"--checkpoint={workdir}", "--task=predict", "--num_given=3", "--num_samples=2", "--steps=2"]
    succeed("sample.py", *arguments, f"--output={tmp_path}/out.npz")
    pictures = [f"out_{i}.{suffix}" for i in (0, 1) for suffix in ("gif", "npz", "png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", *pictures]


@pytest.mark.slow
def test_a_model_with_classes(tmp_path):
    run = [f"--workdir={tmp_path}/run", "--config.data.num_digits=1", "--config.total_steps=1", *SHRUNK]
    line = fail("train.py", DIGITS, *run, "--config.model.num_classes=7")
    assert "model.num_classes must be 1, or 10 as in the data, got 7" in line
    succeed("train.py", DIGITS, *run, "--config.model.num_classes=10", "--config.preview.every=0")
    sample = [f"--checkpoint={tmp_path}/run", "--task=unconditional", "--steps=2"]
    succeed("sample.py", *sample, "--labels=3", f"--output={tmp_path}/three.npz")
    assert "labels must be 0 to 10 (the last is 'no label'), got [11]" in fail("sample.py", *sample, "--labels=11")


def test_convert_and_load(tmp_path):
    golden = ROOT / "tests" / "goldens" / "vdt_tiny.pt"
    printed = succeed("convert_torch_ckpt.py", f"--input={golden}", f"--output={tmp_path}/tiny", "--num_heads=3")
    assert "67 tensors" in printed
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["model"]["depth"] == 3
    assert "exists" in fail("convert_torch_ckpt.py", f"--input={golden}", f"--output={tmp_path}/tiny", "--num_heads=3")


def test_python_m_says_what_there_is():
    done = subprocess.run(
        [sys.executable, "-m", "vdt_jax"], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    assert "jax " in done.stdout and "device(s)" in done.stdout and "MISSING" not in done.stdout


MISTAKES = [
    (
        ["--config=configs/moving_digts.py"],
        "moving_digts.py cannot be loaded (No such file or directory): name a recipe, ",
    ),
    (["--config=", "--config.seed=1"], "--config= cannot be loaded (Path to config file is an empty string.): "),
    (["--config=/nowhere.py", "--config.seed=1"], "error: --config=/nowhere.py cannot be loaded (No such file"),
    (["--config=configs"], "--config=configs cannot be loaded (Is a directory)"),
    (["--config=LICENSE"], "--config=LICENSE cannot be loaded (unexpected indent, line 2)"),
    (["--config=/dev/null"], "--config=/dev/null cannot be loaded (it has no function get_config())"),
    ([DIGITS + ":small"], "(TypeError: get_config() takes 0 positional arguments but 1 was given"),
    (["--config=\x1b[31m"], r"--config=\x1b[31m cannot be loaded"),
    ([DIGITS, "--config.model.depth=1000000"], "error: model.depth must be <= 1024, got 1000000"),
    ([DIGITS, "--num_processes=0"], "error: num_processes must be >= 1, got 0"),
    ([], "add --config=configs/"),
    ([DIGITS, "--config.batchsize=3"], 'Did you mean "batch_size"'),
    ([DIGITS, "--config.model.dept=3"], 'Did you mean "depth"'),
    ([DIGITS, "--config.batch_size=many"], "batch_size"),
    ([DIGITS, "--wrokdir=x"], "wrokdir"),
    ([DIGITS, "extra"], "'extra' is not a flag"),
    ([DIGITS, "--config.model.patch_size=5"], "patch_size=5 does not divide frames of 32x32"),
    ([DIGITS, "--config.loss.mask_mixture=officious"], "loss.mask_mixture must be one of varied, official"),
    ([DIGITS, "--config.data.name=digits"], "no data source 'digits'"),
    ([DIGITS, "--config.data.digits=3"], "num_digits"),
    ([DIGITS, "--config.log_every=0"], "log_every must be >= 1, got 0"),
    ([DIGITS, "--config.learning_rate.peak=-1"], "error: learning_rate.peak must be >= 0, got -1.0"),
    ([DIGITS, "--stop_after=-3"], "error: stop_after must be >= 1, got -3"),
    (
        [DIGITS, "--config.grad_accum=3"],
        "batch_size (the global batch size) must be a multiple of 1 devices x 3 parts (grad_accum), got 16",
    ),
    ([DIGITS, "--config.tracker=tensorboard"], "tracker must be one of wandb, trackio, got 'tensorboard'"),
    ([DIGITS, "--config.mesh.fsdp=2"], "mesh.fsdp must divide the number of devices, 1, got 2"),
    ([DIGITS, "--config.model.remat=some"], "model.remat must be one of none, full, matmuls, got 'some'"),
    ([DIGITS, "--config.optimizer.frozen=blocs"], "optimizer.frozen=blocs matches no parameter"),
    ([DIGITS, "--num_processes=2"], "also needs coordinator and process_id"),
    ([f"--config={ROOT}/configs/video_folder_tiny.py"], "add --config.data.path=FOLDER"),
    ([f"--config={ROOT}/configs/video_folder_tiny.py", "--config.data.path=/nowhere"], "folder not found: /nowhere"),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """For each of MISTAKES, what train.py did, and the working directory that it was given."""
    workdirs = [tmp_path_factory.mktemp("mistakes") / "run" for _ in MISTAKES]
    runs = [[f"--workdir={workdir}", *arguments] for workdir, (arguments, _) in zip(workdirs, MISTAKES, strict=True)]
    return list(zip(scripts("train.py", *runs), workdirs, strict=True))


def test_help_lists_the_flags_of_the_script():
    assert "--stop_after: Save and stop after this step" in script("train.py", "--help").stdout


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=lambda number: MISTAKES[number][1])
def test_train_mistakes(number, mistakes):
    done, workdir = mistakes[number]
    assert MISTAKES[number][1] in line_of(done)
    assert not workdir.exists()


def test_a_workdir_of_another_run_is_left_alone(workdir, videos):
    before = sorted(workdir.rglob("*"))
    arguments = [f"--config={ROOT}/configs/video_folder_tiny.py", f"--config.data.path={videos}", *SHRUNK]
    line = fail("train.py", f"--workdir={workdir}", *arguments, "--config.model.depth=2")
    assert "model.depth=1 (now 2)" in line and "another --workdir" in line
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.slow
def test_a_run_without_a_finite_loss_is_stopped(tmp_path):
    """A decay of 1e38 ruins the parameters: from then on no loss is finite, and the run names its last checkpoint."""
    ruinous = ["--config.optimizer.weight_decay=1e38", "--config.checkpoint_every=2", "--config.preview.every=0"]
    done = script("train.py", DIGITS, f"--workdir={tmp_path}", *SHRUNK, *ruinous)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert re.search(r"error: 5 steps in a row, up to step 7, .* checkpoint is .*/checkpoints/\d$", last), last
    left_out = [line for line in done.stdout.splitlines() if line.startswith("WARNING")]
    assert [re.search(r"step (\d) is skipped", line)[1] for line in left_out] == list("34567")
    clips = clip_numbers(1 << 20, 0, range(4, 6))
    assert left_out[0].endswith(f"1 skipped in total, 1 in a row; clips {clips[0]}, {clips[1]}")


def test_a_mistake_in_sampling(workdir):
    """The others are in test_sample.py."""
    assert "task must be one of predict, backward" in fail("sample.py", f"--checkpoint={workdir}", "--task=predicts")
