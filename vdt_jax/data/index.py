"""What is known of each video of a folder: found once, in parallel, and kept.

An index is kept in the user's cache folder, under the folder's absolute path, as JSON lines: data is often read-only
and never written to. An entry holds as long as the path, the size and the time of the last change of its file do. A
failure is kept where it is the file's content: what a limit, a permission or a disk did is looked at again, and so is a
folder of pictures, whose time does not change where one of them is mended in place.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vdt_jax.data.bad_files import BadFiles
from vdt_jax.data.clips import PassingFailure, UnreadableClip
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.discover import Found
from vdt_jax.errors import UserError
from vdt_jax.files import atomic_write
from vdt_jax.progress import progress
from vdt_jax.video import VideoInfo

_FORMAT = 3  # raise it where entries of another version of this code would mislead
_MAX_PROCESSES = 32

Known = VideoInfo | str  # a str is the reason why a video cannot be read


def index_videos(root: Path, found: Sequence[Found], decoders: Decoders, bad: BadFiles | None = None) -> list[Known]:
    """What is known of each video, in order: from the kept index, or found out now.

    Args:
      root: of their names.
      found: the videos.
      decoders: read those that the index lacks.
      bad: collects those that cannot be read.

    Raises:
      UserError: an index that cannot be read or written, or too many bad videos.
    """
    store = _store(root)
    with _named_failures(store):
        kept = _read(store)
    states = [_state(root, video) for video in found]
    new = [n for n, state in enumerate(states) if state not in kept and not found[n].reason]

    passing = {n for n in new if states[n][1] < 0}  # not kept: the next run looks again

    def look(number: int) -> tuple[int, Known]:
        path = os.path.abspath(root / found[number].name)  # noqa: PTH100 -- links are left as they are
        try:
            return number, decoders.probe(path)
        except UnreadableClip as error:
            if isinstance(error, PassingFailure) or Path(path).is_dir():
                passing.add(number)
            return number, str(error)

    if new:
        with _named_failures(store):
            store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.touch()
        threads = min(os.cpu_count() or 1, _MAX_PROCESSES, len(new))
        show = progress(f"index of {root}", len(new), unit="file")
        with ThreadPoolExecutor(threads) as pool, store.open("a") as file, show as advance:
            for number, known in pool.map(look, new):
                kept[states[number]] = known
                if number not in passing:
                    file.write(_line(states[number], known))
                advance(1)
        if len(kept) > 2 * len(found):
            atomic_write(store, "".join(_line(state, kept[state]) for state in states if state in kept))
    known = [video.reason or kept[state] for video, state in zip(found, states, strict=True)]
    if bad is not None:
        for video, info in zip(found, known, strict=True):
            if isinstance(info, str):
                bad.add(video.name, info)
        bad.check()
    return known


State = tuple[str, int, int]


def _state(root: Path, video: Found) -> State:
    """A file as it is now: name, size (of a folder, its number of entries), time of the last change."""
    try:
        path = root / video.name
        status = path.stat()
        size = sum(1 for _ in path.iterdir()) if path.is_dir() else status.st_size
        return video.name, size, status.st_mtime_ns
    except (OSError, ValueError):
        return video.name, -1, -1


def _store(root: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    return cache / "vdt_jax" / "index" / f"{digest[:32]}.jsonl"


@contextlib.contextmanager
def _named_failures(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the index {store} cannot be kept ({error.strerror}): set XDG_CACHE_HOME to a folder that can be written"
        ) from None


def _read(store: Path) -> dict[State, Known]:
    """Entries by state; lines that a killed run left half-written, or that another version wrote, are left out."""
    kept: dict[State, Known] = {}
    if not store.is_file():
        return kept
    for line in store.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if entry["format"] == _FORMAT:
                known = entry["reason"] or VideoInfo.from_json(entry["info"])
                kept[entry["path"], entry["size"], entry["changed"]] = known
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def _line(state: State, known: Known) -> str:
    reason, info = (known, None) if isinstance(known, str) else ("", known.to_json())
    path, size, changed = state
    entry = {"format": _FORMAT, "path": path, "size": size, "changed": changed, "reason": reason, "info": info}
    return json.dumps(entry) + "\n"
