"""Model folders that must not be loaded, or must be loaded without harm: `cases()` changes a good folder in place.

Each case is (name, a function of the folder and of a folder outside, what the error must name, or None where the folder
may be loaded). What is outside is a FIFO, which hangs whoever opens it.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from vdt_jax.checkpoints import load_config, load_model
from vdt_jax.errors import UserError

Case = tuple[str, Callable[[Path, Path], object], str | None]
SIZES = dict(input_size=[4, 4], num_frames=2, in_channels=1, patch_size=2, hidden_size=8, depth=2, num_heads=2)
CONFIG = {"model": SIZES, "diffusion": {"noise_schedule": "linear"}, "data": {"name": "synthetic"}}
ABSURD = (0, -1, 10**9, 10**30, 1.5, "x", None, [], {}, True, float("nan"), float("inf"), "\x1b[31m", "x" * 10**6)
FILES = ("config.json", "manifest.json", "params/manifest.ocdbt", "params/_METADATA", "params/d")
SECONDS = 60


class TooLong(BaseException):
    """A folder that takes longer than its limit."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(folder: Path) -> str:
    """What loading a folder ends in: "loaded", or the one line of the error; anything else is raised."""
    with limited(SECONDS):
        try:
            load_config(folder)
            load_model(folder)
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) <= 2000, repr(str(error)[:3000])
            return str(error)
    return "loaded"


def replace(name: str, make: Callable[[Path, Path], object]) -> Callable[[Path, Path], object]:
    """Removes a file or folder, and makes something else in its place."""

    def change(folder: Path, outside: Path) -> None:
        path = folder / name
        path.rename(outside / path.name)
        make(path, outside)

    return change


def content(name: str, data: bytes | str) -> Callable[[Path, Path], object]:
    return lambda folder, _: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def sparse(path: Path, size: int) -> None:
    with path.open("ab") as file:
        file.truncate(size)


def kinds_of_files() -> Iterator[Case]:
    makers: dict[str, Callable[[Path, Path], object]] = {
        "a link outside": lambda path, outside: path.symlink_to(outside / path.name),
        "a link to a FIFO": lambda path, outside: path.symlink_to(outside / "fifo"),
        "a link to /dev/zero": lambda path, _: path.symlink_to("/dev/zero"),
        "a link to nothing": lambda path, outside: path.symlink_to(outside / "nothing"),
        "a link to itself": lambda path, _: path.symlink_to(path.name),
        "a FIFO": lambda path, _: os.mkfifo(path),
        "a socket": lambda path, _: bind(path),
        "missing": lambda path, _: None,
    }
    for name in FILES:
        for kind, make in makers.items():
            harmless = name == "manifest.json" and kind == "missing"  # as in older folders
            yield f"{name} is {kind}", replace(name, make), None if harmless else ""
        if name != "params/d":
            yield f"{name} is a folder", replace(name, lambda path, _: path.mkdir()), ""
            yield f"{name} is empty", content(name, b""), ""
            yield f"{name} is of a terabyte", lambda folder, _, name=name: sparse(folder / name, 1 << 40), ""
    yield (
        "params is a link",
        replace("params", lambda path, outside: path.symlink_to(outside / "params")),
        "symbolic link",
    )
    yield "a FIFO beside", lambda folder, _: os.mkfifo(folder / "params" / "fifo"), "FIFO"
    yield "a link beside", lambda folder, _: (folder / "params" / "x").symlink_to("/dev/zero"), "symbolic link"
    yield "a hundred levels", lambda folder, _: Path(folder, "params", *"a" * 100).mkdir(parents=True), "levels"


def manifests() -> Iterator[Case]:
    def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], object]:
        def apply(folder: Path, _: Path) -> None:
            manifest = json.loads((folder / "manifest.json").read_text())
            change(manifest)
            manifest.pop("sha256", None)
            own = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
            (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": own}))

        return apply

    for name in ("../../../dev/zero", "/dev/zero", "params/../../fifo", ".", "", "params//d", "..", "./config.json"):
        yield f"a manifest of {name!r}", changed(lambda m, name=name: m["files"].update({name: [1, "x"]})), "not below"
    for name in ("params/nothing", "params/\x1b[31m", "params/" + "x" * 5000, "params/\x00", "params/\ud800"):
        yield (
            f"a manifest of {name[:20]!r}",
            changed(lambda m, name=name: m["files"].update({name: [1, "x"]})),
            "damaged",
        )
    for size in (-1, 0, 1e300, "x", None, [], True, 10**400, float("nan")):
        change = changed(lambda m, size=size: m["files"]["params/_METADATA"].__setitem__(0, size))
        yield f"a size of {size!r:.20}", change, "damaged"
    for files in (None, [], 3, "x", {"a": None}, {"a": []}, {"a": [1]}, {"a": [1, 2, 3]}):
        yield f"files {files!r}", changed(lambda m, files=files: m.update(files=files)), "cannot be read"
    for step in (1, "0", None, [], {}, "\x1b[31m"):
        yield f"step {step!r}", changed(lambda m, step=step: m.update(step=step)), "damaged"
    yield "no step", changed(lambda m: m.pop("step")), "cannot be read"
    yield (
        "the hash of another",
        lambda f, _: edit(f / "manifest.json", lambda m: m.update(sha256="0" * 64)),
        "was changed",
    )
    yield "a hash that is a list", lambda f, _: edit(f / "manifest.json", lambda m: m.update(sha256=[])), "was changed"
    for data in (b"[]", b"3", b"null", b'"x"', b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b"9" * 10_000):
        yield f"a manifest {data[:9]!r}", content("manifest.json", data), "manifest.json cannot be read"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def configs() -> Iterator[Case]:
    for data in (
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"x"',
        b"\xff\xfe{",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"NaN",
        b"9" * 10_000,
    ):
        yield f"a config {data[:9]!r}", content("config.json", data), "config.json"
    whole = json.dumps(CONFIG)
    for length in range(1, len(whole), 40):
        yield f"a config cut after {length}", content("config.json", whole[:length]), "config.json"
    for key in (
        "num_frames",
        "in_channels",
        "patch_size",
        "hidden_size",
        "depth",
        "num_heads",
        "num_classes",
        "unroll",
    ):
        for value in ABSURD:
            yield f"{key}={value!r:.20}", model(**{key: value}), f"model.{key}"
    for key, values in {
        "input_size": (0, -4, 10**9, [], [4], [4, 4, 4], [4, "4"], [10**9, 4], "4", None, {}, 1.5, [[4, 4]], [True, 4]),
        "mlp_ratio": (0, -1, 1e300, "x", None, float("nan"), [], 10**400),
        "dtype": ("float64", "int8", "", None, 3, [], "\x1b[31m"),
        "remat": ("some", None, 3, []),
        "attention": ("flash", "cudnn", None, 3, []),
        "learn_sigma": (1, "x", None),
        "temporal": (0, "x", None),
    }.items():
        for value in values:
            yield f"{key}={value!r:.20}", model(**{key: value}), key
    yield "an unknown key", model(num_framse=3), "did you mean 'model.num_frames'"
    yield "gather in the config", model(gather="os.system"), "unknown option 'model.gather'"
    yield "name in the config", model(parent={}), "unknown option 'model.parent'"
    yield "large in all", model(input_size=[8192, 8192], num_frames=65536, hidden_size=65536), "must each be <="
    yield "a model of terabytes", model(hidden_size=8192, depth=1024), "do not fit its config.json"
    yield "another width", model(hidden_size=16), "do not fit its config.json"
    yield "another depth", model(depth=3), "do not fit its config.json"
    yield "an image model", model(temporal=False), "do not fit its config.json"
    for name in ("model", "diffusion", "data", "loss"):
        for value in ([], 3, "x", None):
            if not (name == "loss" and value is None):
                yield f"{name} {value!r}", top(**{name: value}), f"{name} must be a mapping"
    for value in (
        {"noise_schedule": "x"},
        {"num_diffusion_timesteps": 10**9},
        {"prediction": []},
        {"gamma": 1},
        {"num_diffusion_timesteps": 20},
    ):
        yield f"diffusion {value}", top(diffusion=value), "diffusion."
    for value in ({}, {"name": None}, {"name": 3}):
        yield f"data {value}", top(data=value), "data.name must be a text"
    values = {"path": 3, "fps": "x", "stride": 1.5, "hop": True, "labels": 1, "held_out": float("nan"), "options": []}
    for key, value in (values | {"stride ": -1, "fps ": 10**12}).items():
        yield (
            f"data.{key}={value}",
            top(data={"name": "video_folder", key.strip(): value}),
            f"data.{key.strip()} must be",
        )
    yield "an unknown mixture", top(loss={"mask_mixture": []}), "mask_mixture must be one of"
    yield "a dropout of text", top(loss={"label_dropout": "x"}), "label_dropout must be a number"
    yield "a list as hash", top(autoencoder=[]), "autoencoder must be a hash"
    yield "no model", content("config.json", "{}"), "describes no model"


def model(**values: Any) -> Callable[[Path, Path], object]:
    return content("config.json", json.dumps(CONFIG | {"model": SIZES | values}))


def top(**values: Any) -> Callable[[Path, Path], object]:
    return content("config.json", json.dumps(CONFIG | values))


def parameters() -> Iterator[Case]:
    """Without the manifest, or it would be all that is tested."""

    def bare(change: Callable[[Path], object]) -> Callable[[Path, Path], object]:
        def apply(folder: Path, _: Path) -> None:
            (folder / "manifest.json").unlink()
            change(folder / "params")

        return apply

    def array(**values: Any) -> Callable[[Path, Path], object]:
        def change(params: Path) -> None:
            store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{params}/"}}
            kvstore = ts.KvStore.open(store).result()
            zarray = json.loads(kvstore.read("pos_embed/.zarray").result().value)
            kvstore.write("pos_embed/.zarray", json.dumps(zarray | values).encode()).result()

        return bare(change)

    def bomb(params: Path) -> None:
        """A chunk that becomes 40 MB, of which a decoder may take no more than the array has."""
        sizes = {"shape": [10**7], "chunks": [10**7], "dtype": "<f4", "compressor": {"id": "zstd", "level": 1}}
        large = ts.open({"driver": "zarr", "kvstore": {"driver": "memory"}, "metadata": sizes}, create=True).result()
        large.write(np.zeros(10**7, np.float32)).result()
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{params}/"}}
        ts.KvStore.open(store).result().write("pos_embed/0.0.0", large.kvstore.read("0").result().value).result()

    def files(params: Path) -> list[Path]:
        return sorted(path for path in params.rglob("*") if path.is_file())

    for name in ("manifest.ocdbt", "_METADATA"):
        for cut in (0.1, 0.5, 0.9):
            yield f"{name} cut", bare(lambda p, n=name, c=cut: cut_file(p / n, c)), name
    for number in range(4):
        yield f"data {number} emptied", bare(lambda p, n=number: largest(files(p), n).write_bytes(b"")), None
        yield f"data {number} cut", bare(lambda p, n=number: cut_file(largest(files(p), n), 0.5)), None
        yield f"data {number} missing", bare(lambda p, n=number: largest(files(p), n).unlink()), None
    for value in (
        {},
        [],
        {"tree_metadata": []},
        {"tree_metadata": {"a": 3}},
        {"tree_metadata": {"a": {"key_metadata": 3}}},
    ):
        yield f"_METADATA {value}", bare(lambda p, v=value: (p / "_METADATA").write_text(json.dumps(v))), "_METADATA"
    yield "_METADATA without names", bare(lambda p: (p / "_METADATA").write_text('{"tree_metadata": {}}')), "is missing"
    yield "_METADATA deep", bare(lambda p: (p / "_METADATA").write_text("[" * 200_000)), "_METADATA"
    yield "a chunk that decompresses to more", bare(bomb), "pos_embed cannot be read"
    yield "an array of another shape", array(shape=[1, 5, 8]), "pos_embed has shape"
    yield "an array of a huge shape", array(shape=[10**6] * 3, chunks=[10**6] * 3), "pos_embed"
    yield "an array of huge chunks", array(chunks=[10**5] * 3), "pos_embed"
    yield "an array of no chunks", array(chunks=[0, 0, 0]), "pos_embed"
    yield "an array of negative chunks", array(chunks=[-1, 4, 8]), "pos_embed"
    yield "an array of texts", array(dtype="<U8"), "pos_embed"
    yield "an array of whole numbers", array(dtype="<i4"), "pos_embed"
    yield "an array of objects", array(dtype="|O"), "pos_embed"
    yield "an array of another compressor", array(compressor={"id": "pickle"}), "pos_embed"
    yield "an array of another format", array(zarr_format=9), "pos_embed"
    yield "an array of other names of chunks", array(dimension_separator="/"), "pos_embed"


def cut_file(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def largest(paths: list[Path], number: int) -> Path:
    return sorted(paths, key=lambda path: path.stat().st_size)[-1 - number]


def cases() -> Iterator[Case]:
    """All of them."""
    for group in (kinds_of_files, manifests, configs, parameters):
        yield from group()
