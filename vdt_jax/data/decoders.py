"""Decoding in processes of its own, with a limit of time and memory for each file.

FFmpeg and Pillow read what strangers wrote: a file may hang them, crash them or ask for all memory. The processes are
as many as threads ask at once, are started when they are needed, and end with their parent.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.data.clips import PassingFailure, SlowClip, UnreadableClip
from vdt_jax.video import CENTRE, Crop, VideoInfo
from vdt_jax.video.worker import DONE, REFUSED

_PATIENCE = 11  # times the time limit on the clock, for a process that others keep waiting
_LOOKS = 40  # at what a process is doing, in its time limit
_START_SECONDS = 120  # for Python to start on a machine that is busy
_MODULE = (sys.executable, "-m", "vdt_jax.video.worker")


class Decoders:
    """Decodes in other processes; may be called from many threads.

    Args:
      time_limit: seconds that a file may take for one clip; those in which others have the processor do not count, up
        to ten times as many.
      memory_limit: megabytes that a process may take.
      command: what runs `vdt_jax.video.worker`.
    """

    def __init__(self, time_limit: float = 10.0, memory_limit: int = 3000, command: Sequence[str] = _MODULE):
        self._time_limit, self._memory_limit, self._command = time_limit, memory_limit, command
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def probe(self, path: str | None, content: bytes = b"") -> VideoInfo:
        """What is known of a video without decoding it.

        Args:
          path: a file or a folder of frames; None for the file in `content`.

        Raises:
          UnreadableClip: why it cannot be read; PassingFailure where that is not the file's content.
        """
        return VideoInfo.from_json(json.loads(self._ask({"what": "probe", "path": path}, content)))

    def clip(
        self,
        path: str | None,
        numbers: Sequence[int],
        info: VideoInfo,
        size: tuple[int, int, int],
        crop: Crop = CENTRE,
        flip: bool = False,
        content: bytes = b"",
    ) -> np.ndarray:
        """Frames of a video by number, cropped and resized: (len(numbers), *size) uint8.

        Args:
          path, content: as for `probe`.
          numbers: rising; a number may be repeated.
          info: what `probe` said of it.
          size: (H, W, C), C = 1 for grey.
          crop: which part of the frames.
          flip: left to right.

        Raises:
          UnreadableClip: why it cannot be read.
        """
        pts = None if info.pts is None else [info.pts[number] for number in numbers]
        request = {"what": "clip", "path": path, "numbers": list(numbers), "pts": pts, "size": size}
        data = self._ask(request | {"crop": crop, "flip": flip}, content)
        return np.frombuffer(data, np.uint8).reshape(len(numbers), *size)

    def _ask(self, request: dict[str, Any], content: bytes) -> bytes:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or _Worker(self._command, self._memory_limit, self._time_limit)
        try:
            reply = worker.ask(request, content, self._time_limit)
        except UnreadableClip:
            worker.kill()
            raise
        with self._lock:
            self._idle.append(worker)
        if reply[:1] != DONE:
            failure = UnreadableClip if reply[:1] == REFUSED else PassingFailure
            raise failure(reply[1:].decode(errors="replace"))
        return reply[1:]


class _Worker:
    """One process and the socket to it."""

    def __init__(self, command: Sequence[str], memory_limit: int, time_limit: float):
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with theirs:
            # The process ends itself where its parent, which would kill it, is gone.
            patience = int(_PATIENCE * time_limit) + 5
            arguments = [str(theirs.fileno()), str(memory_limit), str(patience)]
            self._process = subprocess.Popen(
                [*command, *arguments],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        weakref.finalize(self, self._connection.close)
        if not self._connection.poll(_START_SECONDS) or not self._receive():
            self.kill()
            raise RuntimeError(f"the decoder {' '.join(command)} does not start")

    def ask(self, request: dict[str, Any], content: bytes, time_limit: float) -> bytes:
        """The answer to a request; raises UnreadableClip where there is none, and the process is of no use then."""
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            self._connection.send_bytes(content)
            answered = self._wait(time_limit)
        except OSError:
            answered = True
        if not answered:
            raise SlowClip(f"takes more than {time_limit:g} s to decode")
        reply = self._receive()
        if not reply:
            raise PassingFailure(f"the decoder died of it ({self._last_words()})")
        return reply

    def _wait(self, time_limit: float) -> bool:
        """Whether there is an answer in time: what a process waits for a processor does not count.

        A process none of whose threads wants a processor hangs, or waits for a disk: the clock counts. One that wants
        to compute is charged with the processor time that it gained, shared among the threads that want to: on a
        machine of its own they would have had it at once.
        """
        last, used = time.monotonic(), self._cpu_seconds()
        end, left = last + _PATIENCE * time_limit, time_limit * (1 - 1 / _LOOKS)
        while left > 0 and last < end:
            if self._connection.poll(time_limit / _LOOKS):
                return True
            now, cpu, running = time.monotonic(), self._cpu_seconds(), self._running_threads()
            left -= min(now - last, (cpu - used) / running) if running else now - last
            last, used = now, cpu
        return False

    def _running_threads(self) -> int:
        """How many of its threads have a processor or wait for one; 0 where there is no /proc."""
        states = (_status(path)[:1] for path in Path(f"/proc/{self._process.pid}/task").glob("*/stat"))
        return sum(state == ["R"] for state in states)

    def _cpu_seconds(self) -> float:
        """Processor time of all its threads; 0 where there is no /proc."""
        fields = _status(Path(f"/proc/{self._process.pid}/stat"))
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0

    def _receive(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            return b""

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.poll()
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """Ends the process, without waiting for one that a dead disk holds."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._connection.close()


def _status(path: Path) -> list[str]:
    """The fields of a stat file of /proc from the state on; none where it is gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []
