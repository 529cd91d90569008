"""Decoding in separate processes, with a limit of time and memory for each clip.

A corrupt or hostile file may hang FFmpeg and Pillow, crash them or make them ask for all memory. There are as many
processes as threads that decode at once; they start when they are needed, and end with their parent.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.data.clips import PassingFailure, SlowClip, UnreadableClip
from vdt_jax.video import CENTRE, Crop, VideoInfo
from vdt_jax.video.worker import DONE, REFUSED

_PATIENCE = 11  # time limits on the clock until a process is ended, which on a busy machine gets little CPU time
_IDLE = 1e-3  # share of a processor: a process that hangs uses less, one that competes for the processor more
_START_SECONDS = 120  # for Python to start on a busy machine
_MODULE = (sys.executable, "-m", "vdt_jax.video.worker")


class Decoders:
    """Decodes in other processes; thread-safe.

    Args:
      time_limit: seconds of CPU time, of all threads together, that a clip may take. A process is also ended if
        it uses no CPU time for `time_limit` seconds on the clock, and in any case after eleven times as long.
      memory_limit: megabytes that a process may take.
      command: what runs `vdt_jax.video.worker`.
    """

    def __init__(self, time_limit: float = 10.0, memory_limit: int = 3000, command: Sequence[str] = _MODULE):
        self._start = functools.partial(_Worker, command, memory_limit, time_limit)
        self._idle: list[_Worker] = []

    def probe(self, path: str | None, content: bytes = b"") -> VideoInfo:
        """Length, size and timestamps of a file or a folder of frames, or of the file in `content`.

        Raises:
          UnreadableClip: it cannot be read, and the message says why; PassingFailure if the cause is not its content.
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
        """Frames of a video by rising number, which may be repeated: (len(numbers), *size) uint8.

        Args:
          path, content: as for `probe`, which gave `info`.
          size: (H, W, C), C = 1 for grey, to which frames are cropped and resized.
          flip: left to right.

        Raises:
          UnreadableClip: as by `probe`.
        """
        pts = None if info.pts is None else [info.pts[number] for number in numbers]
        request = {"what": "clip", "path": path, "numbers": list(numbers), "pts": pts, "size": size}
        data = self._ask(request | {"crop": crop, "flip": flip}, content)
        return np.frombuffer(data, np.uint8).reshape(len(numbers), *size)

    def _ask(self, request: dict[str, Any], content: bytes) -> bytes:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = self._start()
        try:
            reply = worker.ask(request, content)
        except UnreadableClip:
            worker.kill()
            raise
        self._idle.append(worker)
        if reply[:1] != DONE:
            failure = UnreadableClip if reply[:1] == REFUSED else PassingFailure
            raise failure(reply[1:].decode(errors="replace"))
        return reply[1:]


class _Worker:
    """One process and the socket to it."""

    def __init__(self, command: Sequence[str], memory_limit: int, time_limit: float):
        self._time_limit = time_limit
        ours, theirs = socket.socketpair()
        paths = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
        one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment = os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(paths)}
        patience = _PATIENCE * time_limit + 5  # for a process whose parent is gone
        silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        with theirs:
            arguments = map(str, (theirs.fileno(), memory_limit, time_limit, patience))
            self._process = subprocess.Popen(
                [*command, *arguments],
                pass_fds=[theirs.fileno()],
                env=environment,
                process_group=0,  # else Ctrl-C would end the decoder, too, as if a clip had crashed it
                **silent,
            )
        self._connection = Connection(ours.detach())  # closed when it is no longer referenced, which ends the process
        if not self._connection.poll(_START_SECONDS) or not self._receive():
            self.kill()
            raise RuntimeError(f"the decoder {' '.join(command)} does not start")

    def ask(self, request: dict[str, Any], content: bytes) -> bytes:
        """The answer to a request; after an UnreadableClip the process is of no use."""
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            self._connection.send_bytes(content)
            answered = self._wait()
        except OSError:
            answered = True
        if answered and (reply := self._receive()):
            return reply
        code = self._exit_code() if answered else -signal.SIGPROF
        if code == -signal.SIGPROF:
            raise SlowClip(f"takes more than {self._time_limit:g} s to decode")
        ending = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        raise PassingFailure(f"the process that decoded it died ({ending})")

    def _wait(self) -> bool:
        """Whether the process answers or ends in time. Its own timer ends it if it computes for too long.

        A process that hangs is recognised here: it uses hardly any CPU time during `time_limit` seconds.
        """
        for _ in range(_PATIENCE):
            used = self._cpu_seconds()
            if self._connection.poll(self._time_limit):
                return True
            if self._cpu_seconds() - used < self._time_limit * _IDLE:
                return False
        return False

    def _cpu_seconds(self) -> float:
        """CPU time of all its threads; 0 where the system does not tell that of another process."""
        try:
            return time.clock_gettime(~self._process.pid << 3 | 2)  # what clock_getcpuclockid(3) computes on Linux
        except OSError:
            return 0.0

    def _receive(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            return b""

    def _exit_code(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return self._process.poll()

    def kill(self) -> None:
        """Ends the process, without waiting for one that a dead disk holds."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._connection.close()
