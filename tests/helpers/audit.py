"""Watches what Python does while a file is read: anything but opening files to read is remembered."""

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator

# What reading does: open the file, map it, look at the file system, keep the books.
_ALLOWED = {
    "mmap.__new__",
    "mmap.madvise",
    "os.fspath",
    "os.listdir",
    "os.scandir",
    "os.stat",
    "gc.get_objects",
    "sys._getframe",
    "sys._getframemodulename",
    "object.__getattr__",
    "object.__setattr__",
    "object.__delattr__",
    "marshal.loads",
    "time.sleep",
}
for _codec in ("raw-unicode-escape", "cp437"):  # pickletools and zipfile import them late: now they are there
    codecs.lookup(_codec)
_seen: list[str] = []
_watching = False


def _hook(event: str, arguments: tuple) -> None:
    if not _watching or event in _ALLOWED:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(mode, str) and not set(mode) & set("wax+"):
            return
        if mode is None and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return
        event = f"open {path!r} {mode!r}"
    _seen.append(event)


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Yields the list of events that reading a file must not cause."""
    global _watching
    _seen.clear()
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Inside of `watched`, around work that is not reading."""
    global _watching
    before, _watching = _watching, False
    try:
        yield
    finally:
        _watching = before
