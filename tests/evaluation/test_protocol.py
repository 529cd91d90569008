"""Options, presets and the protocol of an evaluation."""

import json

import pytest
from helpers.tiny_evaluation import PROTOCOL

from vdt_jax.errors import UserError
from vdt_jax.evaluation.options import EvaluateOptions, apply_preset
from vdt_jax.evaluation.presets import PRESETS
from vdt_jax.evaluation.protocol import chosen_clips, keep_protocol, protocol_text


def test_the_protocol_has_a_line_for_each_choice_and_is_plain_json():
    lines = protocol_text(PROTOCOL).splitlines()
    assert len(lines) == len(PROTOCOL)
    assert "first clip: 3" in lines and "metrics: psnr, ssim, motion" in lines and "vae: none" in lines
    assert json.loads(json.dumps(PROTOCOL)) == PROTOCOL


def test_a_folder_belongs_to_one_protocol(tmp_path):
    path = tmp_path / "protocol.json"
    keep_protocol(PROTOCOL, path)
    keep_protocol(PROTOCOL | {"tasks": ("predict",)}, path)  # as JSON the same
    other = PROTOCOL | {"steps": 3, "data": {"name": "moving_digits", "num_digits": 2}}
    with pytest.raises(UserError, match=r"with data.num_digits=1 \(now 2\), steps=2 \(now 3\): choose another output"):
        keep_protocol(other, path)
    assert json.loads(path.read_text()) == PROTOCOL


def test_presets_fill_what_is_not_given():
    options, text = apply_preset(EvaluateOptions(output="out", preset="latte-sky"), (16, 256, 256, 3))
    assert (options.stride, options.tasks, options.split) == (3, ("unconditional",), "train")
    assert (options.num_clips, options.every, options.steps, options.samples_per_clip) == (2048, None, 50, 1)
    assert text == f"latte-sky ({PRESETS['latte-sky'].note})"
    given = EvaluateOptions(output="out", preset="mcvd-smmnist", steps=100, num_clips=8, tasks=("predict", "backward"))
    options, text = apply_preset(given, (15, 64, 64, 1))
    assert (options.num_clips, options.tasks, options.num_given) == (8, ("predict", "backward"), 5)
    assert options.ssim_border == 5
    assert text is not None and text.startswith("mcvd-smmnist but tasks=predict,backward num_clips=8 (MCVD's code")
    options, text = apply_preset(EvaluateOptions(output="out", fvd_frames="generated"), (16, 32, 32, 1))
    assert text is None and (options.fvd_frames, options.num_clips, options.every) == ("generated", 16, 1)


def test_presets_are_for_clips_of_their_size():
    with pytest.raises(UserError, match=r"measures 15 frames of 64x64, this model generates 16 of 32x32"):
        apply_preset(EvaluateOptions(output="out", preset="mcvd-smmnist"), (16, 32, 32, 1))
    with pytest.raises(UserError, match=r"preset must be one of .*vdt-cityscapes.*, got 'vdt-citiscapes'"):
        EvaluateOptions(output="out", preset="vdt-citiscapes")
    assert all(preset.note for preset in PRESETS.values())


def test_which_clips(caplog):
    assert list(chosen_clips(10, 3)) == [0, 1, 2] and list(chosen_clips(10, 99, 8)) == [8, 9]
    assert list(chosen_clips(10, 3, 1, 4)) == [1, 5, 9] and list(chosen_clips(10, 3, 2, 5)) == [2, 7]
    assert list(chosen_clips(10, 3, every=None)) == [0, 3, 6] and list(chosen_clips(10, 4, 7, None)) == [7, 8, 9]
    assert len(caplog.records) == 3  # not where there are enough
    assert "2 clips are measured, not num_clips=99: there are 10 in total (first_clip=8, every=1)" in caplog.text
    with pytest.raises(UserError, match="first_clip must be < 10, the clips of the split, got 10"):
        chosen_clips(10, 1, 10)
