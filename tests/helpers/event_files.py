"""Read TensorBoard's event files: records of a length, its checksum, the event and its checksum."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def scalars(workdir: Path) -> dict[str, dict[int, float]]:
    """By name and step, every scalar of a working directory."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(workdir.glob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            place += 16 + length
    return found
