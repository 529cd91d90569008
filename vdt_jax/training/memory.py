"""Memory of training on a CPU."""

import ctypes
import importlib.util
import platform
from importlib import metadata

import jax

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt(3), of glibc's malloc.h


def keep_freed_memory() -> None:
    """On a CPU, keeps the memory of a step for the next one; call it before jax finds its devices.

    XLA allocates the temporaries of a program when it runs, and frees them at its end. glibc returns large blocks to
    the operating system, which must zero every page again in the next step: with configs/moving_digits.py a fifth of
    the time of a step (docs/benchmarks.md). This function keeps glibc's heaps from shrinking and turns off asynchronous
    dispatch, so that programs run in the calling thread and take their memory from its heap. Compilation runs in other
    threads and so in other heaps: what it leaves behind is not in the way. Where jax may find other devices, or the C
    library is not glibc, nothing changes.
    """
    if finds_only_cpus() and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            libc.mallopt(parameter, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def finds_only_cpus() -> bool:
    """Whether jax was told to use CPUs, or has neither a plugin nor a library of a different device."""
    found = metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    return jax.config.jax_platforms == "cpu" or not found  # pyright: ignore[reportAttributeAccessIssue]
