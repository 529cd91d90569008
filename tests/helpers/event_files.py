"""Read TensorBoard's event files: records of a length, its checksum, the event and its checksum."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event


def scalars(workdir: Path) -> dict[str, dict[int, float]]:
    """By name and step, every scalar of a working directory."""
    return _found(workdir, "simple_value")


def pictures(workdir: Path) -> dict[str, dict[int, Any]]:
    """By name and step, every picture of a working directory: its size, and the file as `encoded_image_string`."""
    return _found(workdir, "image")


def _found(workdir: Path, kind: str) -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = {}
    for event in _events(workdir):
        for value in event.summary.value:
            if value.HasField(kind):
                found.setdefault(value.tag, {})[event.step] = getattr(value, kind)
    return found


def _events(workdir: Path) -> Iterator[Event]:
    for path in sorted(workdir.glob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
