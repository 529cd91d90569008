"""The manifest of a finished checkpoint: `manifest.json`, with the size and SHA-256 of every file.

Each host hashes the files that it wrote; the first host merges the hashes and writes the manifest last, atomically. So
a step without a manifest is unfinished, and a step whose files differ from it is damaged. The manifest holds a hash of
itself and its step, so that swapped folders are detected too.
"""

import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from vdt_jax.checkpoints.untrusted import read_json
from vdt_jax.files import UNFINISHED, atomic_write, file_sha256

MANIFEST = "manifest.json"
DAMAGED = "DAMAGED"
_PART = "manifest.part{}.json"
_WAIT = 600.0  # seconds that the first host waits for the others' hashes


def write_manifest(folder: epath.Path, step: int, host: int, num_hosts: int) -> None:
    """Hashes this host's files of a checkpoint; the first host then writes the manifest. Every host must call it."""
    files = {}
    for name in sorted(_files(folder)):
        if _writer(name) == host or (host == 0 and _writer(name) >= num_hosts):
            files[name] = [(folder / name).stat().length, file_sha256(folder / name)]
    if host > 0:
        atomic_write(folder / _PART.format(host), json.dumps(files))
        return
    for other in range(1, num_hosts):
        part, end = folder / _PART.format(other), time.monotonic() + _WAIT
        while not part.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"host {other} has not hashed its files after {_WAIT:.0f} s")
            time.sleep(0.05)
        files |= json.loads(part.read_text())
        part.unlink()
    content: dict[str, Any] = {"step": step, "hosts": num_hosts, "files": files}
    atomic_write(folder / MANIFEST, json.dumps(content | {"sha256": _own_hash(content)}, indent=1) + "\n")


def damage(folder: epath.Path, step: int, start: str = "") -> str | None:
    """What is wrong with a checkpoint that has a manifest, or None; only files whose path begins with `start` count."""
    try:
        content = read_json(folder / MANIFEST)
        claimed, there = content.pop("sha256"), content["step"]
        files = [(name, int(size), str(sha256)) for name, (size, sha256) in content["files"].items()]
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, OSError):
        return f"{MANIFEST} cannot be read"
    if claimed != _own_hash(content):
        return f"{MANIFEST} was changed"
    if there != step:
        return f"it is a checkpoint of step {there!r}"
    for name, size, sha256 in files:
        if {"", ".", ".."} & set(name.split("/")):
            return f"{MANIFEST} names {name!r}, which is not below it"
        if name.startswith(start):
            try:
                if (found := (folder / name).stat().length) != size:
                    return f"{name} has {found} bytes in place of {size}"
                if file_sha256(folder / name) != sha256:
                    return f"{name} was changed"
            except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
                return f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"
    return None


def mark_damaged(folder: epath.Path, reason: str) -> epath.Path:
    """Renames a damaged checkpoint and writes the reason into it; nothing is deleted."""
    names = itertools.chain([DAMAGED], (f"{DAMAGED}-{number}" for number in itertools.count(2)))
    aside = next(path for name in names if not (path := folder.parent / f"{folder.name}.{name}").exists())
    folder.rename(aside)
    (aside / DAMAGED).write_text(reason + "\n")
    return aside


def finished_steps(checkpoints: epath.Path) -> list[int]:
    """The steps that have a manifest, in order."""
    return [step for step in all_steps(checkpoints) if (checkpoints / str(step) / MANIFEST).exists()]


def all_steps(checkpoints: epath.Path) -> list[int]:
    """The steps that have a folder, finished or not, in order."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif prefix or not path.name.startswith(("manifest.", UNFINISHED)):
            yield prefix + path.name


def _writer(name: str) -> int:
    """Which host wrote a file: Orbax gives each a folder of its own, and the first the rest."""
    found = re.search(r"ocdbt\.process_(\d+)/", name)
    return int(found.group(1)) if found else 0


def _own_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
