"""A web page for sampling: upload a video, choose a task or paint a mask, watch, download.

    pip install -e '.[app]' -c constraints.txt
    python app.py                                  # the bundled demo model; then open http://127.0.0.1:7860

The page listens on this machine only, unless --host says otherwise: it has no passwords, and everyone who reaches it
can use the processor. Uploads and samples are deleted after an hour, and at its end.
"""

if __name__ == "__main__":
    from vdt_jax.errors import end_at_ctrl_c

    end_at_ctrl_c()  # while the rest is imported

import importlib.util
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.diffusion.samplers import SAMPLERS
from vdt_jax.errors import UserError
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.inference.studio import MAX_STEPS, PAINTED, Studio

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "A working directory, a converted folder, or `demo`.")
_VAE = flags.DEFINE_string("vae", None, "Autoencoder of a latent-space model, as for sample.py.")
_TRUST_DATA = flags.DEFINE_bool("trust_data", False, "Import the class of clips that the checkpoint's config names.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets the whole network in.")
_PORT = flags.DEFINE_integer("port", 7860, "Port to listen on.", lower_bound=1, upper_bound=65535)
_MAX_MEGABYTES = flags.DEFINE_integer("max_megabytes", 100, "Largest upload.", lower_bound=1)

_KEPT_SECONDS = 3600


def page(gr: Any, studio: Studio) -> Any:
    """The page, made with Gradio."""

    def shown(function: Any, *arguments: Any) -> Any:
        """Calls a function; an error that the user can correct is shown on the page, in one line."""
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def first_frame(file, seed):
        return shown(studio.first_frame, file, seed)

    def run(file, painted, task, num_given, sampler, steps, seed, progress=gr.Progress()):  # noqa: B008 (as Gradio asks)
        def report(done, total):
            progress((done, total), desc="sampling", unit="steps")

        progress((0, 1), desc="compiling, the first time", unit="steps")
        return shown(studio.run, file, painted, task, num_given, sampler, steps, seed, report)

    num_frames, height, width, _ = studio.pipe.shape
    with gr.Blocks(title="vdt_jax", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as blocks:
        gr.Markdown(f"# vdt_jax\n{num_frames} frames of {height}x{width}; larger videos are cropped and resized.")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Video, GIF, image or .npz; none: a held-out clip", elem_id="file")
                task = gr.Dropdown([*TASKS, PAINTED], value="predict", label="What is generated", elem_id="task")
                given = "Frames given (predict, backward)"
                num_given = gr.Slider(1, num_frames - 1, num_frames // 2, step=1, label=given)
                sampler = gr.Dropdown(list(SAMPLERS), value="unipc", label="Sampler", elem_id="sampler")
                steps = gr.Slider(1, MAX_STEPS, 20, step=1, label="Steps", elem_id="steps")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed")
                button = gr.Button("Generate", variant="primary", elem_id="generate")
            with gr.Column():
                gr.Markdown("given | sample | truth")  # a label would cover the image
                comparison = gr.Image(show_label=False, elem_id="comparison", buttons=["fullscreen"])
                video = gr.File(label="The sample", elem_id="sample")
                gr.Markdown(f"For `{PAINTED}`: paint over the region to generate.")
                only_paint: Any = {"sources": (), "transforms": (), "layers": False}
                painted = gr.ImageEditor(type="numpy", show_label=False, elem_id="painted", **only_paint)
        gr.on([file.change, blocks.load], first_frame, [file, seed], painted, api_visibility="private")
        inputs = [file, painted, task, num_given, sampler, steps, seed]
        button.click(run, inputs, [comparison, video], concurrency_limit=1, api_name="generate")
    return blocks


def check_address(host: str, port: int) -> None:
    """Raises UserError if this machine cannot listen there."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name with an empty or a very long part
        reason = getattr(error, "strerror", None) or "not the name of a host"
        raise UserError(f"cannot listen on --host={host} --port={port} ({reason}): choose another") from None


def main(_) -> None:
    check_address(_HOST.value, _PORT.value)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install -e '.[app]' -c constraints.txt")
    cli.quiet_start()
    pipe = Pipeline.load(_CHECKPOINT.value, vae=_VAE.value, trust_data=_TRUST_DATA.value)
    with tempfile.TemporaryDirectory(prefix="vdt_jax_", ignore_cleanup_errors=True) as folder:
        # Gradio reads both when it is imported. It copies each sample to its folder, which holds the uploads, too: a
        # sample has an address of its own then, and the next one does not replace it.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": f"{folder}/gradio"}
        gr: Any = importlib.import_module("gradio")

        def end(*_: Any) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + signal.SIGTERM)  # at once: a thread that samples would write its files again

        signal.signal(signal.SIGTERM, end)
        page(gr, Studio(pipe, Path(folder))).queue(max_size=16).launch(
            server_name=_HOST.value,
            server_port=_PORT.value,
            share=False,
            max_file_size=_MAX_MEGABYTES.value * gr.FileSize.MB,
            theme=gr.themes.Default(font=["system-ui"], font_mono=["monospace"]),
        )


if __name__ == "__main__":
    cli.run(main)
