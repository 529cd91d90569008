"""Presets of evaluation: the settings with which published numbers were measured, as far as they are known."""

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """The settings of a paper."""

    frames: int
    size: tuple[int, int]  # (H, W)
    options: dict[str, Any]  # of EvaluateOptions; clips are spread evenly over the split unless `every` is given
    note: str  # which settings are unknown, and which differ here


# MCVD: github.com/voletiv/mcvd-pytorch at 451da2e (datasets, example_scripts/final, video_gen). Latte:
# github.com/Vchitect/Latte at b27c24a (tools/eval_metrics.sh). OpenSTL: github.com/chengtan9907/OpenSTL at c74deb5
# (openstl/core/metrics.py). VDT published no code for its tables.
PRESETS = {
    "vdt-ucf101": Preset(
        16,
        (64, 64),
        dict(tasks=("unconditional",), num_clips=2048, fvd_frames="all", split="train"),
        "VDT, table of UCF-101, unconditional. The number of clips and the split are unknown: 2,048 of the training "
        "split, as is usual for unconditional FVD.",
    ),
    "vdt-cityscapes": Preset(
        30,
        (128, 128),
        dict(tasks=("predict",), num_given=2, num_clips=256, fvd_frames="all", ssim_border=5),
        "VDT, table of Cityscapes, 2 given frames and 28 to predict. Its protocol is unknown. MCVD, with whose "
        "numbers it compares, takes 256 videos of the test split, counts the given frames in FVD, and the best of 10 "
        "samples in SSIM (of grey frames, without a border of 5); here: one sample, and each colour.",
    ),
    "mcvd-smmnist": Preset(
        15,
        (64, 64),
        dict(tasks=("predict",), num_given=5, num_clips=256, samples_per_clip=10, fvd_frames="all", steps=100)
        | dict(ssim_border=5),
        "MCVD's code on stochastic moving MNIST: 256 test clips, 5 given frames and 10 to predict, 10 samples of "
        "each, the best of which counts in PSNR, SSIM and LPIPS; FVD takes all of them, given frames included. "
        "Different here: the digits (there the first 256 of MNIST's test file), SSIM (there of pixels rounded to black "
        "and white) and LPIPS (there of frames enlarged to 128x128).",
    ),
    "openstl-mfmnist": Preset(
        20,
        (64, 64),
        {
            "tasks": ("predict",),
            "num_given": 10,
            "num_clips": 10_000,
            "samples_per_clip": 10,
            "metrics": ("psnr", "openstl"),
        },
        "OpenSTL's code on moving Fashion-MNIST: its 10,000 test clips, 10 given frames and 10 to predict. Its models "
        "minimise the squared error and give one prediction: compare the mean of 10 samples with them; the best of 10 "
        "is reported too.",
    ),
    "latte-sky": Preset(
        16,
        (256, 256),
        dict(tasks=("unconditional",), num_clips=2048, fvd_frames="all", split="train", stride=3),
        "Latte's code on Sky Time-Lapse: 2,048 samples against a clip of every third frame from each of 2,048 videos "
        "drawn at random, half of them mirrored. The split is unknown: the training split. Different here: the copy "
        "of I3D, no video is mirrored, and frames are resized with antialiasing, after the same crop of 640x360.",
    ),
}
