"""The reader of torch files: what torch writes comes out, anything else is refused and nothing runs."""

import collections
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.torch_files import Call, Stored, archive, pickled, storage, tensor

from vdt_jax.errors import UnsafeFileError, UserError
from vdt_jax.weights.torch_files import Ignored, load_torch

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_the_official_file_is_read():
    state_dict = load_torch(GOLDENS / "vdt_tiny.pt")
    assert isinstance(state_dict, collections.OrderedDict) and len(state_dict) == 67
    assert state_dict["pos_embed"].shape == (1, 16, 48) and state_dict["pos_embed"].dtype == np.float32
    assert not state_dict["pos_embed"].flags.writeable


def test_nests_strides_offsets_and_parameters(tmp_path):
    parameter = Call("torch._utils", "_rebuild_parameter", tensor(), True, Call("collections", "OrderedDict"))
    value = {
        "a": [tensor(), (1, 2.5, None, True)],
        "t": tensor((3, 2), (1, 3)),
        "o": tensor((2,), (2,), 1),
        "p": parameter,
    }
    out = load_torch(archive(tmp_path / "a.pt", value))
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(out["a"][0], table)
    assert out["a"][1] == (1, 2.5, None, True)
    np.testing.assert_array_equal(out["t"], table.T)
    np.testing.assert_array_equal(out["o"], [1, 3])
    np.testing.assert_array_equal(out["p"], table)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("HalfStorage", np.float16), ("BFloat16Storage", ml_dtypes.bfloat16), ("LongStorage", np.int64)]
)
def test_other_dtypes(tmp_path, kind, dtype):
    array = np.array([1, 2, 3, 4, 5, 6], dtype)
    path = archive(tmp_path / "a.pt", {"w": tensor(stored=storage(kind=kind))}, entries={"0": array})
    out = load_torch(path)["w"]
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(np.float32).ravel(), [1, 2, 3, 4, 5, 6])


def test_what_is_not_weights_is_dropped_unread(tmp_path):
    namespace = Call("argparse", "Namespace")
    out = load_torch(archive(tmp_path / "a.pt", {"args": namespace, "w": tensor()}))
    assert isinstance(out["args"], Ignored) and out["w"].shape == (2, 3)


MARKER = "ran"


class _Evil:
    def __reduce__(self):
        return os.mkdir, (MARKER,)


@pytest.mark.parametrize(
    "named",
    [
        "os system",
        "builtins eval",
        "builtins getattr",
        "posix mkdir",
        "torch load",
        "numpy._core.multiarray scalar",
        "vdt_jax.cli run",
    ],
)
def test_names_are_refused_by_name(tmp_path, named):
    module, name = named.split()
    with pytest.raises(UnsafeFileError, match=f"{module}.{name}"):
        load_torch(archive(tmp_path / "a.pt", {"w": Call(module, name, "x")}))


def test_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        with pytest.raises(UnsafeFileError):
            load_torch(archive(tmp_path / "a.pt", data=pickle.dumps(_Evil(), protocol)))
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor((2, 4), (4, 1)), "reaches past|claims more"),
        (tensor((2, 3), (3, 1), 1), "reaches past"),
        (tensor((2, 3), (-3, 1)), "not what torch writes"),
        (tensor((2, 3), (3, 1), -1), "not what torch writes"),
        (tensor((2,), (3, 1)), "has strides"),
        (tensor((1000, 1000), (0, 0)), "claims more"),
        (tensor(stored=storage("9")), "no entry"),
        (tensor(stored=storage(numel=7)), "claims 7"),
        (tensor(stored=storage(numel=2**60)), "claims"),
        (Stored(("module", "x")), "storage"),
        (Call("collections", "OrderedDict", [[1, 2]]), "constructor"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, value, message):
    with pytest.raises(UnsafeFileError, match=message):
        load_torch(archive(tmp_path / "a.pt", {"w": value}))


def test_archives_that_torch_does_not_write(tmp_path):
    good = {"w": tensor()}
    with pytest.raises(UnsafeFileError, match="compressed"):
        load_torch(archive(tmp_path / "a.pt", good, compress=zipfile.ZIP_DEFLATED))
    with pytest.raises(UnsafeFileError, match=r"\.\."):
        load_torch(archive(tmp_path / "b.pt", good, extra=[("m/../x", b"")]))
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "c.pt", good, extra=[("m/data/0", b"")])
    with pytest.raises(UnsafeFileError, match="two entries"):
        load_torch(path)
    with pytest.raises(UnsafeFileError, match=r"not one data\.pkl"):
        load_torch(archive(tmp_path / "d.pt", good, extra=[("n/data.pkl", b"")]))
    (tmp_path / "e.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UnsafeFileError, match="not a zip archive"):
        load_torch(tmp_path / "e.pt")
    with pytest.raises(UserError, match="file not found"):
        load_torch(tmp_path / "f.pt")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}",
        b"\x80\x02.",
        b"\x80\x02]q\x00h\x05.",
        b"\x80\x02K\x01K\x02s.",
        b"\x80\x02K\x01e.",
        b"c\x00",
        b"\x80\x02\x8b",
    ],
)
def test_damaged_pickles(tmp_path, data):
    with pytest.raises(UnsafeFileError):
        load_torch(archive(tmp_path / "a.pt", data=data))


def test_a_checksum_of_zero_means_none(tmp_path):
    """torch writes that where it was told not to compute any (torch.serialization.set_crc32_options)."""
    path = archive(tmp_path / "a.pt", {"w": tensor()})
    data = path.read_bytes()
    for signature, crc in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        for place in re.finditer(signature, data):
            data = data[: place.start() + crc] + bytes(4) + data[place.start() + crc + 4 :]
    path.write_bytes(data)
    np.testing.assert_array_equal(load_torch(path)["w"], np.arange(6).reshape(2, 3))


@pytest.mark.slow
def test_a_file_of_more_than_four_gigabytes(tmp_path):
    numel = (1 << 30) + 7
    nest = {"huge": tensor((numel,), (1,), stored=storage("0", numel=numel)), "w": tensor(stored=storage("1"))}
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("m/data.pkl", pickled(nest))
        with file.open("m/data/0", "w", force_zip64=True) as entry:
            for _ in range(1024):
                entry.write(bytes(1 << 22))
            entry.write(np.arange(7, dtype=np.float32).tobytes())
        file.writestr("m/data/1", np.arange(6, dtype=np.float32).tobytes())
    out = load_torch(tmp_path / "a.pt")
    assert out["huge"].shape == (numel,) and out["huge"][-1] == 6
    np.testing.assert_array_equal(out["w"], np.arange(6).reshape(2, 3))


def test_every_truncation_of_a_good_file_is_refused(tmp_path):
    whole = archive(tmp_path / "a.pt", {"w": tensor()}).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "b.pt").write_bytes(whole[:length])
        with pytest.raises(UserError):
            load_torch(tmp_path / "b.pt")


def test_an_entry_that_points_elsewhere_is_refused(tmp_path):
    path = archive(tmp_path / "a.pt", {"w": tensor()})
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(b"m/data/0"))
    struct.pack_into("<I", data, central + 42, 1)  # the offset of the local header
    path.write_bytes(data)
    with pytest.raises(UnsafeFileError):
        load_torch(path)
