"""Clips of ViZDoom: the random player without the engine; with it equal seeds, and what prepare.py writes."""

import sys

import numpy as np
import pytest

from vdt_jax.data import make_source
from vdt_jax.data.doom import RandomPlayer, actions_of
from vdt_jax.errors import UserError
from vdt_jax.latents.prepare import PrepareOptions, prepare

ACTIONS = actions_of(["TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD", "ATTACK"])


def played(seed, positions):
    player = RandomPlayer(ACTIONS, np.random.default_rng(seed))
    return [player.act(position) for position in positions]


def test_actions_are_combinations_of_the_buttons_that_a_scenario_has():
    assert len(set(ACTIONS)) == 12 and ("MOVE_FORWARD", "TURN_LEFT", "ATTACK") in ACTIONS
    assert actions_of(["MOVE_LEFT", "MOVE_RIGHT"]) == [(), ("MOVE_LEFT",), ("MOVE_RIGHT",)]
    with_both = actions_of(["MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT"])
    assert with_both == [(), ("TURN_LEFT",), ("TURN_RIGHT",)]


def test_a_player_repeats_its_actions_and_mostly_walks():
    walk = [(20.0 * step, 0.0) for step in range(2000)]
    chosen = played(3, walk)
    assert chosen == played(3, walk) != played(4, walk)
    changes = np.flatnonzero(np.diff(chosen)) + 1
    assert np.diff(changes).min() >= 2
    forward = np.mean(["MOVE_FORWARD" in ACTIONS[action] for action in chosen])
    assert 0.7 < forward < 0.9


def test_a_player_that_is_blocked_turns_on_the_spot():
    chosen = [ACTIONS[action] for action in played(0, [(0.0, 0.0)] * 200)]
    first = next(n for n, action in enumerate(chosen) if "MOVE_FORWARD" in action)
    turn = chosen[first + 1 : first + 9]
    assert len(set(turn)) == 1 and "MOVE_FORWARD" not in turn[0]
    assert {"TURN_LEFT", "TURN_RIGHT"} & set(turn[0])


def test_mistakes(monkeypatch):
    for name, shape, message in [
        ("vizdoom:doom", (4, 16, 16, 3), "no scenario 'doom' of vizdoom: choose from basic, deadly_corridor, .*cover"),
        ("vizdoom", (4, 16, 16, 3), "no scenario '' of vizdoom: choose from basic"),
        ("vizdoom:basic", (4, 16, 16, 1), "in_channels must be 3 for clips of vizdoom, got 1"),
    ]:
        with pytest.raises(UserError, match=message):
            make_source({"name": name}, shape, "train")
    with pytest.raises(UserError, match="num_clips must be >= 1, got 0"):
        make_source({"name": "vizdoom:basic", "options": {"num_clips": 0}}, (4, 16, 16, 3), "train")
    with pytest.raises(UserError, match=r"data\.stride must be >= 1, got 0"):
        make_source({"name": "vizdoom:basic", "stride": 0}, (4, 16, 16, 3), "train")
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(UserError, match=r"vizdoom:basic needs the package vizdoom: pip install -e '\.\[vizdoom\]' -c"):
        make_source({"name": "vizdoom:basic"}, (4, 16, 16, 3), "train")


def test_the_same_seed_gives_the_same_clip():
    pytest.importorskip("vizdoom")
    shape = (4, 24, 32, 3)
    source, other = (make_source({"name": "vizdoom:health_gathering"}, shape, "train") for _ in range(2))
    clips = [source.clip(number) for number in (0, 1, 2)]
    again = [other.clip(number) for number in (2, 0)]  # in another engine, after another clip
    for clip, same in ((clips[2], again[0]), (clips[0], again[1])):
        np.testing.assert_array_equal(clip["video"], same["video"])
        np.testing.assert_array_equal(clip["actions"], same["actions"])
    assert clips[0]["video"].shape == shape and clips[0]["video"].dtype == np.uint8
    assert (clips[0]["video"] != clips[1]["video"]).any()
    assert (clips[0]["video"][0] != clips[0]["video"][3]).any()
    held_out = make_source({"name": "vizdoom:health_gathering"}, shape, "held_out")
    assert (held_out.clip(0)["video"] != clips[0]["video"]).any()


def test_a_stride_leaves_frames_out():
    pytest.importorskip("vizdoom")
    every = make_source({"name": "vizdoom:my_way_home"}, (7, 24, 32, 3), "train").clip(5)
    third = make_source({"name": "vizdoom:my_way_home", "stride": 3}, (3, 24, 32, 3), "train").clip(5)
    for name in ("video", "actions"):
        np.testing.assert_array_equal(third[name], every[name][::3])
    assert (every["video"][0] != every["video"][1]).any()


def test_a_dataset_of_clips_and_actions_is_written_and_read(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)  # the engine makes a folder in the current one
    options = dict(size=(24, 32), num_frames=4, num_clips=5, held_out=0.2)
    prepare(PrepareOptions(input="vizdoom:basic", output=str(tmp_path / "clips"), **options))
    live = make_source({"name": "vizdoom:basic"}, (4, 24, 32, 3), "train")
    train, held_out = (
        make_source({"name": f"tfds:{tmp_path / 'clips'}"}, (4, 24, 32, 3), split) for split in ("train", "held_out")
    )
    assert (len(train), len(held_out)) == (4, 1)
    np.testing.assert_array_equal(train.clip(3)["video"], live.clip(3)["video"])

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(tmp_path / "clips" / "video_clips" / "1.0.0")
    record = builder.as_data_source("train")[3]
    np.testing.assert_array_equal(record["actions"], live.clip(3)["actions"])
    assert builder.info.features["actions"].feature.names == live.actions


def test_options_of_videos_are_refused(tmp_path):
    with pytest.raises(UserError, match="fps is for videos, not for clips of vizdoom: omit it"):
        prepare(PrepareOptions(input="vizdoom:basic", output=str(tmp_path / "clips"), fps=10.0))


def test_an_engine_that_does_not_start(monkeypatch):
    vizdoom = pytest.importorskip("vizdoom")
    game = vizdoom.DoomGame()
    game.set_vizdoom_path("/nowhere")
    source = make_source({"name": "vizdoom:basic"}, (4, 16, 16, 3), "train")
    monkeypatch.setattr(source, "_configured", lambda: game)
    with pytest.raises(UserError, match=r'engine of vizdoom:basic does not start or ended \(File "/nowhere"'):
        source.clip(0)
