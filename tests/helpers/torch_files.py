"""Writes files as torch.save does, and files that torch.save would never write; without torch."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


class Named:
    """Pickles as a reference to a name that need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a name."""

    def __init__(self, module, name, *arguments):
        self.named, self.arguments = Named(module, name), arguments


class Stored:
    """Pickles as a persistent id, like a torch storage."""

    def __init__(self, pid):
        self.pid = pid


class Writer(pickle._Pickler):
    """Writes pickles as torch does: protocol 2, storages by persistent id, names without importing them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Stored) else None

    def save_named(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_call(self, obj):
        self.save(obj.named)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)

    dispatch[Named] = save_named
    dispatch[Call] = save_call


def pickled(value):
    stream = io.BytesIO()
    Writer(stream, 2).dump(value)
    return stream.getvalue()


def storage(key="0", kind="FloatStorage", numel=6):
    return Stored(("storage", Named("torch", kind), key, "cpu", numel))


def tensor(size=(2, 3), stride=(3, 1), offset=0, stored=None):
    empty = Call("collections", "OrderedDict")
    return Call("torch._utils", "_rebuild_tensor_v2", stored or storage(), offset, size, stride, False, empty)


def archive(path, value=None, data=None, entries=None, compress=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("m/data.pkl", data if data is not None else pickled(value))
        file.writestr("m/byteorder", "little")
        for key, array in (entries or {"0": np.arange(6, dtype=np.float32)}).items():
            file.writestr(f"m/data/{key}", array.tobytes())
        for name, content in extra:
            file.writestr(name, content)
    return path


def save_torch(path: Path, value: Any) -> Path:
    """torch.save of a nest of dicts, lists and arrays: equal arrays by identity share a storage."""
    entries: dict[str, np.ndarray] = {}
    keys: dict[int, str] = {}

    def stored(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: stored(child) for key, child in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(stored(child) for child in item)
        if not isinstance(item, np.ndarray):
            return item
        key = keys.setdefault(id(item), str(len(keys)))
        entries[key] = np.array(item, order="C")
        strides = tuple(step // item.itemsize for step in entries[key].strides)
        return tensor(item.shape, strides, stored=storage(key, STORAGES[item.dtype], item.size))

    return archive(path, stored(value), entries=entries)


def archived(data: bytes, entries: dict[str, bytes] | None = None, compress: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compress) as file:
        file.writestr("m/data.pkl", data)
        file.writestr("m/byteorder", "little")
        for name, content in (entries or {"m/data/0": np.arange(6, dtype=np.float32).tobytes()}).items():
            file.writestr(name, content)
    return stream.getvalue()
