"""An index of the videos of a folder: length, size and timestamps of each, or why it cannot be read.

It is made once, in parallel, and kept as JSON lines in the user's cache folder, since data is often read-only. An entry
is valid while the path, the size and the modification time of its file are the same. Failures are kept if they are due
to the file's content; failures due to a limit, a permission or a disk are retried, and so are folders of images,
whose modification time does not change when an image is repaired in place.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vdt_jax.data.clips import BadFiles, PassingFailure, UnreadableClip
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.discover import Found
from vdt_jax.files import atomic_write, cache_folder
from vdt_jax.progress import progress
from vdt_jax.video import VideoInfo

logger = logging.getLogger(__name__)

_FORMAT = 4  # entries of other versions are ignored
_MAX_PROCESSES = 32

Known = VideoInfo | str  # a str is the reason why a video cannot be read
State = tuple[str, int, int]


def index_videos(root: Path, found: Sequence[Found], decoders: Decoders, bad: BadFiles | None = None) -> list[Known]:
    """The entry of each video below `root`, in order: from the kept index, or made now; `bad` gets the unreadable ones.

    An index that cannot be kept is made again by the next run.

    Raises:
      UserError: too many bad videos.
    """
    store, kept = _kept(root)
    states = [_state(root, video) for video in found]
    new = [n for n, state in enumerate(states) if state not in kept and not found[n].reason]
    passing = {n for n in new if states[n][1] < 0}  # not kept: the next run tries again

    def look(number: int) -> tuple[int, Known]:
        path = os.path.abspath(root / found[number].name)  # noqa: PTH100 -- links are left as they are
        try:
            return number, decoders.probe(path)
        except UnreadableClip as error:
            if isinstance(error, PassingFailure) or Path(path).is_dir():
                passing.add(number)
            return number, str(error)

    if new:
        threads = min(os.cpu_count() or 1, _MAX_PROCESSES, len(new))
        show = progress(f"index of {root}", len(new), unit="file")
        target = store.open("a") if store else io.StringIO()
        with ThreadPoolExecutor(threads) as pool, target as file, show as advance:
            for number, known in pool.map(look, new):
                kept[states[number]] = known
                if number not in passing:
                    file.write(_line(states[number], known))
                advance(1)
        if store and len(kept) > 2 * len(found):
            atomic_write(store, "".join(_line(state, kept[state]) for state in states if state in kept))
    known = [video.reason or kept[state] for video, state in zip(found, states, strict=True)]
    if bad is not None:
        for video, info in zip(found, known, strict=True):
            if isinstance(info, str):
                bad.add(video.name, info)
        bad.check()
    return known


def sizes(root: Path, found: Sequence[Found]) -> list[list[str | int]]:
    """The name, label, split and size of each video below the root: the same where its folder was moved or copied."""
    return [[video.name, video.label, video.split, _state(root, video)[1]] for video in found]


def _state(root: Path, video: Found) -> State:
    """The name, the size (of a folder, its number of entries) and the modification time of a file."""
    try:
        path = root / video.name
        status = path.stat()
        size = sum(1 for _ in path.iterdir()) if path.is_dir() else status.st_size
        return video.name, size, status.st_mtime_ns
    except (OSError, ValueError):
        return video.name, -1, -1


def _kept(root: Path) -> tuple[Path | None, dict[State, Known]]:
    """The file of the index and its entries; None where there is no place for one."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    try:
        store = cache_folder("index") / f"{digest[:32]}.jsonl"
        store.touch()
        return store, _read(store)
    except OSError as error:
        reason = f"{error.strerror}: set XDG_CACHE_HOME to a writable folder"
        logger.warning("the index of %s is not kept (%s)", root, reason)
        return None, {}


def _read(store: Path) -> dict[State, Known]:
    """Entries by state; truncated lines and those of other versions are skipped."""
    kept: dict[State, Known] = {}
    for line in store.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["format"] == _FORMAT:
                known = entry["reason"] or VideoInfo.from_json(entry["info"])
                kept[entry["path"], entry["size"], entry["changed"]] = known
    return kept


def _line(state: State, known: Known) -> str:
    reason, info = (known, None) if isinstance(known, str) else ("", known.to_json())
    path, size, changed = state
    entry = {"format": _FORMAT, "path": path, "size": size, "changed": changed, "reason": reason, "info": info}
    return json.dumps(entry) + "\n"
