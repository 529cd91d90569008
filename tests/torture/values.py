"""Lines of flags and configs: each is refused in one line and exit code 2, or allowed, in seconds. `make torture`.

    python tests/torture/values.py 300 0        # how many drawn lines, and the seed; those of REFUSED are always tried

Every option of every script gets values that no option or few options have. A line is run by the script itself, in a
child of a process that has imported it, up to the work: the first compilation of training and sampling, the writing of
a dataset. What is allowed is printed, to be read.
"""

import dataclasses
import importlib
import importlib.machinery
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))

SECONDS = 5.0  # of CPU time, after the imports
GIBIBYTES = 3.0  # of memory, with all that is imported
CLOCK = 120  # seconds, on a busy machine

# By kind of option. What a kind allows depends on the option.
INTEGERS = ("-1", "0", "1", "2147483648", "18446744073709551616", "1e9", "1.5", "nan", "", " ", "0x10", "x", "None")
NUMBERS = ("-1", "0", "-0.0", "nan", "inf", "-inf", "1e30", "1e400", "1e-320", "", "x", "1,5", "None", "True")
BOOLEANS = ("maybe", "", "2", "None", "TRUE")
LISTS = ("", ",", "1,", "-1", "x", "1;2", "1e9", "9999999999", "0,0,0", ",".join(["1"] * 5000), "predict,predict", "[1")
TEXTS = (
    "",
    " ",
    "x",
    "/dev/null",
    "/etc/passwd",
    "/proc/nowhere/x",
    ".",
    "/proc/x",
    "~",
    "\x1b[31m",
    "x" * 5000,
    "a\nb",
    "gs://",
)
CONFIG_LISTS = ("()", "(1,)", "(0,0)", "(-8,8)", "(8,8,8)", "8", "(8.5,8)", "('a','b')", "(1000000000,8)", "((8,8),8)")
MAPPINGS = ("{}", "{'x': 1}", "[1]", "x", "{1: 2}", "", "{'x': {'y': []}}")

# What was accepted once, or ended in a traceback.
REFUSED = {
    "train": [
        *(
            "--config.learning_rate.peak=-1",
            "--config.learning_rate.peak=1e30",
            "--config.learning_rate.warmup_steps=-5",
        ),
        *("--config.ema_decay=2", "--config.optimizer.b2=1.5", "--config.optimizer.weight_decay=nan"),
        *("--config.loss.label_dropout=7", "--config.loss.noise_shift=-1", "--config.diffusion.min_snr_gamma=0"),
        *("--config.model.unroll=0", "--config.seed=-1", "--config.preview.num_steps=2000", "--stop_after=-3"),
        *("--config.seed=18446744073709551616", "--config.diffusion.num_diffusion_timesteps=0"),
        *("--config.model.mlp_ratio=nan", "--workdir=/etc/passwd", "--workdir=/dev/null/a", "--config=/nowhere.py"),
        *("--config.data.stride=0", "--config.data.hop=0", "--config.data.num_digits=-1", "--config.data.name="),
        *("--config.model.input_size=(0,0)", "--config.batch_size=0", "--nonsense", "--config.nonsense=1", "nonsense"),
        *("--config.data.time_limit=0", "--config.data.feature=video", "--config.data.options={'nonsense': 1}"),
        *("--config.data.name=os:system", "--config.data.name=tfds:", "--config.data.name=tfds:/nowhere"),
        *("--config.data.name=latents", "--config.vae=/nowhere"),
        *("--config.init_from=/nowhere", "--coordinator=nowhere", "--num_processes=2"),
    ],
    "sample": [
        *("--fps=inf", "--fps=nan", "--fps=0", "--guidance=nan", "--given_frames=", "--batch_size=1e9", "--labels="),
        *("--labels=99999999999", "--output=/etc/passwd/a.mp4", "--output=a.txt", "--seed=-1", "--steps=0"),
        *("--task=fly", "--task=predict,backward", "--sampler=euler", "--mask=/nowhere.png", "--input=", "--eta=2"),
        *("--input=/dev/zero", "--input=/nowhere.mp4", "--checkpoint=/nowhere", "--checkpoint=", "--extend=0"),
        *("--timestep_respacing=x", "--timestep_respacing=ddim0", "--num_given=99", "--start=-1", "--stride=0"),
        *("--fps_factor=1", "--fps_factor=2", "--resamples=0", "--overlap=1e3", "--vae=/nowhere", "--vae_dtype=int8"),
    ],
    "evaluate": [
        *("--output=", "--output=/etc/passwd", "--tasks=", "--tasks=fly", "--preset=x", "--split=both"),
        *("--num_clips=0", "--every=0", "--metrics=lpipz", "--fps=nan", "--stride=0", "--ssim_border=-1"),
        *("--data=/nowhere", "--data=/etc/passwd", "--guidance=2", "--samples=/nowhere"),
        *("--first_clip=-1", "--first_clip=2000000", "--seed=-1", "--preset=latte-sky"),
    ],
    "prepare": [
        *("--output=", "--output=/etc/passwd", "--input=/nowhere", "--input=", "--size=0", "--size=8,8,8", "--size="),
        *("--fps=nan", "--fps=-1", "--held_out=1", "--held_out=-1", "--max_bad=2", "--num_frames=0", "--process_id=1"),
        *(
            "--num_processes=2",
            "--input=vizdoom:x",
            "--vae=/nowhere",
            "--num_clips=1",
            "--short=x",
            "--fps=8 --stride=2",
        ),
    ],
    "convert_torch_ckpt": [
        *(
            "--input=/nowhere.pt",
            "--input=",
            "--input=/etc/passwd",
            "--output=",
            "--output=/etc/passwd",
            "--num_heads=0",
        ),
        *("--image_size=0", "--image_size=7", "--image_size=8,8,8", "--num_frames=0", "--num_classes=0"),
        *("--weights=x", "--zero_time_embed", "--to_torch", "--output=/etc/passwd/a", "--num_heads=1e9"),
    ],
    "app": ["--port=-1", "--port=99999", "--port=x", "--max_megabytes=0", "--checkpoint=/nowhere", "--vae=/nowhere"],
}


def options_of(cls: Any, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """The options of a dataclass, nested ones too, with values to try."""
    from vdt_jax.options import kind_of

    found: dict[str, tuple[str, ...]] = {}
    for field in dataclasses.fields(cls):
        kind, is_tuple, _ = kind_of(cls, field.name)
        if dataclasses.is_dataclass(kind):
            found |= options_of(kind, f"{prefix}{field.name}.")
            continue
        values = {int: INTEGERS, float: NUMBERS, bool: BOOLEANS, dict: MAPPINGS}.get(kind, TEXTS)
        found[prefix + field.name] = (CONFIG_LISTS if prefix else LISTS) if is_tuple else values
    return found


def table() -> list[tuple[str, str]]:
    """All (script, option with a value) that are drawn from."""
    from vdt_jax.checkpoints.conversion import ConvertOptions
    from vdt_jax.evaluation.options import EvaluateOptions
    from vdt_jax.inference.options import SampleOptions
    from vdt_jax.latents.prepare import PrepareOptions
    from vdt_jax.training.config import RunOptions, TrainConfig

    common = {"checkpoint": TEXTS, "vae": TEXTS, "trust_data": BOOLEANS}
    numbers = dict.fromkeys(("stride", "hop", "num_digits", "memory_limit"), INTEGERS)
    numbers |= dict.fromkeys(("fps", "held_out", "max_bad", "time_limit", "random_crop"), NUMBERS)
    texts = dict.fromkeys(("name", "path", "held_out_path", "short", "feature", "crop"), TEXTS)
    data = numbers | texts | dict.fromkeys(("labels", "random_flip"), BOOLEANS) | {"options": MAPPINGS}
    config = options_of(TrainConfig, "config.") | {f"config.data.{name}": values for name, values in data.items()}
    options = {
        "train": config | options_of(RunOptions) | {"config": TEXTS},
        "sample": options_of(SampleOptions) | common | {"input": TEXTS, "output": TEXTS, "dry_run": BOOLEANS},
        "evaluate": options_of(EvaluateOptions) | common | {"samples": TEXTS, "truth": TEXTS},
        "prepare": options_of(PrepareOptions),
        "convert_torch_ckpt": options_of(ConvertOptions),
        "app": common | {"host": TEXTS, "port": INTEGERS, "max_megabytes": INTEGERS},
    }
    return [
        (script, f"--{name}={value}")
        for script, named in options.items()
        for name, values in named.items()
        for value in values
    ]


def allowed(*_: Any, **__: Any) -> None:
    """In place of the work."""
    raise SystemExit(0)


def base(script: str, text: str, folder: Path, number: int) -> list[str]:
    """What a line has besides the option `text` that is tried."""
    from helpers.scripts import DIGITS, SHRUNK

    videos = [f"--config={ROOT}/configs/video_folder_tiny.py", f"--config.data.path={folder}/videos"]
    config = videos if text.startswith("--config.data.") and "num_digits" not in text else [DIGITS]
    return {
        "train": [*config, f"--workdir={folder}/run{number}", *SHRUNK],
        "sample": [f"--checkpoint={folder}/model", f"--output={folder}/out{number}/a.npz", "--steps=2"],
        "evaluate": [f"--checkpoint={folder}/model", f"--output={folder}/report{number}", "--steps=2"],
        "prepare": [f"--input={folder}/videos", f"--output={folder}/data{number}", "--size=8", "--num_frames=4"],
        "convert_torch_ckpt": [
            f"--input={ROOT}/tests/goldens/vdt_tiny.pt",
            f"--output={folder}/converted{number}",
            "--num_heads=3",
        ],
        "app": [f"--checkpoint={folder}/model"],
    }[script]


def prepared(script: str) -> Any:
    """The main function of a script, imported, with `allowed` in place of its work."""
    module = importlib.import_module(script)
    gradio = types.ModuleType("gradio")  # which may not be installed
    gradio.__spec__ = importlib.machinery.ModuleSpec("gradio", None)
    sys.modules["gradio"] = gradio
    for place, name in {
        "train": [("train", "Checkpoints")],
        "sample": [
            ("vdt_jax.inference.pipeline", "generate_on_devices"),
            ("vdt_jax.inference.requests", "measure_step"),
        ],
        "evaluate": [("vdt_jax.evaluation.evaluator", "Evaluation"), ("vdt_jax.evaluation.folders", "match")],
        "prepare": [("vdt_jax.data.tfds_builder", "write_dataset"), ("vdt_jax.latents.prepare", "cache_latents")],
        "convert_torch_ckpt": [],
        "app": [("app", "Studio")],
    }[script]:
        setattr(importlib.import_module(place), name, allowed)
    if script == "evaluate":
        importlib.import_module("vdt_jax.evaluation.protocol").clips_hash = lambda *_: ""  # millions of clips, else
    return module.main


def tried(main: Any, line: list[str], folder: Path) -> tuple[str, str]:
    """What a line ends in, `allowed`, `refused` or what is wrong with it, and what it printed last."""
    from helpers import forked

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.chdir(folder)
        child = forked.start(main, line, out.fileno(), err.fileno())
        end = time.monotonic() + CLOCK
        while not (ended := os.wait4(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        _, status, usage = ended
        err.seek(0)
        said = err.read().strip()
    code, last = os.waitstatus_to_exitcode(status), said.splitlines()[-1] if said else ""
    if usage.ru_utime + usage.ru_stime > SECONDS or usage.ru_maxrss > GIBIBYTES * 2**20:
        return f"{usage.ru_utime + usage.ru_stime:.0f} s, {usage.ru_maxrss >> 10} MiB", last
    if code == 0:
        return "allowed", last
    lines = [text for text in said.splitlines() if text.startswith("error: ")]
    if code == 2 and len(lines) == 1 and last == lines[0] and last.isprintable() and "Traceback" not in said:
        return "refused", last
    return f"exit code {code}", said[-3000:]


def torture(script: str, lines: list[tuple[str, bool]], folder: Path) -> Counter:
    """Tries lines of a script, some of which must be refused; raises SystemExit with those that end otherwise."""
    main, outcomes, wrong = prepared(script), Counter(), []
    for number, (text, must_be_refused) in enumerate(lines):
        more = text.split(" --")
        more = [more[0], *(f"--{part}" for part in more[1:])] if text.startswith("--") else [text]
        outcome, said = tried(main, [f"{script}.py", *base(script, text, folder, number), *more], folder)
        outcomes[outcome if outcome in ("allowed", "refused") else "wrong"] += 1
        print(f"{script} {text[:70]!r} {outcome}: {said[:200] if outcome == 'refused' else ''}", flush=True)
        if outcome not in ("allowed", "refused") or (must_be_refused and outcome != "refused"):
            wrong.append(f"{script} {text[:200]!r} {outcome}: {said}")
    if wrong:
        raise SystemExit("\n\n".join(["WRONG", *wrong, f"{len(wrong)} of {len(lines)} lines of {script}"]))
    return outcomes


def make_inputs(folder: Path) -> None:
    """A tiny model, and a folder with a video."""
    import jax
    import numpy as np
    from helpers.hostile_folders import CONFIG

    from vdt_jax.checkpoints import save_model
    from vdt_jax.checkpoints.config import network_of
    from vdt_jax.models.vdt import param_shapes
    from vdt_jax.video import write_video

    config = CONFIG | {"model": CONFIG["model"] | {"input_size": [16, 16], "num_classes": 10}}
    config["data"] = {"name": "moving_digits", "num_digits": 1}
    shapes = param_shapes(network_of(config["model"]))
    save_model(folder / "model", config, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    write_video(folder / "videos" / "a.mp4", np.zeros((20, 32, 32, 3), np.uint8))


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    scripts = sys.argv[3].split(",") if len(sys.argv) > 3 else list(REFUSED)
    with tempfile.TemporaryDirectory() as name:
        # Each in a child, since scripts define the same flags, and what starts jax cannot be forked.
        if not (maker := os.fork()):
            make_inputs(Path(name))
            os._exit(0)
        assert os.waitpid(maker, 0)[1] == 0
        drawn = random.Random(seed).sample(table(), count)
        print(f"{len(table())} lines are drawn from", flush=True)
        failed = False
        for script in scripts:
            if not (child := os.fork()):
                lines = [(text, True) for text in REFUSED[script]]
                lines += [(text, False) for which, text in drawn if which == script]
                try:
                    found = torture(script, lines, Path(name))
                    print(f"{script}: {dict(found)}", flush=True)
                except SystemExit as end:
                    print(end, flush=True)
                    os._exit(1)
                os._exit(0)
            failed |= os.waitpid(child, 0)[1] != 0
        shutil.rmtree(name, ignore_errors=True)
    sys.exit(int(failed))
