"""Timings with their spread, and reports with the date, the hardware and the versions."""

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vdt_jax.progress import table_text


class Timing(NamedTuple):
    """Seconds: the median of `count` calls, and the shortest and the longest."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.4g} s ({self.low:.4g} to {self.high:.4g})"


def timed(*calls: Callable[[], Any], repeats: int) -> list[Timing]:
    """Times functions that block until their result is there, after one warm-up call each.

    They take turns, so that other load on the machine affects all of them.
    """
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [Timing(statistics.median(taken), min(taken), max(taken), repeats) for taken in seconds]


def counted_memory(compiled: Any) -> str:
    """The memory that a compiled program needs, by the compiler's count."""
    count = compiled.memory_analysis()
    total = count.argument_size_in_bytes + count.output_size_in_bytes + count.temp_size_in_bytes
    return f"{(total - count.alias_size_in_bytes) / 2**30:.2f} GiB by the compiler's count"


def environment(*packages: str) -> dict[str, Any]:
    """The date, the hardware and the versions of a measurement."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cpu": f"{os.cpu_count()} cores, {_cpu_name()}",
        "python": platform.python_version(),
    } | {name: metadata.version(name) for name in ("jax", "jaxlib", *packages)}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def report(output: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str] = ()) -> None:
    """Prints the rows as a table, and writes them to `output` as JSON beside the environment."""
    columns = list(rows[0])
    where = environment(*packages)
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    print(table_text(columns, [[str(row[column]) for column in columns] for row in rows]))
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": where, "rows": rows}, indent=2, default=str) + "\n")
    print(f"written: {path}")
