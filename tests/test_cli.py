"""What the scripts share: the compilation cache, flags that are given twice."""

import re

import jax
import pytest
from absl import flags
from helpers.scripts import ROOT
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


def test_the_later_value_of_a_key_counts(monkeypatch):
    values, key = flags.FlagValues(), "--config.model.input_size"
    line = ["x", f"--config={ROOT}/configs/moving_digits.py", f"{key}=(64,64)", "--config.seed=1", f"{key}=(8,8)"]
    line += ["--input=a", "--input=b"]  # both count
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    flags.DEFINE_multi_string("input", None, "", flag_values=values)
    monkeypatch.setattr("sys.argv", line)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    cli._parse_flags(line)
    assert values.config.model.input_size == (8, 8) and values.config.seed == 1
    assert values.input == ["a", "b"]
