"""What gpu_check calls an error, on rows that were compiled before; nothing is compiled here."""

import json

import pytest
from helpers.scripts import fail, script

CLEAN = {"wrong": [], "collectives": {"all-reduce": 4}, "peak GiB": 60.0, "reduced GB": {"f32": 3.4}}
ROW = {"name": "fsdp", "program": "train", "model": "VDT-L/2", "batch": 8, "devices": 8, "fsdp": 8}
ROW |= {"remat": "matmuls", "grad_accum": 1, "attention": "cudnn", "unroll": 1, "most": 74.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"peak GiB": 74.1}, "fsdp: 74.1 GiB, and at most 74.0 were to be taken"),
        ({"collectives": {"all-to-all": 1}}, "fsdp: unexpected all-to-all"),
        ({"reduced GB": {"bf16": 1.7}}, "fsdp: 1.7 GB are summed over devices in bfloat16"),
        ({"gathers": 3.0}, "fsdp: the parameters of blocks are gathered 3.0 times, and should be twice"),
        ({"wrong": ["the state is not donated"]}, "fsdp: the state is not donated"),
    ],
)
def test_errors_of_a_row(change, message, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | CLEAN | change) + "\n")
    done = script("benchmarks/gpu_check.py", "--rows=fsdp", f"--output={tmp_path}/rows.jsonl")
    assert done.returncode == bool(message), done.stderr[-2000:]
    assert message in done.stderr


def test_an_unknown_row():
    assert fail("benchmarks/gpu_check.py", "--rows=L/3").startswith("error: rows must be among S/2, S/2 unrolled, ")
