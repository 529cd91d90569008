"""The report of an evaluation: its table, report.json, and the page with the worst and the best clips."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.evaluation.measures import MODEL
from vdt_jax.evaluation.options import EvaluateOptions
from vdt_jax.evaluation.protocol import Protocol
from vdt_jax.files import atomic_write
from vdt_jax.inference.outputs import Example, Section, table_text, write_comparison, write_page

_COLUMNS = (
    *("PSNR", "SSIM", "LPIPS", "FVD", "frame Frechet", "motion", "motion error"),
    *("OpenSTL MSE", "OpenSTL MAE", "OpenSTL SSIM", "OpenSTL PSNR"),
)
# Many continuations are right in these tasks, so the page shows several samples of a clip.
_AMBIGUOUS = ("unconditional", "single_frame")
_SAMPLES_OF_AMBIGUOUS = 3
_TITLE = "VDT: one transformer, seven video tasks"
_INTRODUCTION = (
    "Violet: what the model generates. PSNR is in dB; motion is the change from frame to frame relative to the "
    "truth's. Beyond the last given frame the three baselines all copy it."
)

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Report:
    """The numbers of an evaluation.

    Attributes:
      protocol: what they follow from.
      tasks: task -> candidate (the model, the baselines) -> metric -> value.
      other_truth: Frechet distances of the true clips from other true clips.
      itself: Frechet distances of the true clips from themselves.
    """

    protocol: Protocol
    tasks: dict[str, dict[str, Row]]
    other_truth: Row
    itself: Row

    def __str__(self) -> str:
        return table_text(*self.table())

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The header and the rows, as text."""
        found = [row for rows in self.tasks.values() for row in rows.values()]
        columns = [name for name in _COLUMNS if any(name in row for row in found)]
        of_model = sorted({name for rows in self.tasks.values() for name in rows[MODEL]})
        columns += [name for name in of_model if name.startswith("best ")]
        columns += [name for name in of_model if name.endswith(" of all samples")]
        rows = [(task, candidate, row) for task, rows in self.tasks.items() for candidate, row in rows.items()]
        floor = (("truth against other truth", self.other_truth), ("truth against itself", self.itself))
        rows += [("any", name, row) for name, row in floor if row]
        cells = [
            [task, name, *(f"{row[column]:.4g}" if column in row else "-" for column in columns)]
            for task, name, row in rows
        ]
        return ["task", "what", *columns], cells

    def to_json(self) -> dict[str, Any]:
        """The contents of report.json."""
        rounded = {
            task: {what: {name: float(f"{value:.6g}") for name, value in row.items()} for what, row in rows.items()}
            for task, rows in self.tasks.items()
        }
        return {
            "protocol": dataclasses.asdict(self.protocol),
            "tasks": rounded,
            "truth against other truth": self.other_truth,
            "truth against itself": self.itself,
        }


def write_report(report: Report, folder: Path, sections: Sequence[Section]) -> None:
    """Writes report.json and index.html, with the sections of `write_section`."""
    atomic_write(folder / "report.json", json.dumps(report.to_json(), indent=2) + "\n")
    protocol = Section("protocol", str(report.protocol), [])
    write_page(folder / "index.html", _TITLE, _INTRODUCTION, *report.table(), [protocol, *sections])


def write_section(
    sample: Callable[[Sequence[int], str, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    protocol: Protocol,
    options: EvaluateOptions,
    task: str,
    ranking: np.ndarray,
) -> Section:
    """Samples the worst and the best clips of a task again, and writes their pictures; returns the page's section.

    Args:
      sample: `Evaluation.sample`.
      protocol: of the evaluation.
      options: as they were given.
      task: its name.
      ranking: (clips,) the PSNR of each.
    """
    shown = best_and_worst(ranking, options.shown)
    numbers = [protocol.numbers[place] for place, _ in shown]
    count = max(protocol.samples_per_clip, _SAMPLES_OF_AMBIGUOUS if task in _AMBIGUOUS else 1)
    drawn = [sample(numbers, task, protocol.seed + j) for j in range(count)] if numbers else []
    examples = []
    for i, ((place, what), number) in enumerate(zip(shown, numbers, strict=True)):
        _, truth, mask = drawn[0]
        name = f"{task}_{number}"
        write_comparison(Path(options.output) / name, truth[i], mask[i], [samples[i] for samples, _, _ in drawn])
        samples = "sample" if count == 1 else f"{count} samples"
        caption = f"{what}: clip {number}, {ranking[place]:.1f} dB; given | {samples} | truth"
        examples.append(Example(f"{name}.gif", caption))
    return Section(task, command(protocol, options, task), examples)


def command(protocol: Protocol, options: EvaluateOptions, task: str) -> str:
    """The command that measures one task of an evaluation alone."""
    values = {"checkpoint": protocol.checkpoint, "vae": protocol.vae}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        values[field.name] = None if value == field.default else value
    values |= {"tasks": task, "output": f"{options.output}-{task}"}
    flags = [
        f"--{name}={','.join(value) if isinstance(value, tuple) else value}"
        for name, value in values.items()
        if value is not None
    ]
    return shlex.join(["python", "evaluate.py", *flags])


def best_and_worst(ranking: np.ndarray, count: int) -> list[tuple[int, str]]:
    """The places of the worst and the best clips, up to `count` of each; no clip is in both."""
    order = np.argsort(ranking, kind="stable")
    worst = [(int(place), "worst") for place in order[: min(count, (len(order) + 1) // 2)]]
    best = [(int(place), "best") for place in order[::-1][: min(count, len(order) // 2)]]
    return worst + best
