"""The official PyTorch code, from a user's own clone of it."""

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class Official(NamedTuple):
    """The official network on its device, the function to call in this mode, and the constructor of its diffusions."""

    model: Any
    network: Callable[..., torch.Tensor]
    create_diffusion: Callable[..., Any]
    device: torch.device


def load_official(folder: Path, name: str, compiled: bool = False) -> Official:
    """Their network with random non-zero weights: with its initial values the output is zero."""
    vars(np)["int"] = int  # an old name that their code uses
    if importlib.util.find_spec("torchvision") is None:
        _pretend_torchvision()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    from diffusion import create_diffusion
    from models import VDT_models

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = VDT_models[name](input_size=32, num_classes=1, num_frames=16, mode="video")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    model = model.to(device).eval()
    network = torch.compile(model) if compiled else model
    return Official(model, network, create_diffusion, device)


def _pretend_torchvision() -> None:
    """timm imports torchvision for its image pipelines, none of which is used here."""

    class Anything(type):
        def __getattr__(cls, name: str) -> str:
            return name

    class Module(types.ModuleType):
        __path__: list[str] = []  # noqa: RUF012

        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {})

    for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets"):
        module = Module(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def wait(official: Official) -> None:
    """Blocks until the device is idle."""
    if official.device.type == "cuda":
        torch.cuda.synchronize()


def to_torch(official: Official, x: np.ndarray) -> torch.Tensor:
    """An array (B, F, h, w, C) as a tensor in their order, (B, F, C, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3))).to(official.device)
