"""Data sources of the user's own: the example of docs/data.md, the checks of their clips, one line for each mistake."""

import dataclasses
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from helpers.scripts import DIGITS, SHRUNK, fail, succeed
from helpers.tiny_evaluation import SIZES, pipeline
from ml_collections import config_flags

from vdt_jax import cli
from vdt_jax.checkpoints import save_model
from vdt_jax.data import UnreadableClip, keys_of, make_source, take
from vdt_jax.data.pipeline import batches
from vdt_jax.errors import UserError
from vdt_jax.evaluation.evaluator import evaluate
from vdt_jax.inference.pipeline import Pipeline

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SHAPE = (4, 16, 16, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """my_clips.py as the docs have it, and ten videos whose pixels are their number; the last is too short."""
    folder = tmp_path_factory.mktemp("own")
    section = PAGE.read_text().partition("## Your own dataset")[2].partition("\n## ")[0]
    (code,) = re.findall("```python\n(.*?)```", section, re.DOTALL)
    assert len(code[code.index("class") :].splitlines()) <= 20
    (folder / "my_clips.py").write_text(code)
    for number in range(10):
        np.save(folder / f"{number}.npy", np.full((3 if number == 9 else 7, 16, 16, 1), number, np.uint8))
    return folder


@pytest.fixture
def own(folder, monkeypatch):
    """The `data` section of a config for the example."""
    monkeypatch.syspath_prepend(folder)
    return {"name": "my_clips:NpyClips", "path": str(folder)}


def test_the_example_of_the_docs_is_a_source(own):
    train, held_out = (make_source(own | {"options": {"every": 5}}, SHAPE, split) for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (8, 2)
    assert (train.num_classes, train.generated, train.crop) == (1, False, "made by my_clips:NpyClips")
    numbers = ((take(held_out, range(3))["video"][:, 0, 0, 0, 0] + 1) * 127.5).round().tolist()
    assert numbers == [0, 5, 0]
    with pytest.raises(UnreadableClip, match="has only 3 frames"):
        train.clip(7)
    drawn = [next(batches(train, batch_size=8, seed=0, first_step=step)) for step in (1, 1)]
    assert drawn[0]["video"].shape == (8, *SHAPE) and drawn[0]["labels"].tolist() == [0] * 8
    np.testing.assert_array_equal(drawn[0]["video"], drawn[1]["video"])


def test_keys_of_the_config_and_options_are_arguments(own):
    assert keys_of("my_clips:NpyClips") == {"path", "every"}
    # None and "" are defaults; options may repeat a key of the config.
    assert len(make_source(own | {"stride": None, "options": {}}, SHAPE, "train")) == 9
    assert len(make_source(own | {"path": "", "options": {"path": own["path"]}}, SHAPE, "held_out")) == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "no_such.module:Clips"},
            r"no_such.module:Clips cannot be imported \(No module named 'no_such'\): is the",
        ),
        ({"name": "my_clips:Clips"}, "my_clips:Clips: the module my_clips has no class Clips"),
        ({"name": "my_clips:"}, r"the module my_clips has no class \(no name\)"),
        ({"name": ":NpyClips"}, "cannot be imported"),
        ({"name": "my_clips.NpyClips"}, "no data source 'my_clips.NpyClips': choose from .*package.module:Class"),
        ({"options": {"evry": 5}}, r"NpyClips takes no evry: it takes \['every', 'path'\]"),
        ({"options": {1: 2}}, r"data.options must give a value for each name, \{'name': value\}, got \{1: 2\}"),
        ({"stride": 2}, "NpyClips takes no stride"),
        (
            {"path": ""},
            r"NpyClips: missing a required argument: 'path'; its constructor takes \(shape, split, path, eve",
        ),
        ({"path": "/no/where"}, "data source my_clips:NpyClips has no clips"),
    ],
)
def test_mistakes_in_names_and_options(own, section, message):
    with pytest.raises(UserError, match=message) as raised:
        make_source(own | section, SHAPE, "train")
    assert "\n" not in str(raised.value)


def source_of(monkeypatch, options=None, **members):
    """A source of a class with some members changed; None leaves one out."""
    given = {
        "__init__": lambda self, shape, split: None,
        "__len__": lambda self: 3,
        "clip": lambda self, number, rng: {"video": np.zeros(SHAPE, np.uint8), "label": 1},
        "num_classes": 2,
    }
    changed = {name: value for name, value in (given | members).items() if value is not None}
    module = types.ModuleType("temporary_clips")
    module.__dict__["Clips"] = type("Clips", (), changed)
    monkeypatch.setitem(sys.modules, "temporary_clips", module)
    return make_source({"name": "temporary_clips:Clips", "options": options}, SHAPE, "train")


def test_any_parameter_but_the_fixed_ones_can_be_an_option(monkeypatch):
    def init(self, shape, split, dataset, bad_files=None, **rest):
        self.given = dataset, bad_files, rest

    source_of(monkeypatch, __init__=init, options={"dataset": "x"})
    section = {"name": "temporary_clips:Clips", "stride": 2, "options": {"dataset": "x", "other": [1]}}
    source = make_source(section, SHAPE, "train", "bad.jsonl")
    assert source._source.given == ("x", "bad.jsonl", {"stride": 2, "other": [1]})


def test_attributes_are_those_of_the_class(monkeypatch):
    source = source_of(monkeypatch, generated=True, crop="drawn at this size")
    assert (source.num_classes, source.generated, source.crop) == (2, True, "drawn at this size")
    assert source.clip(0)["label"] == 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"clip": None}, r"temporary_clips:Clips has no method clip\(number, rng\)"),
        ({"__len__": None}, "temporary_clips:Clips has no method __len__"),
        ({"__len__": lambda self: 0}, "temporary_clips:Clips has no clips"),
        ({"num_classes": 0}, "num_classes must be an integer >= 1, got 0"),
        ({"__init__": lambda self: None}, r"too many positional arguments; its constructor takes \(\)"),
    ],
)
def test_mistakes_in_a_class(monkeypatch, members, message):
    with pytest.raises(UserError, match=message):
        source_of(monkeypatch, **members)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros(SHAPE, np.uint8), r"returned uint8 of shape \(4, 16, 16, 1\); expected a dict with video and label"),
        ({"frames": 0}, "returned a dict with frames; expected a dict with video and label"),
        (
            {"video": np.zeros(SHAPE, np.float32)},
            r"returned video float32 of shape \(4, 16, 16, 1\); expected uint8 of",
        ),
        ({"video": np.zeros((4, 1, 16, 16), np.uint8)}, r"returned video uint8 of shape \(4, 1, 16, 16\); expected"),
        ({"video": [[0]]}, "returned video a value of type list"),
        (
            {"video": np.zeros(SHAPE, np.uint8), "label": 2},
            "returned label 2; expected an integer from 0 to num_cl.* = 1",
        ),
        ({"video": np.zeros(SHAPE, np.uint8), "label": -1}, "returned label -1"),
        ({"video": np.zeros(SHAPE, np.uint8), "label": 0.5}, "returned label 0.5"),
    ],
)
def test_a_wrong_clip_gets_one_line(monkeypatch, clip, message):
    source = source_of(monkeypatch, clip=lambda self, number, rng: clip)
    for read in (lambda: take(source, range(1)), lambda: next(batches(source, batch_size=1, seed=0))):
        with pytest.raises(UserError, match=f"data source temporary_clips:Clips: clip . {message}") as raised:
            read()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ([], {"name": "my_clips:NpyClips", "hop": 3, "options": {"every": 5}}),
        (["options.every=4"], {"name": "my_clips:NpyClips", "hop": 3, "options": {"every": 4}}),
        (["options={'path': 'x'}"], {"name": "my_clips:NpyClips", "hop": 3, "options": {"path": "x"}}),
        (["name=video_folder"], {"name": "video_folder", "hop": 3}),
        (["name=synthetic", "path=x"], {"name": "synthetic", "path": "x"}),
        (["name=my_clips:NpyClips", "options={'every': 2}"], {"name": "my_clips:NpyClips", "options": {"every": 2}}),
    ],
)
def test_options_in_a_recipe_and_on_the_command_line(own, tmp_path, monkeypatch, arguments, data):
    """Where another source is named, the recipe's options for its own are dropped."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from configs import default\n\ndef get_config():\n    config = default.get_config()\n"
        "    config.data.update(name='my_clips:NpyClips', hop=3)\n    config.data.options = dict(every=5)\n"
        "    return config\n"
    )
    argv = ["train.py", f"--config={recipe}", *(f"--config.data.{argument}" for argument in arguments)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    monkeypatch.setattr("sys.argv", argv)
    values(argv)
    monkeypatch.setattr(flags, "FLAGS", values)
    section = cli.values_of_config()["data"]
    assert {key: value for key, value in section.items() if value is not None} == data


def test_a_class_that_a_checkpoint_names_is_not_imported(own, tmp_path, monkeypatch):
    """Unless the user trusts it; built-in sources and other videos need no trust."""
    config = {"model": SIZES, "diffusion": {}, "data": own, "loss": {}}
    save_model(tmp_path / "m", config, pipeline().params)
    monkeypatch.delitem(sys.modules, "my_clips", raising=False)
    pipe = Pipeline.load(tmp_path / "m")
    refused = "my_clips:NpyClips of this checkpoint is a class outside of vdt_jax.* or set trust_data"
    for use in (pipe.source, pipe.predict, lambda: evaluate(pipe, output=tmp_path / "out")):
        with pytest.raises(UserError, match=refused):
            use()
    assert "my_clips" not in sys.modules
    assert pipe.predict(np.zeros((4, 16, 16, 1), np.uint8), steps=1).video.shape == (4, 16, 16, 1)
    assert len(Pipeline.load(tmp_path / "m", trust_data=True).source()) == 1
    config["data"] = {"name": "moving_digits"}
    assert len(dataclasses.replace(pipe, config=config).source()) == 2**20


@pytest.fixture
def run(folder, monkeypatch, tmp_path):
    """A command that trains on the example; any recipe will do."""
    monkeypatch.setenv("PYTHONPATH", str(folder))
    shape = ["--config.model.num_frames=4", "--config.model.input_size=(16,16)", "--config.model.num_classes=1"]
    names = ["--config.data.name=my_clips:NpyClips", f"--config.data.path={folder}"]
    never = ["--config.preview.every=0", "--config.validation.every=0"]
    return ["train.py", DIGITS, f"--workdir={tmp_path}/run", *SHRUNK, *shape, *names, *never, "--config.total_steps=1"]


def test_a_mistake_in_options_on_the_command_line(run):
    assert "NpyClips takes no evry: it takes ['every', 'path']" in fail(*run, "--config.data.options={'evry': 5}")


@pytest.mark.slow
def test_scripts_train_on_a_class_and_evaluate_on_it(run, tmp_path):
    assert "8 clips" in succeed(*run, "--config.data.options={'every': 5}")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["options"] == {"every": 5}
    evaluation = [f"--checkpoint={tmp_path}/run", f"--output={tmp_path}/report", "--tasks=predict", "--metrics=ssim"]
    assert "set trust_data" in fail("evaluate.py", *evaluation)
    succeed("evaluate.py", *evaluation, "--steps=2", "--num_clips=2", "--trust_data")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["protocol"]["clips"] == 2 and report["tasks"]["predict"]["copy nearest"]["PSNR"] > 40
