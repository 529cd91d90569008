"""Files and folders, local or in a bucket (gs://...): atomic writes, a lock, hashes, settings, mirroring a run."""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from etils import epath

from vdt_jax.errors import UserError

UNFINISHED = ".unfinished."  # the names of files that `atomic` has not finished begin so
LOCK = "run.lock"
# What the system refuses whatever the program does: a full disk, a quota, a permission, a path of the wrong kind.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
REFUSALS |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_TRIES = 100  # at a lock whose owner ends just then
_SHOWN = 5  # settings of an error message
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Around writing an output: UserError where it fails, on a full disk or without a permission.

    What is read meanwhile does not count: an error that names a file elsewhere passes.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore and array_record quote the system's text
        if isinstance(error, OSError) and _is_elsewhere(error.filename, path):
            raise
        reason = next((text for text in map(os.strerror, REFUSALS) if text in str(error)), None)
        if reason is None and not isinstance(error, OSError):
            raise
        reason = reason or getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written ({reason}): free some space, or choose another path") from None


def _is_elsewhere(name: Any, path: str | os.PathLike) -> bool:
    """Whether an error names a file that is neither an output, nor below or above it, nor an unfinished one."""
    if not isinstance(name, str) or not name or in_bucket(path):
        return False
    named, output = Path(name).absolute(), Path(path).absolute()
    ours = named.name.startswith(UNFINISHED) or output.is_relative_to(named)
    return not ours and not str(named).startswith(str(output))  # also OUTPUT.partial


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[epath.Path]:
    """A path to write in place of `path`: renamed to it at the end, deleted after an exception.

    It is in the same folder, which is made, and has the same suffix. Several hosts, processes and threads may write a
    file at once: the last one to finish wins.

    Raises:
      UserError: it cannot be written.
    """
    path = epath.Path(path)
    writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    unfinished = path.parent / f"{UNFINISHED}{writer}.{path.name}"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


def atomic_write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file atomically: a reader finds the old content or the new one, and never a part."""
    with atomic(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def cache_folder(name: str) -> Path:
    """A folder of this user alone, for what can be made again: in XDG_CACHE_HOME, or in ~/.cache.

    Raises:
      OSError: it cannot be written, or the user has no home.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(errno.ENOENT, str(error)) from None
    folder = cache / "vdt_jax" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder


@contextlib.contextmanager
def held(folder: epath.Path) -> Iterator[None]:
    """Makes a folder and holds its lock, which one process has at a time; the kernel releases it when the process ends.

    POSIX locks also hold between hosts, on NFS with a lock service. Where there are none, a warning says so. At the end
    the folder is removed if it is empty.

    Raises:
      UserError: another process holds it.
    """
    if in_bucket(folder):
        logger.warning(f"{folder} cannot be locked in a bucket: start no other run on it")
        yield
        return
    path = Path(folder) / LOCK
    with contextlib.ExitStack() as stack:
        with writing(folder):
            file = stack.enter_context(_locked(path))
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held
                path.parent.rmdir()


def _locked(path: Path) -> TextIO:
    """The locked file of a path. It and its folder are made again where an owner that ends just then removes them."""
    for left in reversed(range(_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
            try:
                if _lock(file, path):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()
        except (FileNotFoundError, FileExistsError):
            if not left:
                raise
    raise UserError(f"{path.parent} is in use by processes that start and end: wait, or choose another --workdir")


def _lock(file: TextIO, path: Path) -> bool:
    """Locks an open file; False where it is no longer the one of that path."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them depends on the file system
        owner = path.read_text().strip() or "another process"
        raise UserError(f"{path.parent} is in use by {owner}: wait for its end, or choose another --workdir") from None
    except OSError as error:
        logger.warning(f"{path.parent} cannot be locked ({error.strerror}): start no other run on it")
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def differing(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], ignore: Collection[str] = (), now: str = "now"
) -> str:
    """Which settings differ, for an error message: `a=1 (now 2), b.c=None (now x)`; "" where none does.

    A missing setting is None; `now` names the second value. `theirs` are earlier ones, as JSON gives them back;
    all that is nested in one of `ignore` may differ.
    """
    first, second = _flatten(theirs), _flatten(json.loads(json.dumps(ours)))
    names = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    names = [name for name in names if not f"{name}.".startswith(tuple(f"{free}." for free in ignore))]
    shown = [f"{name}={first.get(name)} ({now} {second.get(name)})" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} more")
    return ", ".join(shown)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in tree.items():
        leaves |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves


def open_folder(path: str | os.PathLike) -> epath.Path:
    """A folder on this machine, as an absolute path, or in a bucket. UserError: gcsfs is not installed."""
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
    `runs/`, whose files are copied to the bucket by `copy` and at the end; `copies` is False for all processes but one.
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
            there = self._bucket / path.relative_to(self.folder).as_posix()
            try:
                if path.is_file():
                    now = (path.stat().st_size, path.stat().st_mtime_ns)
                    if self._copied.get(path) != now:
                        there.write_bytes(path.read_bytes())
                        self._copied[path] = now
            except Exception as error:  # of the network, or of a file that a tracker removed meanwhile
                logger.warning("%s could not be copied to %s: %s", path, there, error)
