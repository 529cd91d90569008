"""Everything that is measured on an accelerator, in parts of less than 9 minutes.

    python benchmarks/accelerator.py                    # every part, row by row, until the time is up
    python benchmarks/accelerator.py --part=2           # one part; may be given more than once
    python benchmarks/accelerator.py --row=L/2 --row=goldens   # some rows, in this order
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
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from json_lines import append_line, read_lines

PARTS = {
    1: "goldens, and a first figure of each kind",
    2: "training steps of VDT-L/2",
    3: "training steps of VDT-S/2",
    4: "sampling, encoding, decoding",
    5: "the official code (--official)",
    6: "one training step by group of kernels",
}
TRAINING = {  # batch sizes, rematerialisation, blocks per iteration of the scan
    "VDT-L/2": ((8, "matmuls", 1), (8, "matmuls", 28), (8, "none", 1), (16, "matmuls", 1), (32, "full", 1)),
    "VDT-S/2": ((8, "matmuls", 1), (8, "none", 12), (64, "matmuls", 1), (64, "matmuls", 12), (128, "matmuls", 1)),
}
_LEAST_SECONDS = 20.0  # no row is started with less time left
_OUT_OF_TIME = "out of time"
_ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(_ROOT))


@dataclasses.dataclass(frozen=True)
class Job:
    """One row: what it is called in its table, and the function of rows.ROWS with its arguments."""

    part: int
    what: str
    kind: str
    arguments: dict[str, Any]


def main() -> None:
    parser, arguments = parse()
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
    add("--row", action="append", metavar="TEXT", help="Only rows whose name has TEXT; repeated: in this order.")
    add("--output", default="runs/benchmarks/accelerator", help="Folder of the results.")
    add("--official", help="A clone of the official repository.")
    add("--limit", type=float, default=520.0, help="Seconds after which no row runs.")
    add("--tiny", action="store_true", help="Tiny networks and few repeats.")
    add("--learn", help="A recipe of configs/ to train in place of measuring.")
    add("--minutes", type=float, default=18.0, help="Of --learn: training time, all calls together.")
    add("--workdir", help="Of --learn: where it trains; default: runs/accelerator_<recipe>.")
    add("--train_flag", action="append", default=[], help="Of --learn: a flag of train.py; repeat it for others.")
    add("--join", help="Of --learn: a folder of returned weights; writes the model folder OUTPUT/model.")
    return parser, parser.parse_args()


def measure_all(arguments: argparse.Namespace, output: Path, deadline: float) -> None:
    """Runs the jobs that have no row yet, until the deadline, and writes the tables."""
    path = output / "rows.jsonl"
    kinds = run_child(Job(0, "where", "where", {}), deadline, arguments.tiny)
    print(", ".join(f"{name} {value}" for name, value in kinds.items()), flush=True)
    if "error" in kinds:
        sys.exit("error: no device can be used: see above")
    chosen = choose(jobs(kinds["platform"], arguments.tiny, arguments.official), arguments.part, arguments.row)
    done = {row["what"] for row in read_lines(path) if row["part"]}
    if not done:
        append_line(path, {"part": 0, "what": "environment", **kinds})
    left = [job for job in chosen if job.what not in done]
    num_left = len(left)
    while left and time.monotonic() < deadline - _LEAST_SECONDS:
        row = run_child(left[0], deadline, arguments.tiny)
        if row.get("error") == _OUT_OF_TIME and len(left) < num_left:
            break  # the next call has all of its time for it
        job = left.pop(0)
        append_line(path, {"part": job.part, "what": job.what, **row})
        print("  ".join(f"{name} {value}" for name, value in {"": job.what, **row}.items())[:400], flush=True)
    text = tables(read_lines(path))
    (output / "tables.txt").write_text(text)
    print(text)
    if left:
        print(f"the time is up, {len(left)} rows are left, {left[0].what!r} is next: re-run the command")


def choose(every: Sequence[Job], parts: Sequence[int] | None, texts: Sequence[str] | None) -> list[Job]:
    """The jobs of these parts whose names contain one of the texts, in their order; all jobs if there are no texts."""
    found = [job for job in every if job.part in (parts or PARTS)]
    if texts is None:
        return found
    for text in texts:
        if not any(text in job.what for job in found):
            names = ", ".join(repr(job.what) for job in found)
            print(f"error: no row's name has {text!r}: the names are {names}", file=sys.stderr)
            sys.exit(2)
    return list({job.what: job for text in texts for job in found if text in job.what}.values())


def run_child(job: Job, deadline: float, tiny: bool) -> dict[str, Any]:
    """The row of a job, computed in a process of its own, or its error."""
    script = str(Path(__file__).parent / "rows.py")
    command = [sys.executable, script, json.dumps({**vars(job), "tiny": tiny})]
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
    first, training, sampling = first_jobs(platform), training_jobs(platform), sampling_jobs()
    return [*first, *training, *sampling, *official_jobs(official, tiny), *profile_jobs(platform)]


def attention_kinds(platform: str) -> Sequence[str]:
    """Ways to compute attention on a platform; cuDNN's runs on NVIDIA GPUs only."""
    return ("xla", "cudnn") if platform in ("gpu", "cuda") else ("xla",)


def first_jobs(platform: str) -> list[Job]:
    """Part 1."""
    attentions = [
        Job(1, f"VDT-S/2, bfloat16 beside float32, attention {kind}", "attention", {"attention": kind})
        for kind in attention_kinds(platform)
    ]
    return [
        Job(1, "goldens, float32, products in float32", "goldens", {"dtype": "float32", "precision": "highest"}),
        Job(1, "goldens, float32, products in TF32", "goldens", {"dtype": "float32", "precision": "tensorfloat32"}),
        Job(1, "goldens, bfloat16", "goldens", {"dtype": "bfloat16", "precision": None}),
        *attentions,
        Job(1, "VDT-S/2, step, batch 8, first figure", "training", {"model": "VDT-S/2", "batch_size": 8}),
        Job(1, "VDT-S/2, 16 steps, first figure", "sampling", {"model": "VDT-S/2", "batch_size": 1, "steps": 16}),
    ]


def training_jobs(platform: str) -> list[Job]:
    """Parts 2 and 3: the sizes of the recipes first."""
    return [
        Job(
            part,
            f"{name}, step, batch {size}, remat {remat}, unroll {unroll}, attention {kind}",
            "training",
            {"model": name, "batch_size": size, "remat": remat, "unroll": unroll, "attention": kind},
        )
        for part, (name, sizes) in enumerate(TRAINING.items(), 2)
        for size, remat, unroll in sizes
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
    names, works = (["VDT-S/2"], ["forward"]) if tiny else (["VDT-L/2", "VDT-S/2"], ["training", "sampling"])
    found = []
    for name, work in itertools.product(names, works):
        # Both states of VDT-L/2 and the activations of 8 clips do not fit into 80 GB.
        batch = 1 if tiny else 2 if (name, work) == ("VDT-L/2", "training") else 8
        for mode in ("stock", "tf32", "compiled"):
            arguments = {"official": str(Path(official).absolute()), "model": name, "mode": mode, "work": work}
            what = f"{name}, batch {batch}, official code {mode}, {work}"
            found.append(Job(5, what, "official", arguments | {"batch": batch}))
    return found


def profile_jobs(platform: str) -> list[Job]:
    """Part 6: with the scan over depth, and without it."""
    return [
        Job(
            6,
            f"{name}, by kernels, unroll {unroll}, attention {kind}",
            "profile",
            {"model": name, "batch_size": 8, "attention": kind, "unroll": unroll},
        )
        for name, depth in (("VDT-L/2", 28), ("VDT-S/2", 12))
        for unroll in (1, depth)
        for kind in attention_kinds(platform)
    ]


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
