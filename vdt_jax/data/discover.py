"""Finds the videos of a folder, at any depth, or of a list."""

import codecs
import csv
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vdt_jax.errors import UserError
from vdt_jax.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vdt_jax.video.images import natural_key

LIST_SUFFIXES = (".csv", ".jsonl")
_SEPARATORS = ",;\t"
_SPLITS = {"train": "train", "held_out": "held_out", "val": "held_out", "validation": "held_out", "test": "held_out"}


class Found(NamedTuple):
    """A video, or a file that looks like one."""

    name: str  # its path, relative to the folder or to that of the list
    label: str = ""  # the name of its class: its folder directly below the root, or the list's label
    split: str = ""  # `train` or `held_out`, from the list
    reason: str = ""  # why it cannot be a video


def find_videos(path: str | os.PathLike) -> tuple[Path, list[Found]]:
    """The root and the videos of a folder, or of a .csv or .jsonl list, in natural order.

    In a folder: files with a video extension, animated WebP, and folders of images without a video among them.
    Links are followed, and no folder is entered twice. Names that begin with a dot are skipped. A list has columns (or
    keys) `path`, relative to the list, and optionally `label` and `split` (train, or held_out, val, validation, test).

    Raises:
      UserError: no such folder, no videos in it, or a malformed list.
    """
    path = Path(path)
    if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        root, found = path.parent, list(_read_list(path))
    elif path.is_dir():
        root, found = path, list(_walk(path))
    else:
        problem = "neither a folder nor a list" if path.exists() else "folder not found"
        raise UserError(f"{problem}: {path} (give a folder of videos, or a .csv or .jsonl list)")
    if not found:
        raise UserError(f"no videos in {path}: looked for {', '.join(VIDEO_SUFFIXES)}, .webp and folders of images")
    return root, sorted(found, key=lambda video: natural_key(video.name))


def _walk(root: Path) -> Iterator[Found]:
    entered = set()

    def found(name: str, reason: str = "") -> Found:
        head, slash, _ = name.partition("/")
        return Found(name, head if slash else "", reason=reason)

    def walk(folder: str) -> Iterator[Found]:
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                return
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            yield found(folder, f"cannot be opened ({error.strerror})")
            return
        videos, pictures = [], 0
        for name in names:
            inside = f"{folder}/{name}" if folder else name
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 -- a name may not be one that Path can hold
            expected = suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES
            try:
                mode = (root / inside).stat().st_mode
                animated = suffix == ".webp" and stat.S_ISREG(mode) and _is_animated(root / inside)
            except OSError as error:
                if expected or not suffix:
                    videos.append(found(inside, f"cannot be opened ({error.strerror})"))
                continue
            if stat.S_ISDIR(mode):
                yield from walk(inside)
            elif suffix in VIDEO_SUFFIXES or animated:
                videos.append(found(inside, "" if stat.S_ISREG(mode) else "neither a file nor a folder"))
            elif suffix in IMAGE_SUFFIXES and stat.S_ISREG(mode):
                pictures += 1
        if pictures and not videos:
            videos.append(found(folder) if folder else Found("."))
        yield from videos

    yield from walk("")


def _is_animated(path: Path) -> bool:
    """Whether a WebP file is animated: a flag of its extended header."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[12:16] == b"VP8X" and len(head) == 21 and bool(head[20] & 2)


def _read_list(path: Path) -> Iterator[Found]:
    """The entries of a list: UTF-8, or UTF-16 as Windows writes it; a .csv is separated as its first line is."""
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        with path.open(newline="", encoding=encoding, errors="surrogateescape") as file:
            if path.suffix.lower() == ".csv":
                columns = file.readline()
                separator = next((sign for sign in _SEPARATORS if sign in columns), ",")
                file.seek(0)
                rows: list[Any] = list(csv.DictReader(file, delimiter=separator, skipinitialspace=True))
            else:
                rows = [json.loads(line) for line in file if line.strip()]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a list of videos ({error})") from None
    for number, row in enumerate(rows, start=1):
        entry = _known_columns(f"{path}: entry {number}", row) if isinstance(row, dict) else {}
        if not entry.get("path"):
            raise UserError(f"{path}: entry {number} has no path; a list has path, and optionally label and split")
        split = str(entry.get("split") or "").casefold()
        if split and split not in _SPLITS:
            raise UserError(f"{path}: entry {number} has split '{split}': use one of {', '.join(_SPLITS)}")
        label = entry.get("label")
        yield Found(str(entry["path"]), "" if label is None else str(label), _SPLITS.get(split, ""))


def _known_columns(where: str, row: dict[Any, Any]) -> dict[str, Any]:
    """The values of the columns path, label and split, stripped; their names may differ in case and spaces."""
    entry = {}
    for column, value in row.items():
        if column is None:  # what DictReader calls values without a column
            raise UserError(f"{where} has more values than the list has columns: quote a value that holds a separator")
        name = "".join(column.split()).casefold()
        if name in entry:
            raise UserError(f"{where} has two columns named {name}: remove one of them")
        if name in ("path", "label", "split"):
            entry[name] = value.strip() if isinstance(value, str) else value
    return entry
