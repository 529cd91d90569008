"""The layers of the package, read from its imports: they point down only; and what the start of a script imports."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Packages and modules by layer, the lowest first; those of one layer do not import each other.
LAYERS = [
    {"errors"},
    {"files", "options"},
    {"progress", "video", "distributed"},
    {"models", "diffusion", "data"},
    {"weights"},
    {"checkpoints", "latents"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"cli"},
    {"__main__"},
]
# Who may import what from outside; a name that is not listed may be imported anywhere.
RESTRICTED = {
    "absl": {"cli"},
    "ml_collections": {"cli"},
    "orbax": {"checkpoints"},
    "tensorstore": {"checkpoints"},
    "grain": {"data"},
    "flax": {"models", "training", "evaluation"},
    "cv2": {"evaluation"},
    "huggingface_hub": {"weights"},
    "tensorflow_datasets": {"data"},
    "torch": set(),
    "tensorflow": set(),
}
# Slow to import, and not needed to sample; each is imported where it is used.
LATE = {"cv2", "grain", "optax", "orbax", "scipy", "tensorboardX", "tensorflow_datasets", "torch"}


def package(path: Path) -> str:
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
    layer_of = {name: layer for layer, names in enumerate(LAYERS) for name in names}
    here = package(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "vdt_jax":
            there = rest[0]
            assert there == here or layer_of[there] < layer_of[here], f"{here} imports {there}"
        elif top in RESTRICTED:
            assert here in RESTRICTED[top], f"{here} imports {top}"


def test_the_start_of_sampling_imports_only_what_it_needs():
    command = [sys.executable, "-c", "import sys, sample, vdt_jax.inference.requests; print(*sys.modules)"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in run.stdout.split()} & LATE == set()


def test_scripts_and_tests_import_names_that_exist():
    """Also those that no quick test runs: tests/torture, benchmarks, the study."""
    paths = [
        path for folder in (".", "benchmarks", "configs", "study", "tests/**") for path in ROOT.glob(f"{folder}/*.py")
    ]
    assert len(paths) > 100
    wanted = {name for path in paths for name in imports(path) if name.startswith("vdt_jax.")}

    def exists(name: str) -> bool:
        module, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(name) is not None

    assert not [name for name in sorted(wanted) if not exists(name)]
