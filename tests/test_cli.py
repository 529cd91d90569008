"""What the scripts share: the compilation cache, flags that are given twice."""

import os
import re
import signal
import subprocess
import sys

import jax
import pytest
from absl import flags
from helpers.scripts import ROOT, environment
from ml_collections import config_flags

from vdt_jax import cli


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"XDG_CACHE_HOME": "{tmp}/cache"}, "cache"),
        ({"HOME": "{tmp}/home"}, "home/.cache"),
        ({"HOME": "/dev/null", "XDG_CACHE_HOME": "{tmp}/cache"}, "cache"),
        ({"HOME": "/dev/null"}, None),
        ({"HOME": "{tmp}", "XDG_CACHE_HOME": "/dev/null"}, None),
    ],
)
def test_the_compilation_cache_is_optional(variables, folder, tmp_path, monkeypatch, capsys):
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    chosen = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    cli.quiet_start()
    if folder is None:
        line = r"no compilation cache \(/dev/null.* Not a directory\): set XDG_CACHE_HOME to a writable folder\n"
        assert "jax_compilation_cache_dir" not in chosen and re.fullmatch(line, capsys.readouterr().err)
    else:
        assert chosen["jax_compilation_cache_dir"] == str(tmp_path / folder / "vdt_jax" / "xla")
        assert (tmp_path / folder / "vdt_jax" / "xla").stat().st_mode & 0o777 == 0o700


SCRIPTS = ("train.py", "sample.py", "evaluate.py", "prepare.py", "convert_torch_ckpt.py", "app.py")


def ends_while_python_imports(folder, signal_number, *lines):
    """(stderr, exit code) of each command; in place of jax a module that hangs, and catches what is raised in it."""
    (folder / "jax.py").write_text(
        "import time\nprint('importing', flush=True)\ntry:\n    time.sleep(60)\nexcept BaseException:\n    pass\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, *line], env=environment, **pipes) for line in lines]
    for process in processes:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal_number)
    return [(process.communicate(timeout=60)[1], process.returncode) for process in processes]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_python_imports(tmp_path):
    lines = [*([str(ROOT / name)] for name in SCRIPTS), ["-m", "vdt_jax"]]
    ends = ends_while_python_imports(tmp_path, signal.SIGINT, *lines)
    assert ends == [(b"stopped: interrupted\n", 130)] * len(lines)


def test_a_run_that_is_preempted_while_python_imports_asks_to_be_started_again(tmp_path):
    ((message, code),) = ends_while_python_imports(tmp_path, signal.SIGTERM, [str(ROOT / "train.py")])
    assert (message, code) == (b"stopped: interrupted: re-run the command to resume\n", 75)


@pytest.mark.parametrize("arguments", [["prepare.py", "--help"], ["sample.py", "--dry_run", "--steps=2"]])
def test_output_that_nobody_reads_ends_a_script_without_a_word(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment(), timeout=100, check=False)
    os.close(writing)
    assert (done.stderr, done.returncode) == (b"", 1)


def test_the_later_value_of_a_key_counts(monkeypatch):
    values, key = flags.FlagValues(), "--config.model.input_size"
    line = ["x", f"--config={ROOT}/configs/moving_digits.py", f"{key}=(64,64)", "--config.seed=1", f"{key}=(8,8)"]
    line += ["--input=a", "--input=b"]  # both count
    line += ["--config.batch_size", "2", "--config.batch_size", "4"]
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    flags.DEFINE_multi_string("input", None, "", flag_values=values)
    monkeypatch.setattr("sys.argv", line)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    assert cli._parse_flags(line) == ["x"]
    assert values.config.model.input_size == (8, 8) and values.config.seed == 1
    assert values.input == ["a", "b"] and values.config.batch_size == 4
