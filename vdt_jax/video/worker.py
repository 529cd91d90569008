"""A process that decodes for another one: `python -m vdt_jax.video.worker FD MEGABYTES CPU_SECONDS SECONDS`.

It reads requests from the socket FD and answers each: `probe` with the VideoInfo of a video, `clip` with its frames.
Messages are JSON and raw bytes, so that a decoder that a hostile file has taken over cannot make its parent run
anything. The operating system limits its memory to MEGABYTES, and ends it where a request takes more than CPU_SECONDS
of CPU time (SIGPROF) or SECONDS on the clock (SIGALRM).
"""

import contextlib
import errno
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.video import Crop, fit_frame, probe, read_numbers

READY, DONE, REFUSED, FAILED = b"+", b"=", b"-", b"?"  # REFUSED: the file's content; FAILED: memory, disk, permission


def answer(request: dict[str, Any], content: bytes) -> bytes:
    """The answer to a request, or a UserError; `content` is the file itself where the request has no path."""
    with _file(request["path"], content) as path:
        if request["what"] == "probe":
            return json.dumps(probe(path).to_json()).encode()
        numbers = request["numbers"]
        height, width, channels = request["size"]
        crop = Crop(*request["crop"])
        # A short video is continued with its last frame: numbers repeat there.
        distinct = sorted(set(numbers))
        pts = request["pts"] and sorted(set(request["pts"]))
        frames = [fit_frame(frame, (height, width), channels, crop) for frame in read_numbers(path, distinct, pts)]
        if len(frames) < len(distinct):
            raise UserError(f"has no frame {distinct[len(frames)]}")
        clip = np.stack([frames[distinct.index(number)] for number in numbers])
        return np.ascontiguousarray(clip[:, :, ::-1] if request["flip"] else clip).tobytes()


@contextlib.contextmanager
def _file(path: str | None, content: bytes) -> Iterator[str]:
    if path is not None:
        yield path
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            yield file.name
        except UserError as error:
            raise UserError(str(error).replace(file.name, "its video")) from None


def serve(connection: Connection, cpu_seconds: float, seconds: float) -> None:
    """Answers requests until the other side closes the connection."""
    connection.send_bytes(READY)
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            content = connection.recv_bytes()
        except EOFError:
            return
        # The default action of both signals ends the process, also while a decoder holds the interpreter's lock.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            reply = DONE + answer(request, content)
        except (UserError, MemoryError) as error:
            code = FAILED if _is_passing(error) else REFUSED
            reply = code + (str(error) or "out of memory").encode(errors="replace")
        except Exception as error:  # a mistake of ours: it is named, and the next file is tried
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = f"a mistake of vdt_jax, please report it: {error!r} in {frame.filename}:{frame.lineno}"
            reply = FAILED + text.encode(errors="replace")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(reply)


def _is_passing(error: Exception) -> bool:
    """Whether memory, permissions or a disk failed, rather than the file's content."""
    cause = (error.__context__ or error) if isinstance(error, UserError) else error
    number = getattr(cause, "errno", None)  # FFmpeg's own codes are not the system's, except for EINVAL
    return isinstance(cause, MemoryError) or (number in errno.errorcode and number != errno.EINVAL)


def main() -> None:
    """Sets the limits, and serves."""
    descriptor, megabytes = map(int, sys.argv[1:3])
    cpu_seconds, seconds = map(float, sys.argv[3:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the socket
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(1)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(Connection(descriptor), cpu_seconds, seconds)


if __name__ == "__main__":
    main()
