"""Everything that is measured on an accelerator, in parts of less than 9 minutes.

    python benchmarks/accelerator.py                    # every part, row by row, until the time is up
    python benchmarks/accelerator.py --part=2           # one part; may be given more than once
    python benchmarks/accelerator.py --official=FOLDER  # and the official code; FOLDER: a clone of github.com/RERV/VDT
    python benchmarks/accelerator.py --tiny             # a rehearsal with tiny networks, on any machine
    python benchmarks/accelerator.py --learn=moving_fashion_mnist   # trains a recipe: see benchmarks/learn.py

Re-run the command for the rows that are left. Each row runs in a process of its own and is written to OUTPUT/rows.jsonl
as it comes, so a call that is killed loses one row. A row that fails is written with its error and is not tried again;
delete its line to retry it. At the end OUTPUT/tables.txt has all rows so far.

It needs jax, flax, optax, einops, jaxtyping, etils, safetensors, tensorstore and pytest; the official code and --learn
need more (docs/benchmarks.md).
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = {
    1: "goldens, and a first figure of each kind",
    2: "training steps of VDT-L/2",
    3: "training steps of VDT-S/2",
    4: "sampling, encoding, decoding",
    5: "the official code (--official)",
    6: "one training step by group of kernels",
}
ATTENTION = ("xla", "cudnn")  # of model.attention; cuDNN's runs on NVIDIA GPUs only
TRAINING = {  # batch sizes and rematerialisation
    "VDT-L/2": ((8, "matmuls"), (8, "full"), (16, "full"), (32, "full")),
    "VDT-S/2": ((8, "matmuls"), (64, "matmuls"), (64, "none"), (64, "full"), (128, "matmuls")),
}
_LEAST_SECONDS = 20.0  # no row is started with less time left
_OUT_OF_TIME = "out of time"
_ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(_ROOT))


@dataclasses.dataclass(frozen=True)
class Job:
    """One row: what it is called in its table, and the function of JOBS with its arguments."""

    part: int
    what: str
    kind: str
    arguments: dict[str, Any]


def main() -> None:
    parser, arguments = parse()
    if arguments.job:
        print(json.dumps(run_job(json.loads(arguments.job))))
        return
    if arguments.official and not (Path(arguments.official) / "models.py").is_file():
        parser.error(f"--official must be a clone of github.com/RERV/VDT, with models.py, got {arguments.official}")
    if arguments.limit < 2 * _LEAST_SECONDS:
        parser.error(f"--limit must be >= {2 * _LEAST_SECONDS:.0f} seconds, got {arguments.limit:g}")
    output = Path(arguments.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output={output} cannot be written ({error.strerror}): name another folder")
    deadline = time.monotonic() + arguments.limit
    if arguments.learn or arguments.join:
        import learn

        sys.exit(learn.main(arguments, output, deadline))
    measure_all(arguments, output, deadline)


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser and its values; an error is one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--part", type=int, action="append", choices=PARTS, help="Default: all of them.")
    add("--output", default="runs/benchmarks/accelerator", help="Folder of the results.")
    add("--official", help="A clone of the official repository.")
    add("--limit", type=float, default=520.0, help="Seconds after which no row runs.")
    add("--tiny", action="store_true", help="Tiny networks and few repeats.")
    add("--learn", help="A recipe of configs/ to train in place of measuring.")
    add("--minutes", type=float, default=18.0, help="Of --learn: training time, all calls together.")
    add("--workdir", help="Of --learn: where it trains; default: runs/accelerator_<recipe>.")
    add("--train_flag", action="append", default=[], help="Of --learn: a flag of train.py; repeat it for others.")
    add("--join", help="Of --learn: a folder of returned weights; writes the model folder OUTPUT/model.")
    add("--job", help=argparse.SUPPRESS)  # a row, as JSON, in a process of its own
    return parser, parser.parse_args()


def measure_all(arguments: argparse.Namespace, output: Path, deadline: float) -> None:
    """Runs the jobs that have no row yet, until the deadline, and writes the tables."""
    path = output / "rows.jsonl"
    path.touch()
    kinds = run_child(Job(0, "where", "where", {}), deadline, arguments.tiny)
    print(", ".join(f"{name} {value}" for name, value in kinds.items()), flush=True)
    if "error" in kinds:
        sys.exit("error: no device can be used: see above")
    done = {row["what"] for row in read_rows(path) if row["part"]}
    with path.open("a") as file:
        if not done:
            write_row(file, {"part": 0, "what": "environment", **kinds})
        left = [job for job in jobs(kinds["platform"], arguments.tiny, arguments.official) if job.what not in done]
        left = [job for job in left if job.part in (arguments.part or PARTS)]
        num_left = len(left)
        while left and time.monotonic() < deadline - _LEAST_SECONDS:
            row = run_child(left[0], deadline, arguments.tiny)
            if row.get("error") == _OUT_OF_TIME and len(left) < num_left:
                break  # the next call has all of its time for it
            job = left.pop(0)
            write_row(file, {"part": job.part, "what": job.what, **row})
            print("  ".join(f"{name} {value}" for name, value in {"": job.what, **row}.items())[:400], flush=True)
    text = tables(read_rows(path))
    (output / "tables.txt").write_text(text)
    print(text)
    if left:
        print(f"the time is up, {len(left)} rows are left, {left[0].what!r} is next: re-run the command")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a line that a kill truncated is removed."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def write_row(file: Any, row: dict[str, Any]) -> None:
    """Appends a row; it is on the disk when this returns."""
    file.write(json.dumps(row) + "\n")
    file.flush()
    os.fsync(file.fileno())


def run_child(job: Job, deadline: float, tiny: bool) -> dict[str, Any]:
    """The row of a job, computed in a process of its own, or its error."""
    command = [sys.executable, __file__, f"--job={json.dumps({**vars(job), 'tiny': tiny})}"]
    start = time.monotonic()
    # A group of its own, so that what the row started ends with it.
    run = subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        output, errors = run.communicate(timeout=max(deadline - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        return {"error": _OUT_OF_TIME}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    if run.returncode:
        lines = errors.strip().splitlines() or [f"exit code {run.returncode}"]
        wanted = [line for line in lines if "RESOURCE_EXHAUSTED" in line] or lines[-1:]
        return {"error": " ".join(wanted[0].split())[:300]}
    return json.loads(output.splitlines()[-1]) | {"row took": f"{time.monotonic() - start:.0f} s"}


def jobs(platform: str, tiny: bool, official: str | None) -> list[Job]:
    """Every row, in the order of its worth within a part."""
    return [*first_jobs(), *training_jobs(platform), *sampling_jobs(), *official_jobs(official, tiny)] + [
        Job(6, f"{name}, by kernels", "profile", {"model": name, "batch_size": 8, "attention": kind})
        for name in ("VDT-L/2", "VDT-S/2")
        for kind in attention_kinds(platform)
    ]


def attention_kinds(platform: str) -> Sequence[str | None]:
    """Ways to compute attention on a platform; (None,) where the network has no such option."""
    from vdt_jax.models.vdt import VDT

    if "attention" not in {field.name for field in dataclasses.fields(VDT)}:
        return (None,)
    return tuple(kind for kind in ATTENTION if kind != "cudnn" or platform in ("gpu", "cuda"))


def first_jobs() -> list[Job]:
    """Part 1."""
    return [
        Job(1, "goldens, float32, products in float32", "goldens", {"dtype": "float32", "precision": "highest"}),
        Job(1, "goldens, float32, products in TF32", "goldens", {"dtype": "float32", "precision": "tensorfloat32"}),
        Job(1, "goldens, bfloat16", "goldens", {"dtype": "bfloat16", "precision": None}),
        Job(1, "VDT-S/2, step, batch 8, first figure", "training", {"model": "VDT-S/2", "batch_size": 8}),
        Job(1, "VDT-S/2, 16 steps, first figure", "sampling", {"model": "VDT-S/2", "batch_size": 1, "steps": 16}),
    ]


def training_jobs(platform: str) -> list[Job]:
    """Parts 2 and 3: the sizes of the recipes first."""
    return [
        Job(
            part,
            f"{name}, step, batch {size}, remat {remat}{f', attention {kind}' if kind else ''}",
            "training",
            {"model": name, "batch_size": size, "remat": remat, "attention": kind},
        )
        for part, (name, sizes) in enumerate(TRAINING.items(), 2)
        for size, remat in sizes
        for kind in attention_kinds(platform)
    ]


def sampling_jobs() -> list[Job]:
    """Part 4."""
    made = [
        Job(4, f"{name}, {steps} steps, batch {size}", "sampling", {"model": name, "batch_size": size, "steps": steps})
        for name in ("VDT-L/2", "VDT-S/2")
        for steps, size in ((16, 1), (250, 1), (16, 16))
    ]
    for what in ("encode", "decode"):
        for dtype, chunk in (("bfloat16", 4), ("bfloat16", 16), ("float32", 4)):
            arguments = {"what": what, "dtype": dtype, "chunk": chunk}
            made.append(Job(4, f"{what} 16 frames of 256x256, {chunk} at a time, {dtype}", "video", arguments))
    arguments = {"what": "video", "dtype": "bfloat16", "chunk": 4}
    return [*made, Job(4, "VDT-L/2, encode, 16 steps, decode", "video", arguments)]


def official_jobs(official: str | None, tiny: bool) -> list[Job]:
    """Part 5: benchmarks/compare_official.py, one mode and one kind of work at a time."""
    if not official:
        return []
    names, batch = (["VDT-S/2"], 1) if tiny else (["VDT-L/2", "VDT-S/2"], 8)
    return [
        Job(
            5,
            f"{name}, batch {batch}, official code {mode}, {work}",
            "official",
            {"official": str(Path(official).absolute()), "model": name, "mode": mode, "work": work, "batch": batch},
        )
        for name in names
        for work in (("forward",) if tiny else ("training", "sampling"))
        for mode in ("stock", "tf32", "compiled")
    ]


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """The row of a job, in this process."""
    make_row = JOBS[job["kind"]]
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # before jax is imported
    import jax

    from vdt_jax.files import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    row = make_row(tiny=job["tiny"], **job["arguments"])
    return {name: str(value) if isinstance(value, tuple) else value for name, value in row.items()}


def where_row(tiny: bool) -> dict[str, Any]:
    """The device and the versions."""
    import jax
    from measure import environment

    packages = [name for name in ("flax", "optax", "orbax-checkpoint", "torch", "jax-cuda13-plugin") if installed(name)]
    return environment(*packages) | {"platform": jax.devices()[0].platform, "networks": "tiny" if tiny else "real"}


def installed(package: str) -> bool:
    """Whether a package is installed, by the name of its distribution."""
    from importlib import metadata

    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def network(name: str, tiny: bool, dtype: str = "bfloat16", **options: Any) -> Any:
    """A network of VDT_VARIANTS, or a tiny one; options that are None are left out."""
    from vdt_jax.models.vdt import VDT, VDT_VARIANTS

    options = {key: value for key, value in options.items() if value is not None}
    sizes: Any = dict(input_size=8, num_frames=4, hidden_size=48, depth=2, num_heads=3) if tiny else VDT_VARIANTS[name]
    return VDT(**sizes, dtype=dtype, **options)


def goldens_row(tiny: bool, dtype: str, precision: str | None) -> dict[str, Any]:
    """The largest differences from the numbers of the official code and of diffusers, relative to the largest value."""
    import jax
    import numpy as np

    jax.config.update("jax_default_matmul_precision", precision)
    sys.path.insert(0, str(_ROOT / "tests"))
    import test_goldens

    from vdt_jax.weights.autoencoder import load_autoencoder

    model, params = test_goldens.load_tiny()
    model = model.clone(dtype=dtype)
    vae, weights = load_autoencoder(test_goldens.GOLDENS / "vae_tiny", dtype)
    golden = {name: x.transpose(0, 2, 3, 1) for name, x in np.load(test_goldens.GOLDENS / "vae_tiny.npz").items()}
    decoded: Any = vae.apply({"params": weights}, golden["z"], method="decode")
    mean, _ = vae.apply({"params": weights}, golden["x"], method="encode")  # pyright: ignore[reportGeneralTypeIssues]
    errors = {"forward": test_goldens.forward_error(model, params)}
    errors["gradient norms"] = max(test_goldens.gradient_norm_errors(model, params).values())
    for name, clip in (("sample", False), ("sample_clip", True)):
        errors[name] = test_goldens.sampling_error(model, params, name, clip)
    errors["encode"] = np.abs(np.asarray(mean) - golden["mean"]).max() / np.abs(golden["mean"]).max()
    errors["decode"] = np.abs(np.asarray(decoded) - golden["decoded"]).max() / np.abs(golden["decoded"]).max()
    return {name: f"{float(error):.1e}" for name, error in errors.items()}


def training_row(tiny: bool, model: str, batch_size: int, remat: str = "matmuls", attention: str | None = None) -> Any:
    import work

    made = network(model, tiny, remat=remat, attention=attention)
    return work.training_row(made, 2 if tiny else batch_size, repeats=2 if tiny else 10)


def sampling_row(tiny: bool, model: str, batch_size: int, steps: int) -> Any:
    import work

    return work.sampling_row(network(model, tiny), 2 if tiny else batch_size, steps, "ddpm", 1 if tiny else 3)


def video_row(tiny: bool, what: str, dtype: str, chunk: int) -> Any:
    import work

    from vdt_jax.models.autoencoder import AutoencoderKL

    sizes: Any = dict(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4) if tiny else {}
    vae = AutoencoderKL(**sizes, dtype=dtype)
    return work.video_row(network("VDT-L/2", tiny), vae, what, chunk, 16, 1 if tiny else 5)


def official_row(tiny: bool, official: str, model: str, mode: str, work: str, batch: int) -> dict[str, Any]:
    """One row of benchmarks/compare_official.py, which runs both codes in one process."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--official={official}", f"--model={model}", f"--mode={mode}", f"--work={work}"]
        flags += [f"--batch_size={batch}", f"--repeats={1 if tiny else 5}", f"--output={folder}/report.json"]
        script = str(Path(__file__).parent / "compare_official.py")
        paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        command, environ = [sys.executable, script, *flags], os.environ | {"PYTHONPATH": paths}
        run = subprocess.run(command, capture_output=True, text=True, env=environ)
        if run.returncode:
            sys.exit(run.stderr.strip().splitlines()[-1])
        (row,) = json.loads(Path(folder, "report.json").read_text())["rows"]
    texts = {name: "{:.4g} s ({:.4g} to {:.4g})".format(*row[name]) for name in ("official", "ours")}
    return texts | {name: row[name] for name in ("official / ours", "outputs differ by")}


def profile_row(tiny: bool, model: str, batch_size: int, attention: str | None) -> dict[str, Any]:
    """Milliseconds of each group of kernels in a training step, and the longest kernels."""
    import kernels
    import work

    found = []
    made = network(model, tiny, remat="matmuls", attention=attention)
    row = work.training_row(made, 2 if tiny else batch_size, 3, lambda one: found.append(kernels.kernel_seconds(one)))
    (seconds,) = found
    total = sum(seconds.values())
    groups = {group: f"{1e3 * s:.3g} ms, {s / total:.0%}" for group, s in kernels.by_group(seconds)}
    longest = {f"{name[:60]}": f"{1e3 * s:.3g} ms" for name, s in seconds.most_common(25)}
    return {"step": row["time"], "in kernels": f"{1e3 * total:.4g} ms", **groups, "longest": longest}


JOBS: dict[str, Any] = {
    "where": where_row,
    "goldens": goldens_row,
    "training": training_row,
    "sampling": sampling_row,
    "video": video_row,
    "official": official_row,
    "profile": profile_row,
}


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """All rows: the environment, then a table for each kind of row in each part."""
    from vdt_jax.progress import table_text

    parts = [", ".join(f"{name} {value}" for name, value in rows[0].items() if name not in ("part", "what"))]
    for part, title in PARTS.items():
        here = [{k: v for k, v in row.items() if k != "part"} for row in rows if row["part"] == part]
        if here:
            parts.append(f"part {part}: {title}")
        if part == 6:
            parts += [listing(row) for row in here]
            continue
        for columns in dict.fromkeys(tuple(row) for row in here):
            cells = [[str(row[column]) for column in columns] for row in here if tuple(row) == columns]
            parts.append(table_text(columns, cells))
    return "\n\n".join(parts) + "\n"


def listing(row: dict[str, Any]) -> str:
    """A profile, a line for each group and kernel."""
    lines = [f"{name}: {value}" for name, value in row.items() if name != "longest"]
    return "\n".join([*lines, *(f"    {name}: {value}" for name, value in row.get("longest", {}).items())])


if __name__ == "__main__":
    main()
