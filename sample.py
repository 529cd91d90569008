"""Sample a checkpoint: any task, any mask, any length, on your own video or on held-out clips of its training data.

    python sample.py --task=interpolation --input=clip.mp4 --output=samples/out.mp4
    python sample.py --input=clip.mp4 --mask=hole.png                # the white region is generated
    python sample.py --task=predict --input=clip.mp4 --extend=200    # or --task=backward
    python sample.py --input=clip.mp4 --fps_factor=4

A latent-space model needs --vae, the autoencoder that it was trained with. For each sample OUT: OUT.mp4 (or .npz),
OUT.gif (given | sample | truth), OUT.png (the same three, one row of frames each), and index.html, which shows them.
docs/sampling.md has examples of everything.
"""

if __name__ == "__main__":
    from vdt_jax.errors import end_at_ctrl_c

    end_at_ctrl_c()  # while the rest is imported

import dataclasses
import shlex
import sys
from pathlib import Path

from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.inference.clip import write_gallery
from vdt_jax.inference.options import SampleOptions
from vdt_jax.inference.outputs import check_output
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.progress import steps_progress

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "A working directory, a converted folder, or `demo`.")
_VAE = flags.DEFINE_string("vae", None, "Autoencoder: a folder, a file, or a repository (stabilityai/sd-vae-ft-ema).")
_TRUST_DATA = flags.DEFINE_bool("trust_data", False, "Import the class of clips that the checkpoint's config names.")
_VAE_DTYPE = flags.DEFINE_enum("vae_dtype", "float32", ["float32", "bfloat16"], "What the autoencoder computes in.")
_INPUT = flags.DEFINE_multi_string(
    "input", None, "A video, image, folder of frames or videos, list, .npz, .npy or .pt; default: held-out clips."
)
_OUTPUT = flags.DEFINE_string("output", "samples/sample.mp4", ".mp4 or .npz; .gif or .png for the comparison alone.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print shapes, memory and time, and write nothing.")
cli.define_flags(SampleOptions)


def main(_) -> None:
    options = cli.options_of_flags(SampleOptions)
    check_output(_OUTPUT.value)
    cli.quiet_start()
    if _CHECKPOINT.value == DEMO:
        print("checkpoint: the bundled demo model (moving digits); choose another with --checkpoint")
    pipe = Pipeline.load(_CHECKPOINT.value, vae=_VAE.value, vae_dtype=_VAE_DTYPE.value, trust_data=_TRUST_DATA.value)
    arguments = dataclasses.asdict(options)
    if _DRY_RUN.value:
        print(pipe.cost(_INPUT.value, **arguments))
        return
    output = None if Path(_OUTPUT.value).suffix in (".gif", ".png") else _OUTPUT.value  # those are written below
    with steps_progress("sampling") as progress:
        clips = pipe.sample(_INPUT.value, output=output, progress=progress, **arguments)
    page = write_gallery(
        _OUTPUT.value, clips if isinstance(clips, list) else [clips], shlex.join(["python", *sys.argv])
    )
    print(f"page: {page}")


if __name__ == "__main__":
    cli.run(main)
