"""Where the time of a program goes: a trace of jax.profiler, summed by group of kernels."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax

# The first pattern that a kernel's name matches gives its group.
GROUPS = (
    ("cuDNN attention", r"fmha|flash|cudnn"),
    ("collectives", r"nccl|all_gather|all_reduce"),
    ("matrix products", r"gemm|cutlass|xmma|nvjet|cublas|splitkreduce|ynn|\bdot|convolution"),
    ("softmax", r"softmax|exponential"),
    ("random numbers", r"threefry|rng|shift_right|xor"),
    ("transposes and copies", r"transpose|copy|memcpy|bitcast|concatenate"),
    ("slices of what a scan keeps", r"dynamic"),
    ("filling with zeros", r"memset|broadcast"),
    ("reductions", r"reduce"),
    ("other fusions", r"fusion|wrapped|loop|input"),
)
_NOT_KERNELS = re.compile(r"::|^end: |^\$|^(while|call|conditional)\b")  # of a CPU's trace; the last contain others


def kernel_seconds(call: Callable[[], object]) -> Counter[str]:
    """Seconds of each kernel during a call that blocks until its result is there, by name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        device = [plane for plane in planes if plane.name.startswith("/device:")]
        seconds: Counter[str] = Counter()
        for plane in device or planes:
            for line in plane.lines:
                if line.name.startswith("Stream" if device else "tf_XLA"):
                    for event in line.events:
                        if not _NOT_KERNELS.search(event.name):
                            seconds[event.name] += event.duration_ns / 1e9
    return seconds


def by_group(seconds: Counter[str]) -> list[tuple[str, float]]:
    """Seconds of each of GROUPS and of the rest, the longest first."""
    groups: Counter[str] = Counter()
    for name, taken in seconds.items():
        group = next((group for group, pattern in GROUPS if re.search(pattern, name.lower())), "the rest")
        groups[group] += taken
    return groups.most_common()
