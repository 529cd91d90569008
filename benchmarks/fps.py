"""Quarter rate to full rate: the model against linear blending, on long videos of its own data.

    python benchmarks/fps.py

Held-out videos of 200 frames: every fourth frame is given and the others are generated in overlapping windows, as
`Pipeline.raise_frame_rate` does. PSNR and SSIM of the generated frames, averaged over the videos.
"""

from typing import Any

import numpy as np
from absl import flags
from measure import report

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import take
from vdt_jax.evaluation.metrics.baselines import BASELINES
from vdt_jax.evaluation.metrics.frames import psnr, ssim
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.video import to_float

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "As for sample.py, a model of pixels.")
_NUM_VIDEOS = flags.DEFINE_integer("num_videos", 4, "Held-out videos.")
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 200, "Frames of a video; those after the last given one are left out.")
_FACTOR = flags.DEFINE_integer("factor", 4, "Factor by which the frame rate is raised.")
_OVERLAP = flags.DEFINE_multi_integer("overlap", [1, 2], "As for sample.py; may be given more than once.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", "As for sample.py.")
_RESPACING = flags.DEFINE_multi_string("timestep_respacing", ["50"], "As for sample.py; may be given more than once.")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/fps.json", "The report.")


def main(_) -> None:
    cli.quiet_start()
    pipe, factor = Pipeline.load(_CHECKPOINT.value), _FACTOR.value
    num_frames = (_NUM_FRAMES.value - 1) // factor * factor + 1
    videos = take(pipe.source(num_frames=num_frames), range(_NUM_VIDEOS.value))["video"]
    hidden = (np.arange(num_frames) % factor > 0).astype(np.float32)
    mask = np.broadcast_to(hidden[:, None, None, None], (*videos.shape[:-1], 1))

    def row(name: str, candidates: np.ndarray) -> dict[str, Any]:
        gain = psnr(candidates, videos, mask) - psnr(BASELINES["linear blending"](videos, mask), videos, mask)
        return {
            "what": name,
            "PSNR": f"{psnr(candidates, videos, mask).mean():.2f}",
            "SSIM": f"{ssim(candidates, videos, mask).mean():.3f}",
            "over linear blending": f"{gain.mean():+.2f} dB ({gain.min():+.2f} to {gain.max():+.2f})",
        }

    rows = [row(name, baseline(videos, mask)) for name, baseline in BASELINES.items()]
    for respacing in _RESPACING.value:
        for overlap in _OVERLAP.value:
            options = {"overlap": overlap, "timestep_respacing": respacing, "sampler": _SAMPLER.value}
            clips = [pipe.raise_frame_rate(video[::factor], factor, **options) for video in videos]
            rows.append(
                row(f"{_SAMPLER.value} {respacing}, overlap {overlap}", to_float(np.stack([c.video for c in clips])))
            )
            print(rows[-1], flush=True)
    report(_OUTPUT.value, rows)


if __name__ == "__main__":
    cli.run(main)
