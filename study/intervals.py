"""The results of the study: intervals over seeds, tables in Markdown, and plots."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from arms import MEASURED, QUESTIONS
from PIL import Image

from vdt_jax.diffusion.masks import TASKS
from vdt_jax.video import as_rgb, frame_grid

Runs = Mapping[str, Mapping[int, Mapping[str, float]]]  # arm -> seed -> name -> value

# Two-sided 95 % points of Student's t, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MAX_SEEDS = len(_T) + 1
_ALL = "all tasks"
ROWS = (*MEASURED, _ALL)

Drifts = Mapping[str, Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]]]  # arm -> seed -> level -> measure
_REFERENCE = ("ours", "0")  # of the drift
_SPAN = 40  # frames


def with_means(values: Mapping[str, float]) -> dict[str, float]:
    """The values of a run, with the mean of each measure over those of the seven tasks that have it."""
    means = {}
    for measure in ("PSNR", "SSIM"):
        of_tasks = [values[f"{task} {measure}"] for task in TASKS if f"{task} {measure}" in values]
        means |= {f"{_ALL} {measure}": sum(of_tasks) / len(of_tasks)} if of_tasks else {}
    return dict(values) | means


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval by Student's t."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, _T[len(values) - 1] * deviation / math.sqrt(len(values))


def answered(runs: Runs) -> list[str]:
    """The questions both of whose arms have run, with at least two seeds in common."""
    return [question for question, names in QUESTIONS.items() if len(_common_seeds(runs, names)) > 1]


def _common_seeds(runs: Runs, names: Sequence[str]) -> list[int]:
    return sorted(set.intersection(*(set(runs.get(name, ())) for name in names)))


def differences(runs: Runs, question: str) -> dict[str, tuple[float, float]]:
    """For each measure the first arm of a question minus the second, paired by seed: mean and half of the interval."""
    first, second = (runs[name] for name in QUESTIONS[question])
    seeds = _common_seeds(runs, QUESTIONS[question])
    shared = [name for name in first[seeds[0]] if name in second[seeds[0]]]
    return {name: interval([first[seed][name] - second[seed][name] for seed in seeds]) for name in shared}


def arms_table(runs: Runs, baselines: Mapping[str, Mapping[str, float]], measure: str) -> str:
    """A row for each baseline and each arm with two seeds or more, a column for each task that has this measure."""
    runs = {name: seeds for name, seeds in runs.items() if len(seeds) > 1}
    found = {name for seeds in runs.values() for values in seeds.values() for name in values}
    tasks = [task for task in ROWS if f"{task} {measure}" in found]
    rows = []
    for name, values in baselines.items():
        rows.append([name, *(_cell(values.get(f"{task} {measure}")) for task in tasks)])
    for name, seeds in runs.items():
        columns = ([values[f"{task} {measure}"] for values in seeds.values()] for task in tasks)
        rows.append([f"{name}, {len(seeds)} seeds", *(_cell(*interval(column)) for column in columns)])
    return markdown([measure, *(task.replace("_", " ") for task in tasks)], rows)


def differences_table(runs: Runs, question: str) -> str:
    """A row for each task, a column for each measure; bold if the interval excludes 0."""
    found = differences(runs, question)
    measures = [name for name in ("PSNR", "SSIM", "motion", "loss") if any(key.endswith(name) for key in found)]
    rows = []
    for task in ROWS:
        pairs = [found.get(f"{task} {measure}") for measure in measures]
        rows.append([task.replace("_", " "), *(_cell(*pair, bold=True) if pair else "-" for pair in pairs)])
    seeds = len(_common_seeds(runs, QUESTIONS[question]))
    return markdown([f"{' less '.join(QUESTIONS[question])}, {seeds} seeds", *measures], rows)


def drift_table(drifts: Drifts, measure: str) -> str:
    """A row for each arm and level of noise when sampling, a column for each span of new frames.

    Below are the differences from our own arm without noise, paired by seed; bold if the interval excludes 0.
    """
    rows, differences = [], []
    reference = {seed: _spans(levels[_REFERENCE[1]][measure]) for seed, levels in drifts[_REFERENCE[0]].items()}
    for name, level in _extended(drifts):
        spans = {seed: _spans(levels[level][measure]) for seed, levels in drifts[name].items()}
        cells = [_cell(*interval(column)) for column in zip(*spans.values(), strict=True)]
        rows.append([f"{name}, noise {level}, {len(spans)} seeds", *cells])
        if (name, level) != _REFERENCE and len(shared := sorted(spans.keys() & reference.keys())) > 1:
            pairs = zip(*(np.subtract(spans[seed], reference[seed]) for seed in shared), strict=True)
            cells = [_cell(*interval(column), bold=True) for column in pairs]
            differences.append([f"{name}, noise {level}, less ours", *cells])
    total = len(next(iter(drifts[_REFERENCE[0]].values()))[_REFERENCE[1]][measure])
    header = [f"{first + 1}-{min(first + _SPAN, total)}" for first in range(0, total, _SPAN)]
    return markdown([f"{measure} of new frames", *header], rows + differences)


def _extended(drifts: Drifts) -> list[tuple[str, str]]:
    """The arms and levels with long videos of two seeds or more."""
    return [(name, level) for name, seeds in drifts.items() if len(seeds) > 1 for level in next(iter(seeds.values()))]


def _spans(curve: Sequence[float]) -> list[float]:
    return [float(np.mean(curve[first : first + _SPAN])) for first in range(0, len(curve), _SPAN)]


def draw_drift(drifts: Drifts, path: Path) -> None:
    """Plots identity and PSNR against the number of the new frame, means over the seeds and eight frames."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for panel, measure in zip(axes, ("identity", "PSNR"), strict=True):
        for name, level in _extended(drifts):
            mean = np.mean([levels[level][measure] for levels in drifts[name].values()], axis=0)
            panel.plot(np.convolve(mean, np.ones(8) / 8, "valid"), label=f"{name}, noise {level}")
        panel.set_xlabel("new frame")
        panel.set_title(measure, fontsize=9)
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def _cell(mean: float | None, half: float | None = None, bold: bool = False) -> str:
    if mean is None:
        return "-"
    if half is None:
        return f"{mean:.3f}"
    text = f"{mean:.3f} ± {half:.3f}"
    return f"**{text}**" if bold and abs(mean) > half else text


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def draw(runs: Runs, path: Path) -> None:
    """Plots a panel for each question: the difference in PSNR by task, with its interval."""
    import matplotlib.pyplot as plt

    questions = answered(runs)
    size = (3 + 2.4 * len(questions), 3.6)
    figure, axes = plt.subplots(1, len(questions), figsize=size, sharey=True, squeeze=False, layout="constrained")
    tasks = [task for task in reversed(ROWS) if task != "unconditional"]
    for panel, question in zip(axes[0], questions, strict=True):
        found = differences(runs, question)
        for place, task in enumerate(tasks):
            mean, half = found[f"{task} PSNR"]
            panel.errorbar(mean, place, xerr=half, fmt="o", color="C0" if abs(mean) > half else "0.6", capsize=3)
        panel.axvline(0, color="0.3", lw=0.8)
        panel.set_yticks(range(len(tasks)), [task.replace("_", " ") for task in tasks])
        panel.set_title(" less ".join(QUESTIONS[question]), fontsize=9)
        panel.set_xlabel("PSNR, dB")
        panel.grid(alpha=0.3, axis="x")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def draw_samples(videos: Sequence[np.ndarray], path: Path) -> None:
    """Draws a row of frames for each video (F, H, W, 1) uint8."""
    Image.fromarray(frame_grid(*map(as_rgb, videos))).save(path)
