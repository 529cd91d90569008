"""A web page for sampling: upload a video, choose a task or paint a mask, watch, download.

    pip install -e '.[app]' -c constraints.txt
    python app.py                                  # the bundled demo model; then open http://127.0.0.1:7860

The page listens on this machine only, unless --host says otherwise: it has no passwords, and everyone who reaches it
can use the processor. Uploads and samples are deleted after an hour.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import take
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.diffusion.samplers import SAMPLERS
from vdt_jax.errors import UserError
from vdt_jax.inference.inputs import fit_mask, open_videos
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.video import as_rgb, enlarge, to_uint8, write_video

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
try:
    import gradio as gr  # pyright: ignore[reportMissingImports]
except ImportError:
    gr: Any = None

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "A working directory, a converted folder, or `demo`.")
_VAE = flags.DEFINE_string("vae", None, "Autoencoder of a model of latents, as for sample.py.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets the whole network in.")
_PORT = flags.DEFINE_integer("port", 7860, "Port to listen on.")
_MAX_MEGABYTES = flags.DEFINE_integer("max_megabytes", 100, "Largest upload.")

_PAINTED = "what I paint"
_MAX_STEPS = 250
_EDITOR_HEIGHT = 256
_KEPT_SECONDS = 3600


class Studio:
    """The model, and what the page calls."""

    def __init__(self, checkpoint: str, vae: str | None):
        self.pipe = Pipeline.load(checkpoint, vae=vae)
        self.folder = tempfile.TemporaryDirectory(prefix="vdt_jax_")

    def input(self, file: str | None, seed: int) -> tuple[Any, tuple[int, ...] | None]:
        """The file, or the held-out clip of this number and its label."""
        if file:
            return file, None
        batch = take(self.pipe.source(), range(seed, seed + 1))
        return to_uint8(batch["video"][0]), tuple(batch["labels"].tolist())

    def first_frame(self, file: str | None, seed: float) -> dict[str, Any]:
        """The frame that the editor shows to be painted on."""
        video = open_videos(self.input(file, int(seed))[0])[0]
        frame = as_rgb(enlarge(to_uint8(video.read([0], self.pipe.shape[1:])), _EDITOR_HEIGHT))[0]
        return {"background": frame, "layers": [], "composite": frame}

    def painted_mask(self, painted: dict[str, Any] | None) -> np.ndarray:
        """What was painted over, (H, W) bool."""
        layers = [np.asarray(layer)[..., 3] > 0 for layer in (painted or {}).get("layers", [])]
        if not any(layer.any() for layer in layers):
            raise UserError("nothing is painted: paint over the region to generate, or choose a task")
        return fit_mask(np.any(layers, axis=0), self.pipe.shape[1:3])

    def run(self, file, painted, task, num_given, sampler, steps, seed, progress) -> tuple[str, str]:
        """Samples; returns the files of the comparison and of the sample."""
        input, labels = self.input(file, int(seed))
        options: dict[str, Any] = {"mask": self.painted_mask(painted)} if task == _PAINTED else {"task": task}
        if task in ("predict", "backward"):
            options["num_given"] = int(num_given)
        progress((0, steps), desc="compiling, the first time", unit="steps")
        clip: Any = self.pipe.sample(
            input,
            sampler=sampler,
            steps=min(int(steps), _MAX_STEPS),
            seed=int(seed),
            labels=labels if self.pipe.model.num_classes > 1 else None,
            num_samples=1,
            progress=lambda done, total: progress((done, total), desc="sampling", unit="steps"),
            **options,
        )
        stem = Path(self.folder.name) / "sample"  # one run at a time; Gradio copies the files of the last one
        clip.save_comparison(stem.with_suffix(".gif"))
        write_video(stem.with_suffix(".mp4"), enlarge(clip.video), clip.fps)
        return str(stem.with_suffix(".gif")), str(stem.with_suffix(".mp4"))


def page(studio: Studio) -> Any:
    """The Gradio page."""

    def shown(function: Any, *arguments: Any) -> Any:
        """Calls a function; an error that the user can correct is shown on the page, in one line."""
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def first_frame(file, seed):
        return shown(studio.first_frame, file, seed)

    def run(file, painted, task, num_given, sampler, steps, seed, progress=gr.Progress()):  # noqa: B008 (as Gradio asks)
        return shown(studio.run, file, painted, task, num_given, sampler, steps, seed, progress)

    num_frames, height, width, _ = studio.pipe.shape
    with gr.Blocks(title="vdt_jax", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as blocks:
        gr.Markdown(f"# vdt_jax\n{num_frames} frames of {height}x{width}; larger videos are cropped and resized.")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Video, GIF, picture or .npz; none: a held-out clip", elem_id="file")
                task = gr.Dropdown([*TASKS, _PAINTED], value="predict", label="What is generated", elem_id="task")
                given = "Frames given (predict, backward)"
                num_given = gr.Slider(1, num_frames - 1, num_frames // 2, step=1, label=given)
                sampler = gr.Dropdown(list(SAMPLERS), value="unipc", label="Sampler", elem_id="sampler")
                steps = gr.Slider(1, _MAX_STEPS, 20, step=1, label="Steps", elem_id="steps")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed")
                button = gr.Button("Generate", variant="primary", elem_id="generate")
            with gr.Column():
                comparison = gr.Image(label="given | sample | truth", elem_id="comparison", buttons=["fullscreen"])
                video = gr.File(label="The sample", elem_id="sample")
                painted = gr.ImageEditor(label="Paint over the region to generate", type="numpy", elem_id="painted")
        gr.on([file.change, blocks.load], first_frame, [file, seed], painted)
        inputs = [file, painted, task, num_given, sampler, steps, seed]
        button.click(run, inputs, [comparison, video], concurrency_limit=1)
    return blocks


def main(_) -> None:
    if gr is None:
        raise UserError("the page needs Gradio: pip install -e '.[app]' -c constraints.txt")
    cli.quiet_start()
    blocks = page(Studio(_CHECKPOINT.value, _VAE.value))
    blocks.queue(max_size=16).launch(
        server_name=_HOST.value,
        server_port=_PORT.value,
        share=False,
        max_file_size=_MAX_MEGABYTES.value * gr.FileSize.MB,
        theme=gr.themes.Default(font=["system-ui"], font_mono=["monospace"]),
    )


if __name__ == "__main__":
    cli.run(main)
