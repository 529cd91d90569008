"""Pickles of NumPy arrays: read as pickle reads them, and refused where they ask for anything else."""

import pickle
import random
import tracemalloc
import zipfile
from io import BytesIO

import numpy as np
import pytest
from helpers import audit
from helpers.hostile_pickles import names_of_code, text
from helpers.torch_files import pickled

from vdt_jax.errors import UserError
from vdt_jax.weights.numpy_pickles import load_pickled_arrays

RNG = np.random.default_rng(0)
TREE = {
    "params": {"conv": {"kernel": RNG.standard_normal((3, 2, 4)), "bias": RNG.standard_normal(4).astype(np.float32)}},
    "batch_stats": {"mean": np.asfortranarray(RNG.standard_normal((5, 7)).astype(np.float16)), "count": np.array(3)},
    "flags": np.array([True, False]),
}


def load(tmp_path, data):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(data)
    with audit.watched() as events:
        try:
            return load_pickled_arrays(path)
        finally:
            assert events == []


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_come_as_pickle_would_give_them(tmp_path, protocol):
    data = pickle.dumps(TREE, protocol=protocol)
    if protocol == 5 and b"_frombuffer" in data:  # NumPy's shortcut for protocol 5 is not in the files that are read
        with pytest.raises(UserError, match=r"_frombuffer|BYTEARRAY8"):
            load(tmp_path, data)
        return
    loaded = load(tmp_path, data)
    np.testing.assert_equal(loaded, TREE)
    assert loaded["batch_stats"]["mean"].dtype == np.float16 and not loaded["flags"].flags.writeable


F4 = text("f4")


def array(shape=b"K\x02\x85", dtype=F4, data=bytes(8), order=b"<", kind=b"cnumpy\nndarray\n"):
    """A pickle of {"w": array}, piece by piece."""
    begun = b"cnumpy.core.multiarray\n_reconstruct\n" + kind + b"K\x00\x85C\x01b\x87R"
    number = b"cnumpy\ndtype\n" + dtype + b"\x89\x88\x87R(K\x03" + text(order.decode()) + b"NNNtb"
    state = b"(K\x01" + shape + number + b"\x89C" + bytes([len(data)]) + data + b"tb"
    return b"\x80\x03}" + text("w") + begun + state + b"s."


def test_the_pieces_make_an_array(tmp_path):
    np.testing.assert_array_equal(load(tmp_path, array())["w"], np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array(shape=b"K\x03\x85"), "claims other than the 8 bytes"),
        (array(shape=b"J\xfe\xff\xff\xff\x85"), "whole numbers"),
        (array(shape=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"), "claims other than"),
        (array(dtype=text("O")), "number type 'O'"),
        (array(dtype=text("V8")), "number type 'V8'"),
        (array(dtype=b")q\x05" + b"h\x05\x86q\x05" * 60), "number type is not"),  # 2**60 elements
        (array(dtype=b")" + b"\x85" * 5000), "number type is not"),
        (array(dtype=text("\x1b[31m\n")), "number type"),
        (array(order=b">"), "little-endian"),
        (array(kind=b"cnumpy\ndtype\n"), "begun as NumPy does not"),
        (array(kind=b"cnumpy\nmatrix\n"), "numpy.matrix"),
        (array()[:-2] + b"b.", "corrupt"),
        (b"\x80\x03}" + text("w") + text("not an array") + b"s.", "holds a str"),
        (b"\x80\x03}q\x00" + text("w") + b"h\x00s.", "levels"),
        (b"\x80\x03}" + text("w") + b"K\x00Qs.", "opcode BINPERSID"),
        (pickle.dumps({"w": pickle.Pickler}), "_pickle.Pickler"),
        (pickled({"w": 1})[:-1], "exhausted before seeing STOP"),
    ],
)
def test_what_is_no_array_is_refused(tmp_path, data, message):
    with pytest.raises(UserError, match=message) as refusal:
        load(tmp_path, data)
    assert str(refusal.value).isprintable()


def test_names_of_code_are_refused(tmp_path):
    for name, data, must_name in list(names_of_code())[::16]:
        archive = zipfile.ZipFile(BytesIO(data))
        body = archive.read(next(entry for entry in archive.namelist() if entry.endswith("data.pkl")))
        with pytest.raises(UserError) as refusal:
            load(tmp_path, body)
        assert must_name in str(refusal.value) or "numpy" in name


def test_mutants_are_loaded_or_refused_in_bounded_memory(tmp_path):
    good, rng = pickle.dumps(TREE, protocol=4), random.Random(0)
    outcomes = set()
    for _ in range(400):
        mutant = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        tracemalloc.start()
        try:
            load(tmp_path, bytes(mutant))
            outcomes.add("loaded")
        except UserError:
            outcomes.add("refused")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.stop()
    assert outcomes == {"loaded", "refused"}
