"""Working directories in buckets, gs://...: checkpoints are written there, and the files that grow are copied up."""

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from etils import epath

from vdt_jax.errors import UserError


def open_folder(path: str | os.PathLike) -> epath.Path:
    """A folder on this machine, whole from the root, or in a bucket.

    Raises:
      UserError: a bucket, and nothing is installed that can read one.
    """
    if not in_bucket(path):
        return epath.Path(path).absolute()
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path} is in a bucket: pip install 'vdt_jax[gcs]', or mount it and name the folder")
    from fsspec.config import conf

    # It would keep the listing of a folder, and not see what other hosts write there.
    conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(path)


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path names an object in a bucket."""
    return os.fspath(path).startswith("gs://")


class Mirror:
    """Where the files of a run that grow are written; a context manager.

    That is the working directory. Objects in a bucket cannot grow: then it is a folder of the same name under `runs/`,
    and what is in it is copied to the bucket by `copy`, and at the end.

    Args:
      workdir: of the run.
      copies: False for all processes of a run but one.
      say: takes a line about a copy that failed, which does not end the run.
    """

    def __init__(self, workdir: epath.Path, copies: bool = True, say: Callable[[str], object] = warnings.warn):
        self.folder = Path("runs", os.fspath(workdir).partition("://")[2]) if in_bucket(workdir) else Path(workdir)
        self._bucket = workdir if copies and in_bucket(workdir) else None
        self._say = say
        self._copied: dict[Path, tuple[int, int]] = {}  # size and time of each file when it was copied

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        self.copy()

    def fetch(self, name: str) -> None:
        """Makes the folder; brings a file from the bucket, where a run on another machine has left it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._bucket is not None and (self._bucket / name).exists():
            (self.folder / name).write_bytes((self._bucket / name).read_bytes())

    def copy(self) -> None:
        """Copies what has changed since the last time."""
        if self._bucket is None:
            return
        for path in sorted(self.folder.rglob("*")):
            now = (path.stat().st_size, path.stat().st_mtime_ns)
            if path.is_file() and self._copied.get(path) != now:
                there = self._bucket / path.relative_to(self.folder).as_posix()
                try:
                    there.write_bytes(path.read_bytes())
                except Exception as error:  # of the network, of many kinds; a log is not worth the run
                    self._say(f"WARNING: {path} could not be copied to {there}: {error}")
                else:
                    self._copied[path] = now
