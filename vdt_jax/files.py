"""Files and folders, local or in a bucket (gs://...): atomic writes, hashes, comparing settings, mirroring a run."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from vdt_jax.errors import UserError

UNFINISHED = ".unfinished."  # the names of files that `atomic` has not finished begin so
_SHOWN = 5  # settings of an error message
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[epath.Path]:
    """A path to write in place of `path`: renamed to it at the end, deleted after an exception.

    It is in the same folder and has the same suffix. Several hosts, processes and threads may write a file at once:
    the last one to finish wins.
    """
    path = epath.Path(path)
    writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    unfinished = path.parent / f"{UNFINISHED}{writer}.{path.name}"
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def atomic_write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file atomically: a reader finds the old content or the new one, and never a part."""
    with atomic(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any], ignore: Collection[str] = ()) -> str:
    """Which settings differ, for an error message: `a=1 (now 2), b.c=None (now x)`; "" where none does.

    A missing setting is None, and those of a nested mapping are `outer.inner`.

    Args:
      theirs: the settings of earlier work, as JSON gives them back.
      ours: those of now; compared as JSON would give them back.
      ignore: settings that may differ, with all that is nested in them.
    """
    before, now = _flatten(theirs), _flatten(json.loads(json.dumps(ours)))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    names = [name for name in names if not f"{name}.".startswith(tuple(f"{free}." for free in ignore))]
    shown = [f"{name}={before.get(name)} (now {now.get(name)})" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} more")
    return ", ".join(shown)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in tree.items():
        leaves |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves


def open_folder(path: str | os.PathLike) -> epath.Path:
    """A folder on this machine, as an absolute path, or in a bucket.

    Raises:
      UserError: a bucket, and gcsfs is not installed.
    """
    if not in_bucket(path):
        return epath.Path(path).absolute()
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path} is in a bucket: pip install gcsfs, or mount it and name the folder")
    from fsspec.config import conf

    # A cached listing would miss what other hosts write.
    conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(path)


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path names an object in a bucket."""
    return os.fspath(path).startswith("gs://")


class Mirror:
    """The local folder for the files of a run that grow; a context manager.

    It is the working directory. Objects in a bucket cannot grow: for a bucket it is a folder of the same name under
    `runs/`, whose files are copied to the bucket by `copy` and at the end.

    Args:
      workdir: of the run.
      copies: False for all processes of a run but one.
    """

    def __init__(self, workdir: epath.Path, copies: bool = True):
        self.folder = Path("runs", os.fspath(workdir).partition("://")[2]) if in_bucket(workdir) else Path(workdir)
        self._bucket = workdir if copies and in_bucket(workdir) else None
        self._copied: dict[Path, tuple[int, int]] = {}  # size and time of each file when it was copied

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        self.copy()

    def fetch(self, name: str) -> None:
        """Makes the folder, and downloads a file of the run from the bucket, if it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._bucket is not None and (self._bucket / name).exists():
            (self.folder / name).write_bytes((self._bucket / name).read_bytes())

    def copy(self) -> None:
        """Uploads the files that changed since the last time; a failure is logged and does not end the run."""
        if self._bucket is None:
            return
        for path in sorted(self.folder.rglob("*")):
            now = (path.stat().st_size, path.stat().st_mtime_ns)
            if path.is_file() and self._copied.get(path) != now:
                there = self._bucket / path.relative_to(self.folder).as_posix()
                try:
                    there.write_bytes(path.read_bytes())
                except Exception as error:  # of the network, of many kinds
                    logger.warning("%s could not be copied to %s: %s", path, there, error)
                else:
                    self._copied[path] = now
