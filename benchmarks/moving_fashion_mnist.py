"""Moving Fashion-MNIST beside OpenSTL's generator: are the test clips the same, bit for bit?

    python benchmarks/moving_fashion_mnist.py --openstl=FOLDER --num_clips=10

FOLDER is a clone of github.com/chengtan9907/OpenSTL. Its generator runs as it is, with empty modules in place of torch,
torchvision and OpenCV, which it imports and does not use for this.
"""

import hashlib
import importlib
import random
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.data import make_source
from vdt_jax.data.moving_fashion_mnist import DEBIAN
from vdt_jax.errors import UserError

_OPENSTL = flags.DEFINE_string("openstl", None, "A clone of github.com/chengtan9907/OpenSTL.", required=True)
_PATH = flags.DEFINE_string("path", DEBIAN, "Fashion-MNIST's train-images-idx3-ubyte.gz.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 10, "Test clips, up to 10,000.")

_UNUSED = ("cv2", "torch", "torch.nn", "torch.nn.functional", "torchvision", "openstl", "openstl.datasets")


def official_clips(clone: Path, path: Path, count: int) -> np.ndarray:
    """The first clips (count, 20, 64, 64) of the test set that OpenSTL's own code makes."""
    loader, generator = clone / "openstl" / "datasets", clone / "tools" / "prepare_data"
    if not (generator / "generate_mmnist.py").is_file():
        raise UserError(f"openstl must be a clone of github.com/chengtan9907/OpenSTL, got {clone}")
    stubs = {name: mock.MagicMock() for name in (*_UNUSED, "openstl.datasets.utils", "torch.utils")}
    stubs["torch.utils.data"] = mock.MagicMock(Dataset=object)
    with mock.patch.dict(sys.modules, stubs), tempfile.TemporaryDirectory() as folder:
        sys.path[:0] = [str(loader), str(generator)]
        module = importlib.import_module("dataloader_moving_mnist")
        sys.modules["openstl.datasets.dataloader_moving_mnist"] = module
        generate = importlib.import_module("generate_mmnist").generate_mmnist_testset
        root = Path(folder)
        (root / "moving_fmnist").mkdir()
        (root / "moving_fmnist" / "train-images-idx3-ubyte.gz").symlink_to(path.absolute())
        random.seed(0)  # as its main function does
        clips = generate(str(root), "fmnist", [2], str(root / "clips.npy"), count)
    return np.moveaxis(clips, 1, 0)


def main(_) -> None:
    cli.quiet_start()
    official = official_clips(Path(_OPENSTL.value), Path(_PATH.value), _NUM_CLIPS.value)
    section = {"name": "moving_fashion_mnist", "path": _PATH.value}
    source = make_source(section, (20, 64, 64, 1), "held_out")
    different = 0
    for number, clip in enumerate(official):
        ours = source.clip(number)["video"][..., 0]
        different += not np.array_equal(ours, clip)
        if number < 10:
            print(number, hashlib.sha256(clip.astype(np.uint8).tobytes()).hexdigest())
    print(f"{different} of {len(official)} clips differ from OpenSTL's")


if __name__ == "__main__":
    cli.run(main)
