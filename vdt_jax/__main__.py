"""`python -m vdt_jax`: prints devices, versions of packages, and what is missing."""

if __name__ == "__main__":
    from vdt_jax.errors import end_at_ctrl_c

    end_at_ctrl_c()  # while the rest is imported

import importlib.metadata
import platform
from pathlib import Path

import jax

from vdt_jax import cli
from vdt_jax.distributed.processes import has_tpu

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "einops", "numpy", "ml_collections", "grain", "av")


def report(nvidia: bool, tpu: bool) -> str:
    """Versions and devices, and the command that installs what an accelerator of this machine needs."""
    lines = [f"python {platform.python_version()} on {platform.machine()}"]
    for package in _PACKAGES:
        try:
            lines.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package} MISSING: pip install -e .")
    devices = jax.devices()
    lines.append(f"{len(devices)} device(s): {devices[0].device_kind} ({devices[0].platform})")
    if devices[0].platform == "cpu" and nvidia:
        lines.append("JAX does not use the NVIDIA GPU of this machine: pip install -e '.[gpu]' -c constraints.txt")
    elif devices[0].platform == "cpu" and tpu:
        lines.append("JAX does not use the TPU of this machine: pip install -e '.[tpu]' -c constraints.txt")
    elif devices[0].platform == "cpu":
        lines.append("no accelerator: small models train, VDT-L/2 does not")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.quiet_start()
    print(report(Path("/dev/nvidia0").exists(), has_tpu()))
