"""Imports point down only: the floors of the house, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"errors"},
    {"schedules", "masks", "sharding", "processes", "video", "safe_pickle", "progress", "windows", "buckets"},
    {"models", "autoencoder", "diffusion", "data", "inputs", "fingerprint"},
    {"training", "sampling", "torch_weights", "metrics", "codec", "flops"},
    {"checkpoints", "latents"},
    {"generation", "pages", "protocol"},
    {"evaluation", "validation"},
    {"cli"},
    {"__main__"},
]
# Who may import what from outside; a name that is not listed may be imported anywhere.
RESTRICTED = {
    "absl": {"cli"},
    "ml_collections": {"cli"},
    "orbax": {"checkpoints"},
    "grain": {"data"},
    "flax": {"models", "autoencoder", "fingerprint", "training", "metrics"},
    "cv2": {"metrics"},
    "huggingface_hub": {"torch_weights"},
    "tensorflow_datasets": {"data"},
    "torch": set(),
    "tensorflow": set(),
}


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "vdt_jax").parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = sorted(
    path for path in (ROOT / "vdt_jax").rglob("*.py") if path.parent.name + path.name != "vdt_jax__init__.py"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    here = room(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "vdt_jax":
            there = rest[0]
            assert there == here or floor_of[there] < floor_of[here], f"{here} imports {there}"
        elif top in RESTRICTED:
            assert here in RESTRICTED[top], f"{here} imports {top}"


def test_every_script_is_thin_enough_to_read():
    long = {path.name: n for path in [*ROOT.glob("*.py"), *MODULES] if (n := len(path.read_text().splitlines())) > 350}
    assert not long
