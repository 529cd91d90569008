"""Hostile and broken files: refused with an error that says where, with nothing run, written or blown up."""

import functools
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import audit, hostile_files

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT
from vdt_jax.weights.sources import read_source
from vdt_jax.weights.tables import read_table
from vdt_jax.weights.torch_files import load_torch
from vdt_jax.weights.vdt import read_sizes, vdt_table

OFFICIAL = {
    name: np.array(array) for name, array in load_torch(Path(__file__).parents[1] / "goldens" / "vdt_tiny.pt").items()
}
QUICK = 8  # every eighth case runs in `make test`


def convert(path):
    """What convert_torch_ckpt.py does before it writes."""
    state_dict = read_source(path).state_dict
    sizes = read_sizes(state_dict, 3)
    model = VDT(**sizes)
    model.check_sizes()
    with audit.unwatched():
        expected = shapes(model)
    return read_table(state_dict, vdt_table(model.depth, model.patch_size), expected)[0]


@functools.cache
def shapes(model):
    x = jax.ShapeDtypeStruct((1, *model.video_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]


def refuse(cases, folder):
    """Converts each file, and returns what went otherwise than it must."""
    convert_good(folder)  # whatever is imported late is imported now
    failures = []
    for number, (name, data, must_name) in enumerate(cases):
        path = folder / f"{number}{'.safetensors' if name.startswith('safetensors') else '.pt'}"
        data = data() if callable(data) else data
        path.write_bytes(data)
        tracemalloc.start()
        outcome = "was loaded"
        with audit.watched() as events:
            try:
                convert(path)
            except UserError as error:
                outcome = "" if must_name in str(error) else f"does not name {must_name!r}: {error}"
                outcome = outcome or ("" if str(error).isprintable() else f"is not one printable line: {error!r}")
            except BaseException as error:
                outcome = f"ended in {error!r}"
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        failures += [f"{name}: {outcome}"] if outcome else []
        failures += [f"{name}: {sorted(set(events))}"] if events else []
        failures += [f"{name}: {peak >> 20} MiB"] if peak > 2 * len(data) + (64 << 20) else []
        path.unlink()
    assert list(folder.iterdir()) == []
    return failures


def convert_good(folder):
    path = folder / "good.pt"
    path.write_bytes(hostile_files.saved(OFFICIAL))
    params = convert(path)
    path.unlink()
    np.testing.assert_array_equal(params["pos_embed"], OFFICIAL["pos_embed"])


def test_the_hook_sees_what_it_must(tmp_path):
    with audit.watched() as events:
        (tmp_path / "a").write_text("x")
        eval("1 + 1")
        (tmp_path / "a").read_text()
        (tmp_path / "a").unlink()
    seen = " ".join(events)
    assert "open" in seen and "exec" in seen and "os.remove" in seen
    assert not any("'r'" in event for event in events)


def test_a_share_of_the_hostile_files(tmp_path):
    all_cases = list(hostile_files.cases(OFFICIAL))
    assert len(all_cases) > 500 and len({name for name, _, _ in all_cases}) == len(all_cases)
    assert refuse(all_cases[::QUICK], tmp_path) == []


@pytest.mark.slow
def test_all_the_hostile_files(tmp_path):
    assert refuse(hostile_files.cases(OFFICIAL), tmp_path) == []
