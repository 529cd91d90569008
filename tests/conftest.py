"""Eight fake CPU devices, exact float32, no broadcasting between ranks, checked shapes, a compilation cache."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

# Before anything imports vdt_jax: every call of these modules checks the shapes and types of its annotations.
install_import_hook(["vdt_jax.diffusion", "vdt_jax.models", "vdt_jax.inference.functional"], "beartype.beartype")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(sys.prefix) / "jax-cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# The indexes of folders that are gone when the tests end.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="vdt_jax_")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Long files first, so that no worker is left alone with one of them (`--no-loadscope-reorder`)."""
    long = ("tests/scripts/", "tests/training/", "tests/inference/", "tests/evaluation/")
    items.sort(key=lambda item: not item.nodeid.startswith(long))


@pytest.fixture
def ctrl_c():
    """Lets processes of the test receive SIGINT, which the children of a background job ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
