"""Quarter rate to full rate: the model against linear blending, on long videos of its own data.

    PYTHONPATH=. python benchmarks/fps.py

Held-out videos of 200 frames; every fourth is given and the rest is made again in overlapping windows, as sample.py
--fps_factor=4 does. PSNR and SSIM on the frames that were made, averaged over the videos.
"""

import functools
from typing import Any

import numpy as np
from absl import flags
from measure import report

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import make_source, take
from vdt_jax.evaluation.metrics.baselines import BASELINES
from vdt_jax.evaluation.metrics.frames import psnr, ssim
from vdt_jax.inference.functional import load, sample_keys, window_filler
from vdt_jax.inference.long_video import raise_frame_rate

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "As for sample.py, a model of pixels.")
_NUM_VIDEOS = flags.DEFINE_integer("num_videos", 4, "Held-out videos.")
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 200, "Frames of a video; what follows the last given one is left out.")
_FACTOR = flags.DEFINE_integer("factor", 4, "How many times the frame rate is raised.")
_OVERLAP = flags.DEFINE_multi_integer("overlap", [1, 2], "As for sample.py; may be given more than once.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", "As for sample.py.")
_RESPACING = flags.DEFINE_multi_string("timestep_respacing", ["50"], "As for sample.py; may be given more than once.")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/fps.json", "The report.")


def main(_) -> None:
    cli.quiet_start()
    loaded, factor = load(_CHECKPOINT.value), _FACTOR.value
    num_frames = (_NUM_FRAMES.value - 1) // factor * factor + 1
    source = make_source(loaded.config["data"], (num_frames, *loaded.model.video_shape[1:]), "held_out")
    videos = take(source, range(_NUM_VIDEOS.value))["video"]
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
            raised = functools.partial(raise_rate, loaded, respacing, overlap)
            rows.append(row(f"{_SAMPLER.value} {respacing}, overlap {overlap}", np.stack(list(map(raised, videos)))))
            print(rows[-1], flush=True)
    report(_OUTPUT.value, rows)


def raise_rate(loaded: Any, respacing: str, overlap: int, video: np.ndarray) -> np.ndarray:
    """(F, H, W, C) from every `factor`-th of its frames."""
    model, factor = loaded.model, _FACTOR.value
    rows = 8 if overlap == 1 else 1
    diffusion, key = loaded.diffusion(respacing), sample_keys(0, range(1))
    fill = window_filler(model, loaded.params, diffusion, key, rows=rows, sampler=_SAMPLER.value)
    return np.stack(list(raise_frame_rate(fill, video[::factor], factor, model.num_frames, overlap, rows)))


if __name__ == "__main__":
    cli.run(main)
