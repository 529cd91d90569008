"""Training on a CPU does not return the memory of a step to the system."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vdt_jax.training import memory
from vdt_jax.training.memory import finds_only_cpus

SCRIPT = """
import resource, sys
import jax, jax.numpy as jnp
from vdt_jax.training.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
step = jax.jit(lambda x: jnp.sort(jnp.sin(x)[::-1]).sum())  # a temporary of 8 MiB
x = jnp.ones(2**21)
for _ in range(30):  # any thread may take the memory, and keeps what it took first
    jax.block_until_ready(step(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    jax.block_until_ready(step(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of(which):
    command = [sys.executable, "-c", SCRIPT, which]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_takes_no_new_memory():
    assert faults_of("kept") < 10_000 < 20_000 < faults_of("returned")


def test_other_devices_are_known_by_their_plugins(monkeypatch):
    assert finds_only_cpus()  # the tests tell jax so
    monkeypatch.setattr(memory, "jax", SimpleNamespace(config=SimpleNamespace(jax_platforms=None)))
    monkeypatch.setattr(memory.metadata, "entry_points", lambda group: [group])
    assert not finds_only_cpus()
