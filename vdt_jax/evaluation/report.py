"""The report of an evaluation: its table, report.json, and the page with samples of each task."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.evaluation.measures import MODEL
from vdt_jax.evaluation.options import EvaluateOptions
from vdt_jax.evaluation.protocol import Protocol, clip_numbers, protocol_text
from vdt_jax.files import atomic_write
from vdt_jax.inference import page
from vdt_jax.inference.outputs import write_comparison
from vdt_jax.progress import table_text

_COLUMNS = ("PSNR", "SSIM", "LPIPS", "FVD", "motion", "motion error")
_COLUMNS += ("OpenSTL MSE", "OpenSTL MAE", "OpenSTL SSIM", "OpenSTL PSNR")
# Many continuations are right in these tasks, so the page shows several samples of a clip.
_AMBIGUOUS = ("unconditional", "single_frame")
_SAMPLES_OF_AMBIGUOUS = 3
# The tasks in plain words.
TITLES = {
    "predict": "Predict",
    "backward": "Go backward",
    "interpolation": "Interpolate",
    "unconditional": "Generate",
    "single_frame": "Animate one frame",
    "arbitrary_interpolation": "Fill in missing frames",
    "spatial_temporal": "Fill in a region",
}
_TITLE = "One transformer, seven video tasks"
_INTRODUCTION = "Held-out clips, one typical clip per task. Violet marks what the model generates."
_CHART = "PSNR over the generated pixels; higher is better. Dots: the model. Rings: copying and blending given frames."

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Report:
    """The numbers of an evaluation.

    Attributes:
      protocol: what they follow from.
      tasks: task -> candidate (the model, the baselines) -> metric -> value.
      floor: the FVD of the true clips, see `Evaluation.floor`.
    """

    protocol: Protocol
    tasks: dict[str, dict[str, Row]]
    floor: dict[str, Row]

    def __str__(self) -> str:
        return table_text(*self.table())

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The header and the rows, as text."""
        found = [row for rows in self.tasks.values() for row in rows.values()]
        columns = [name for name in _COLUMNS if any(name in row for row in found)]
        of_several = sorted({name for row in found for name in row} - {*_COLUMNS})
        columns += [name for name in of_several if name.startswith("best ")]
        columns += [name for name in of_several if name.endswith(" of all samples")]
        rows = [(task, candidate, row) for task, rows in self.tasks.items() for candidate, row in rows.items()]
        rows += [("any", name, row) for name, row in self.floor.items() if row]
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
        return {"protocol": self.protocol, "tasks": rounded, **self.floor}


def write_report(
    report: Report, options: EvaluateOptions, pictures: Mapping[str, Sequence[page.Card]], finished: bool = True
) -> None:
    """Writes index.html with the comparisons of `write_pictures` by task, and report.json once it is finished."""
    folder = Path(options.output)
    if finished:
        atomic_write(folder / "report.json", json.dumps(report.to_json(), indent=2) + "\n")
    commands = [command(report.protocol, options, task) for task in report.tasks]
    parts = [page.cards([shown[0] for shown in pictures.values() if shown])]
    if any("PSNR" in rows[MODEL] for rows in report.tasks.values()):
        psnr = {TITLES[task]: {name: row["PSNR"] for name, row in rows.items()} for task, rows in report.tasks.items()}
        parts.append(page.section("The model and the baselines", _CHART, page.dot_chart(psnr, MODEL, "dB")))
    others = [f"<h3>{TITLES[task]}</h3>{page.cards(shown[1:])}" for task, shown in pictures.items() if shown[1:]]
    if others:
        parts.append(page.section("Worst and best clips", "By PSNR.", *others))
    parts.append(page.folded("All numbers", page.table(*report.table())))
    parts.append(page.folded("Protocol", page.preformatted(protocol_text(report.protocol))))
    parts.append(page.folded("Commands", page.preformatted("\n".join(commands))))
    page.write_page(folder / "index.html", _TITLE, _INTRODUCTION, *parts, finished=finished)


def write_pictures(
    sample: Callable[[Sequence[int], str, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    protocol: Protocol,
    options: EvaluateOptions,
    task: str,
    ranking: np.ndarray,
) -> list[page.Card]:
    """Samples some clips of a task again, and writes comparisons: a typical clip, the worst and the best clips.

    `sample` is `Evaluation.sample`, `options` are as they were given, and `ranking` (clips,) is the PSNR of each.
    """
    shown = clips_shown(ranking, options.shown)
    if not shown:
        return []
    numbers = [clip_numbers(protocol)[place] for place, _ in shown]
    count = max(protocol["samples_per_clip"], _SAMPLES_OF_AMBIGUOUS if task in _AMBIGUOUS else 1)
    drawn = [sample(numbers, task, protocol["seed"] + j) for j in range(count)]
    pictures = []
    for i, ((place, what), number) in enumerate(zip(shown, numbers, strict=True)):
        _, truth, mask = drawn[0]
        name = f"{task}_{number}"
        write_comparison(Path(options.output) / name, truth[i], mask[i], [samples[i] for samples, _, _ in drawn])
        given = page.describe_given(mask[i], label=task in protocol["told_labels"])
        title, text = f"{what}: clip {number}, {ranking[place]:.1f} dB", given
        if what == "typical":
            title, text = TITLES[task], f"{task}: {given}"
        pictures.append(page.Card(title, text, f"{name}.gif", ("given", *["sample"] * count, "truth")))
    return pictures


def command(protocol: Protocol, options: EvaluateOptions, task: str) -> str:
    """The command that measures one task of an evaluation alone."""
    values = {name: protocol[name] for name in ("checkpoint", "vae")}
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


def clips_shown(ranking: np.ndarray, count: int) -> list[tuple[int, str]]:
    """The places of the median clip, and of up to `count` worst and best ones; no clip is shown twice."""
    if count == 0:
        return []
    order = np.argsort(ranking, kind="stable").tolist()
    typical = order.pop(len(order) // 2)
    worst = order[: min(count, (len(order) + 1) // 2)]
    best = order[::-1][: min(count, len(order) // 2)]
    return [(typical, "typical"), *((place, "worst") for place in worst), *((place, "best") for place in best)]
