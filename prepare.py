"""Prepare a folder of videos for training.

    python prepare.py --input=FOLDER --output=DIR --vae=sd-vae-ft-ema --size=256     # a cache of latents
    python prepare.py --input=FOLDER --output=DIR --size=64 --num_frames=16          # a tensorflow-datasets dataset

Train on the output with --config.data.name=latents --config.data.path=DIR, or with --config.data.name=tfds:DIR. Re-run
the command to continue an interrupted cache. Several hosts share its work with --num_processes=4 --process_id=0 and so
on; they do not communicate. Unreadable videos are listed in DIR/bad_files.jsonl, or bad_files_0.jsonl and so on of
several hosts.
"""

if __name__ == "__main__":
    from vdt_jax.errors import end_at_ctrl_c

    end_at_ctrl_c()  # while the rest is imported

from vdt_jax import cli
from vdt_jax.latents.prepare import PrepareOptions, prepare

cli.define_flags(PrepareOptions)


def main(_) -> None:
    options = cli.options_of_flags(PrepareOptions)
    cli.quiet_start()
    prepare(options)


if __name__ == "__main__":
    cli.run(main)
