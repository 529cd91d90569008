"""Moving Fashion-MNIST: its test clips are those of OpenSTL's generator, bit for bit."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from vdt_jax.data import make_source
from vdt_jax.data.moving_fashion_mnist import DEBIAN, _path
from vdt_jax.errors import UserError

SHAPE = (20, 64, 64, 1)
# SHA-256 of the first ten of OpenSTL's test clips: benchmarks/moving_fashion_mnist.py writes these from its own code.
OPENSTL = [
    "c72ef2f6f9c7dc0ec58d222e20290115a79470443c2c6e40b1800674f7fb0312",
    "ecef13cf616ca8b18332ecbcf5b118607aaba31419adc642bfa6f2e95a688366",
    "e2e5a642e75305a89a2d8e534651534de350699932472fee4295ffdee8343629",
    "1af9f0d38b352b4bdb24107979e2e326c15d66ef975d7780edfad2cb1c478abe",
    "c1df10a227fa47e4897572542faa0bc4a7a6a6ba7d2a47b0a2885f3db3ded09d",
    "23f2507acb8bc590628ea2f9171473b3e102ebd24cdf415a21421e60b71bc3d4",
    "b6a5ea91442f9f9b30e1035a5b1baf5775820171732fd833502f6b68194773e0",
    "cffa720e70b299e5cb7ef66e87fb5e4ebe1664bf9b45a7a779a1fa1974d4b449",
    "344f709ca5e68cb60e6be4dfd070e52a9829213d7da4a4ab3496f949e3f71b9d",
    "2e1d86f87d73057fecaa240b241c88fc44c5d38df9150c0c4dcbdd896fd8cae3",
]


@pytest.fixture(scope="module")
def garments(tmp_path_factory):
    """60,000 small squares of increasing brightness in place of the garments, which OpenSTL draws by number."""
    pictures = np.zeros((60_000, 28, 28), np.uint8)
    pictures[:, 10:18, 10:18] = (1 + np.arange(60_000) % 255)[:, None, None]
    file = tmp_path_factory.mktemp("fashion") / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(struct.pack(">4i", 0x803, *pictures.shape) + pictures.tobytes(), 1))
    return str(file)


def source_of(split, shape=SHAPE, path=DEBIAN):
    return make_source({"name": "moving_fashion_mnist", "path": path}, shape, split)


def test_test_clips_are_those_of_openstl():
    if not Path(DEBIAN).exists():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    source = source_of("held_out")
    assert len(source) == 10_000
    assert [hashlib.sha256(source.clip(number)["video"].tobytes()).hexdigest() for number in range(10)] == OPENSTL


def test_the_motion_is_that_of_openstl(garments):
    """Recorded from OpenSTL's generator with these garments."""
    source = source_of("held_out", path=garments)
    digest = hashlib.sha256(b"".join(source.clip(number)["video"].tobytes() for number in range(10)))
    assert digest.hexdigest() == "ad65ee0e3d4e4e6223948bf2c060b831ef65be3a08663f994770be31363dc693"


def test_a_path_bounces_at_the_walls():
    assert _path(0.85, 1.0, 5, 36) == [34, 36, 32, 28, 25]
    assert _path(0.05, -1.0, 4, 36) == [0, 3, 7, 10]


def test_training_clips_are_a_function_of_their_number_and_not_of_the_test_set(garments):
    train, held_out = source_of("train", path=garments), source_of("held_out", path=garments)
    clips = [train.clip(number)["video"] for number in range(3)]
    np.testing.assert_array_equal(source_of("train", path=garments).clip(2)["video"], clips[2])
    assert clips[0].shape == SHAPE and len(train) == 2**20
    everything = [*clips, held_out.clip(0)["video"], held_out.clip(1)["video"]]
    assert len({video.tobytes() for video in everything}) == 5


def test_mistakes(tmp_path):
    for shape, message in [((20, 64, 64, 3), "one channel and more than 28x28"), ((20, 28, 64, 1), "more than 28x28")]:
        with pytest.raises(UserError, match=message):
            source_of("train", shape)
    with pytest.raises(UserError, match="no Fashion-MNIST at '/no/where': apt-get install dataset-fashion-mnist, or"):
        source_of("train", path="/no/where")
    (tmp_path / "broken.gz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.gz holds no digits"):
        source_of("train", path=str(tmp_path / "broken.gz"))
