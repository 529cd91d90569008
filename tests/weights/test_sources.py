"""Which part of a file is the weights."""

import collections
import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.torch_files import Call, archive, save_torch
from safetensors.numpy import load_file, save_file

from vdt_jax.errors import UserError
from vdt_jax.weights.safetensors_files import load_safetensors, save_safetensors
from vdt_jax.weights.sources import read_source
from vdt_jax.weights.torch_files import load_torch

GOLDENS = Path(__file__).parents[1] / "goldens"
WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


def other(weights):
    return {name: array + 10 for name, array in weights.items()}


def dit_style(**more):
    optimizer = {"state": {0: {"step": np.zeros((), np.float32)}}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}
    return {"model": other(WEIGHTS), "ema": dict(WEIGHTS), "opt": optimizer, "pos_embed": WEIGHTS["b"] + 3, **more}


def assert_same(state_dict, expected):
    assert state_dict.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(state_dict[name], array, err_msg=name)


WRAPPERS = ("module.", "_orig_mod.", "model.", "ema_model.")
PREFIXES = [
    "".join(order) for count in range(len(WRAPPERS) + 1) for order in itertools.permutations(WRAPPERS, count)
] + ["module.module.", "online_model."]


def named(prefix, weights=WEIGHTS):
    return {prefix + name: array for name, array in weights.items()}


def test_prefixes_are_removed_in_any_order_and_number(tmp_path):
    assert len(PREFIXES) == 67
    for prefix in PREFIXES:
        path = save_torch(tmp_path / "a.pt", named(prefix))
        assert_same(read_source(path).state_dict, WEIGHTS)
        path = save_torch(tmp_path / "a.pt", {"model": named(prefix, other(WEIGHTS)), "ema": named(prefix)})
        assert_same(read_source(path).state_dict, WEIGHTS)
        assert_same(read_source(path, "model").state_dict, other(WEIGHTS))


def test_the_average_and_the_model_of_ema_pytorch(tmp_path):
    both = named("ema_model.") | named("online_model.", other(WEIGHTS)) | {"initted": np.ones(1), "step": np.ones(())}
    for value in (both, {"model": other(WEIGHTS), "ema": both}):
        path = save_torch(tmp_path / "a.pt", value)
        assert_same(read_source(path).state_dict, WEIGHTS)
        source = read_source(path, "model")
        assert_same(source.state_dict, other(WEIGHTS))
        left = dict.fromkeys(("initted", "step"), "neither the model nor its average") if value is both else {}
        assert source.ignored == {"ema": "not chosen: weights=ema takes it"} | left
    assert_same(read_source(save_torch(tmp_path / "a.pt", both), "ema").state_dict, WEIGHTS)
    plain = save_torch(tmp_path / "a.pt", named("ema_model.") | other(WEIGHTS))
    assert_same(read_source(plain).state_dict, WEIGHTS)
    assert_same(read_source(plain, "model").state_dict, other(WEIGHTS))


NAMES_OF_WEIGHTS = ["model", "model_state_dict", "state_dict", "module"]
NAMES_OF_AVERAGES = ["ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema"]


@pytest.mark.parametrize("average", NAMES_OF_AVERAGES)
@pytest.mark.parametrize("model", NAMES_OF_WEIGHTS)
def test_names_of_weights(tmp_path, model, average):
    path = save_torch(tmp_path / "a.pt", {model: other(WEIGHTS), average: dict(WEIGHTS), "epoch": 1})
    assert_same(read_source(path).state_dict, WEIGHTS)
    assert_same(read_source(path, "model").state_dict, other(WEIGHTS))
    assert read_source(path, "model").ignored == {average: "not chosen: weights=ema takes it", "epoch": "no tensor"}


EXTRAS = {
    "scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000},
    "scheduler": {"T_max": 100, "base_lrs": [1e-4], "_last_lr": [1e-4], "last_epoch": 7, "verbose": False},
    "milestones": {"milestones": Call("collections", "Counter", {30: 1, 60: 1}), "gamma": 0.1},
    "lr_schedulers": [{"lr_lambdas": [None], "_step_count": 2}],
    "hyper_parameters": {"lr": 1e-4, "sizes": (1, 2)},
    "config": Call("lightning_fabric.utilities.data", "AttributeDict"),
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 2}}}},
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": np.ones(()), "dirpath": "x"}},
    "optimizer_states": [{"state": {0: {"exp_avg": np.ones(3, np.float32)}}}],
    "optimizer_state_dict": {"state": {0: {"step": np.ones(())}}},
    "pytorch-lightning_version": "2.4.0",
    "native_amp_scaling_state": {"scale": 1.0},
    "rng_state": np.ones(4, np.float32),
    "device": Call("torch", "device", "cuda", 0),
    "size": Call("torch", "Size", (2, 3)),
    "global_step": 70000,
    "best": None,
    "metrics": [1.5, "x"],
    "args": Call("argparse", "Namespace"),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_no_weights_is_named_and_skipped(tmp_path, name):
    path = save_torch(tmp_path / "a.pt", {"state_dict": named("model."), name: EXTRAS[name]})
    source = read_source(path)
    assert_same(source.state_dict, WEIGHTS)
    assert list(source.ignored) == [name]


def test_a_prefix_of_some_names_is_a_name(tmp_path):
    path = save_torch(tmp_path / "a.pt", {"module.a": WEIGHTS["b"], "c": WEIGHTS["b"] + 1})
    assert list(read_source(path).state_dict) == ["module.a", "c"]


@pytest.mark.parametrize(
    ("weights", "expected", "left"),
    [
        (None, WEIGHTS, {"model": "not chosen: weights=model takes it"}),
        ("ema", WEIGHTS, {"model": "not chosen: weights=model takes it"}),
        ("model", other(WEIGHTS), {"ema": "not chosen: weights=ema takes it"}),
    ],
)
def test_what_dit_style_trainers_save(tmp_path, weights, expected, left):
    path = save_torch(tmp_path / "a.pt", dit_style(args=Call("argparse", "Namespace"), epoch=3))
    source = read_source(path, weights)
    assert_same(source.state_dict, expected)
    assert source.ignored == left | {
        "opt": "the optimizer's state",
        "pos_embed": "the trainer's copy of the model's pos_embed",
        "args": "the trainer's flags",
        "epoch": "no tensor",
    }


def test_state_dict_in_a_dict(tmp_path):
    source = read_source(save_torch(tmp_path / "a.pt", {"state_dict": named("module."), "epoch": 7}))
    assert_same(source.state_dict, WEIGHTS)
    assert source.ignored == {"epoch": "no tensor"}


@pytest.mark.parametrize(
    ("value", "weights", "message"),
    [
        ({"network": dict(WEIGHTS)}, None, "holds network: known are"),
        (dit_style(sampler={"x": WEIGHTS["b"]}), None, r"parts that are not known: sampler \(a dict\)"),
        ({"model": dict(WEIGHTS)}, "ema", "no 'ema' weights, only model"),
        (dict(WEIGHTS), "ema", "leave out weights=ema"),
        ({}, None, "no dict of tensors"),
        ([1, 2], None, "no dict of tensors but a list"),
        ({"model": {}}, None, "holds model: known are"),
    ],
)
def test_other_shapes_are_named(tmp_path, value, weights, message):
    path = save_torch(tmp_path / "a.pt", value)
    with pytest.raises(UserError, match=message):
        read_source(path, weights)


def test_safetensors_there_and_back(tmp_path):
    tensors = {
        "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "scalar": np.array(3.5, np.float64),
        "half": np.arange(5, dtype=np.float16),
        "bf16": np.arange(5).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), np.float32),
    }
    sizes = []
    save_safetensors(tmp_path / "ours.safetensors", tensors, sizes.append)
    assert sum(sizes) == sum(array.nbytes for array in tensors.values())
    assert [path.name for path in tmp_path.iterdir()] == ["ours.safetensors"]
    assert_same(load_file(tmp_path / "ours.safetensors"), tensors)
    assert_same(load_safetensors(tmp_path / "ours.safetensors"), tensors)
    theirs = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(theirs, tmp_path / "theirs.safetensors", {"format": "pt"})
    out = load_safetensors(tmp_path / "theirs.safetensors")
    assert_same(out, tensors)
    assert out["bf16"].dtype == ml_dtypes.bfloat16 and not out["half"].flags.writeable


def test_torch_metadata_is_dropped(tmp_path):
    data = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01}q\x02X\x09\x00\x00\x00_metadataq\x03h\x00)Rsb."
    assert load_torch(archive(tmp_path / "a.pt", data=data)) == collections.OrderedDict()
