"""Whether training on every kind of data resumes after a kill with the same bits.

    python benchmarks/resume_data.py --input=FOLDER_OF_VIDEOS --output=runs/resume_data

Converts the videos to a tree of frame folders, a tensorflow-datasets dataset and a latent cache; trains a tiny model on
each and on the videos, once uninterrupted and once killed (SIGKILL) at about half of its steps and resumed; compares
losses and EMA weights bit by bit.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from vdt_jax.checkpoints import load_model
from vdt_jax.video import fit_frame, probe, read_frames

_INPUT = flags.DEFINE_string("input", None, "A folder of videos.", required=True)
_OUTPUT = flags.DEFINE_string("output", "runs/resume_data", "Folder for data and runs; it is replaced.")
_VAE = flags.DEFINE_string("vae", "tests/goldens/vae_tiny", "An autoencoder; its weights may be random.")
_KINDS = flags.DEFINE_list("kinds", ["videos", "frames", "tfds", "latents"], "What to train on.")

_ROOT = Path(__file__).parent.parent
_TINY = [
    f"--config={_ROOT}/configs/video_folder_tiny.py",
    "--config.model.hidden_size=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.unroll=1",
    "--config.model.num_frames=8",
    "--config.batch_size=4",
    "--config.preview.every=0",
    "--config.log_every=1",
    "--config.learning_rate.warmup_steps=1",
]
_FRAMES_KEPT = 64  # of each video, in the tree of frame folders


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(_ROOT / script), *arguments]


def run(script: str, *arguments: str) -> None:
    subprocess.run(command(script, *arguments), check=True, stdout=subprocess.DEVNULL)


def make_data(kind: str, videos: Path, folder: Path) -> tuple[list[str], int]:
    """The flags of training on one kind of data, and the number of steps."""
    if kind == "videos":
        return [f"--config.data.path={videos}"], 40
    data = folder / kind
    if kind == "frames":
        for video in sorted(path for path in videos.iterdir() if path.is_file()):
            (data / video.stem / "part_1").mkdir(parents=True)
            for number, frame in zip(range(_FRAMES_KEPT), read_frames(video), strict=False):
                Image.fromarray(fit_frame(frame, (48, 64))).save(data / video.stem / "part_1" / f"{number}.jpg")
        return [f"--config.data.path={data}"], 40
    size = ["--size=32", f"--input={videos}", f"--output={data}"]
    if kind == "tfds":
        run("prepare.py", *size, "--num_frames=8", "--hop=16")
        return [f"--config.data.name=tfds:{data}"], 400
    run("prepare.py", *size, f"--vae={_VAE.value}", "--shard_frames=300")
    side = 32 // 2 ** (len(json.loads((Path(_VAE.value) / "config.json").read_text())["block_out_channels"]) - 1)
    model = [
        f"--config.model.input_size=({side},{side})",
        "--config.model.in_channels=4",
        "--config.model.patch_size=2",
    ]
    return ["--config.data.name=latents", f"--config.data.path={data}", *model], 400


def losses(workdir: Path) -> dict[int, float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").is_file() else []
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines[:-1])}


def train_killed(arguments: list[str], workdir: Path, kill_at: int) -> int:
    """Kills the run once it has logged this step; returns the last step that it logged."""
    process = subprocess.Popen(command("train.py", *arguments), stdout=subprocess.DEVNULL, start_new_session=True)
    while max(losses(workdir), default=0) < kill_at:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself with {process.returncode}")
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return max(losses(workdir))


def compare(kind: str, videos: Path, folder: Path) -> str:
    """Compares the runs on one kind of data; returns a line of results.

    Raises:
      AssertionError: the runs differ.
    """
    data, steps = make_data(kind, videos, folder)
    every = [*_TINY, *data, f"--config.total_steps={steps}", f"--config.checkpoint_every={steps // 8}"]
    whole, killed = folder / f"{kind}_whole", folder / f"{kind}_killed"
    run("train.py", *every, f"--workdir={whole}")
    last = train_killed([*every, f"--workdir={killed}"], killed, steps // 2 + 3)
    saved = max(int(path.name) for path in (killed / "checkpoints").iterdir() if path.name.isdigit())
    run("train.py", *every, f"--workdir={killed}")
    assert losses(whole) == losses(killed), f"{kind}: other losses"
    jax.tree.map(np.testing.assert_array_equal, load_model(whole)[1], load_model(killed)[1])
    return f"{kind}: {steps} steps, killed at {last}, gone on from {saved}: losses and weights equal bit by bit"


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    folder = Path(_OUTPUT.value)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    videos = Path(_INPUT.value)
    print(", ".join(f"{path.name} {probe(path).num_frames} frames" for path in sorted(videos.iterdir())), flush=True)
    for kind in _KINDS.value:
        print(compare(kind, videos, folder), flush=True)


if __name__ == "__main__":
    app.run(main)
