"""A page to sample on, in the browser: drop in a video, pick a task or paint a mask, watch, download.

    pip install -e '.[app]' -c constraints.txt
    python app.py                                  # the model that ships; then open http://127.0.0.1:7860

Nobody but this machine reaches it unless --host says so: it has no passwords, and whoever reaches it can use the
processor. What was dropped in and what was made are deleted an hour later.
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
from vdt_jax.inference.generation import (
    clip_shape,
    generate_clips,
    load,
    load_vae,
    sample_keys,
    sampled_clips,
    task_masks,
)
from vdt_jax.inference.inputs import check_known, fit_mask, read_clips
from vdt_jax.inference.outputs import write_comparison
from vdt_jax.latents.space import shrink_mask
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
_MAX_MEGABYTES = flags.DEFINE_integer("max_megabytes", 100, "Of a file that is dropped in.")

_PAINTED = "what I paint"
_MAX_STEPS = 250
_EDITOR_HEIGHT = 256
_KEPT_SECONDS = 3600


class Studio:
    """The model, and what the page calls."""

    def __init__(self, checkpoint: str, vae: str | None):
        self.loaded = load(checkpoint)
        self.vae = None if vae is None else load_vae(vae, config=self.loaded.config)
        self.shape = clip_shape(self.loaded.model, self.vae)
        self.folder = tempfile.TemporaryDirectory(prefix="vdt_jax_")

    def clip(self, file: str | None, seed: int) -> tuple[np.ndarray, int, np.ndarray | None]:
        """A clip (1, F, H, W, C) of the file, or a held-out one, how many of its frames are known, its label if any."""
        if not file:
            source = sampled_clips(self.loaded.config["data"], self.loaded.model, self.vae, "held_out")
            batch = take(source, range(seed, seed + 1))
            return batch["video"], self.shape[0], batch["labels"]
        read = read_clips(file, self.shape)[:1]
        clip = np.zeros((1, *self.shape), np.float32)
        clip[:, : read.shape[1]] = read
        return clip, read.shape[1], None

    def first_frame(self, file: str | None, seed: float) -> dict[str, Any]:
        """What the editor shows to be painted on."""
        frame = as_rgb(enlarge(to_uint8(self.clip(file, int(seed))[0][0, :1]), _EDITOR_HEIGHT))[0]
        return {"background": frame, "layers": [], "composite": frame}

    def mask(self, task: str, num_given: float, painted: dict[str, Any] | None, seed: int) -> np.ndarray:
        """(1, F, h, w, 1) over what the model denoises, 1 = generate."""
        if task != _PAINTED:
            given = int(num_given) if task in ("predict", "backward") else None
            return np.asarray(task_masks(seed, range(seed, seed + 1), task, self.loaded.model, given))
        layers = [np.asarray(layer)[..., 3] > 0 for layer in (painted or {}).get("layers", [])]
        if not any(layer.any() for layer in layers):
            raise UserError("nothing is painted: paint over what shall be generated, or choose a task")
        hidden = fit_mask(np.any(layers, axis=0), self.shape[1:3])
        pixels = np.broadcast_to(hidden[None, None, ..., None], (1, *self.shape[:3], 1)).astype(np.float32)
        return pixels if self.vae is None else shrink_mask(pixels, self.vae.model.factor)

    def run(self, file, painted, task, num_given, sampler, steps, seed, progress) -> tuple[str, str]:
        """Samples; gives the files of the comparison and of the sample."""
        seed, steps = int(seed), min(int(steps), _MAX_STEPS)
        if seed < 0:
            raise UserError(f"seed {seed} cannot be: at least 0")
        clip, num_known, labels = self.clip(file, seed)
        mask = self.mask(task, num_given, painted, seed)
        check_known("this file", num_known, mask)
        done = [0]

        def on_steps(more: int) -> None:
            done[0] += more
            progress((done[0], steps), desc="sampling", unit="steps")

        progress((0, steps), desc="compiling, the first time", unit="steps")
        model, params, keys = self.loaded.model, self.loaded.params, sample_keys(seed, range(seed, seed + 1))
        options = {"vae": self.vae, "sampler": sampler, "labels": labels, "on_steps": on_steps}
        samples, hidden = generate_clips(model, params, self.loaded.diffusion(steps), clip, mask, keys, **options)
        stem = Path(self.folder.name) / "sample"  # one run at a time, and Gradio has copied what the last one wrote
        write_comparison(stem, clip[0], hidden[0], [samples[0]], show_truth=num_known == self.shape[0])
        write_video(stem.with_suffix(".mp4"), enlarge(to_uint8(samples[0])))
        return str(stem.with_suffix(".gif")), str(stem.with_suffix(".mp4"))


def page(studio: Studio) -> Any:
    """The Gradio page."""

    def told(function: Any) -> Any:
        """A person's mistakes are shown on the page in one line."""

        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from None

        return call

    def run(file, painted, task, num_given, sampler, steps, seed, progress=gr.Progress()):  # noqa: B008 (as Gradio asks)
        return told(studio.run)(file, painted, task, num_given, sampler, steps, seed, progress)

    num_frames, height, width, _ = studio.shape
    with gr.Blocks(title="vdt_jax", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as blocks:
        gr.Markdown(f"# vdt_jax\n{num_frames} frames of {height}x{width}; larger videos are cropped and resized.")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Video, GIF, picture or .npz; none: a held-out clip", elem_id="file")
                task = gr.Dropdown([*TASKS, _PAINTED], value="predict", label="What is generated", elem_id="task")
                num_given = gr.Slider(
                    1, num_frames - 1, num_frames // 2, step=1, label="Frames given (predict, backward)"
                )
                sampler = gr.Dropdown(list(SAMPLERS), value="unipc", label="Sampler", elem_id="sampler")
                steps = gr.Slider(1, _MAX_STEPS, 20, step=1, label="Steps", elem_id="steps")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed")
                button = gr.Button("Generate", variant="primary", elem_id="generate")
            with gr.Column():
                comparison = gr.Image(label="given | sample | truth", elem_id="comparison", buttons=["fullscreen"])
                video = gr.File(label="The sample", elem_id="sample")
                painted = gr.ImageEditor(label="Paint over what shall be generated", type="numpy", elem_id="painted")
        file.change(told(studio.first_frame), [file, seed], painted)
        blocks.load(told(studio.first_frame), [file, seed], painted)
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
