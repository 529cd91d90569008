"""The rows of accelerator.py: each is measured in a process of its own.

    python benchmarks/rows.py '{"kind": "training", "arguments": {"model": "VDT-S/2", "batch_size": 8}, "tiny": true}'

Prints the row as one line of JSON. Packages are imported where they are used: an accelerator's machine may lack some.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(_ROOT))


def measure_row(job: dict[str, Any]) -> dict[str, Any]:
    """The row of a job of accelerator.py."""
    make_row = ROWS[job["kind"]]
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # before jax is imported
    import jax

    from vdt_jax.files import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    row = make_row(tiny=job["tiny"], **job["arguments"])
    return {name: str(value) if isinstance(value, tuple) else value for name, value in row.items()}


def where_row(tiny: bool) -> dict[str, Any]:
    """The device and the versions."""
    import jax
    from measure import environment

    packages = [name for name in ("flax", "optax", "orbax-checkpoint", "torch", "jax-cuda13-plugin") if installed(name)]
    return environment(*packages) | {"platform": jax.devices()[0].platform, "networks": "tiny" if tiny else "real"}


def installed(package: str) -> bool:
    """Whether a package is installed, by the name of its distribution."""
    from importlib import metadata

    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def network(name: str, tiny: bool, dtype: str = "bfloat16", **options: Any) -> Any:
    """A network of VDT_VARIANTS, or a tiny one; options that are None are left out."""
    from vdt_jax.models.vdt import VDT, VDT_VARIANTS

    options = {key: value for key, value in options.items() if value is not None}
    sizes: Any = dict(input_size=8, num_frames=4, hidden_size=48, depth=2, num_heads=3) if tiny else VDT_VARIANTS[name]
    return VDT(**sizes, dtype=dtype, **options)


def goldens_row(tiny: bool, dtype: str, precision: str | None) -> dict[str, Any]:
    """The largest differences from the numbers of the official code and of diffusers, relative to the largest value."""
    import jax
    import numpy as np

    jax.config.update("jax_default_matmul_precision", precision)
    sys.path.insert(0, str(_ROOT / "tests"))
    import test_goldens

    from vdt_jax.weights.autoencoder import load_autoencoder

    model, params = test_goldens.load_tiny()
    model = model.clone(dtype=dtype)
    vae, weights = load_autoencoder(test_goldens.GOLDENS / "vae_tiny", dtype)
    golden = {name: x.transpose(0, 2, 3, 1) for name, x in np.load(test_goldens.GOLDENS / "vae_tiny.npz").items()}
    decoded: Any = vae.apply({"params": weights}, golden["z"], method="decode")
    mean, _ = vae.apply({"params": weights}, golden["x"], method="encode")  # pyright: ignore[reportGeneralTypeIssues]
    errors = {"forward": test_goldens.forward_error(model, params)}
    errors["gradient norms"] = max(test_goldens.gradient_norm_errors(model, params).values())
    for name, clip in (("sample", False), ("sample_clip", True)):
        errors[name] = test_goldens.sampling_error(model, params, name, clip)
    errors["encode"] = np.abs(np.asarray(mean) - golden["mean"]).max() / np.abs(golden["mean"]).max()
    errors["decode"] = np.abs(np.asarray(decoded) - golden["decoded"]).max() / np.abs(golden["decoded"]).max()
    return {name: f"{float(error):.1e}" for name, error in errors.items()}


def attention_row(tiny: bool, attention: str) -> dict[str, Any]:
    """How far bfloat16 with a kind of attention is from float32: norm of the difference over norm, random weights."""
    import jax
    import numpy as np
    import work

    jax.config.update("jax_default_matmul_precision", "highest")  # of float32
    kinds = [network("VDT-S/2", tiny, "float32"), network("VDT-S/2", tiny, attention=attention)]
    random, clips = np.random.default_rng(0), work.random_clips(kinds[0], 2)
    # Not the initial weights: with them the output does not depend on attention.
    noisy = jax.tree.map(lambda leaf: leaf + 0.02 * random.standard_normal(leaf.shape), work.random_params(kinds[0]))

    def outputs(model: Any) -> tuple[Any, Any]:
        def loss(params: Any, clips: Any) -> tuple[Any, Any]:
            out = model.apply({"params": params}, clips, np.full(2, 500.0))
            return (out**2).mean(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(noisy, clips)
        return out, gradients

    def norm(tree: Any) -> float:
        return sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(tree)) ** 0.5

    exact, other = (outputs(model) for model in kinds)
    pairs = zip(("output", "gradients"), exact, other, strict=True)
    errors = {name: norm(jax.tree.map(np.subtract, *map(jax.device_get, (b, a)))) / norm(a) for name, a, b in pairs}
    return {name: f"{error:.1e}" for name, error in errors.items()}


def training_row(
    tiny: bool,
    model: str,
    batch_size: int,
    remat: str = "matmuls",
    attention: str | None = None,
    unroll: int | None = None,
) -> Any:
    import work

    made = network(model, tiny, remat=remat, attention=attention, unroll=None if tiny else unroll)
    return work.training_row(made, 2 if tiny else batch_size, repeats=2 if tiny else 10)


def sampling_row(tiny: bool, model: str, batch_size: int, steps: int) -> Any:
    import work

    return work.sampling_row(network(model, tiny), 2 if tiny else batch_size, steps, "ddpm", 1 if tiny else 3)


def video_row(tiny: bool, what: str, dtype: str, chunk: int) -> Any:
    import work

    from vdt_jax.models.autoencoder import AutoencoderKL

    sizes: Any = dict(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4) if tiny else {}
    vae = AutoencoderKL(**sizes, dtype=dtype)
    return work.video_row(network("VDT-L/2", tiny), vae, what, chunk, 16, 1 if tiny else 5)


def official_row(tiny: bool, official: str, model: str, mode: str, work: str, batch: int) -> dict[str, Any]:
    """One row of benchmarks/compare_official.py, which runs both codes in one process."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--official={official}", f"--model={model}", f"--mode={mode}", f"--work={work}"]
        flags += [f"--batch_size={batch}", f"--repeats={1 if tiny else 5}", f"--output={folder}/report.json"]
        script = str(Path(__file__).parent / "compare_official.py")
        paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        command, environ = [sys.executable, script, *flags], os.environ | {"PYTHONPATH": paths}
        run = subprocess.run(command, capture_output=True, text=True, env=environ)
        if run.returncode:
            sys.exit(run.stderr.strip().splitlines()[-1])
        (row,) = json.loads(Path(folder, "report.json").read_text())["rows"]
    texts = {name: "{:.4g} s ({:.4g} to {:.4g})".format(*row[name]) for name in ("official", "ours")}
    return texts | {name: row[name] for name in ("official / ours", "outputs differ by")}


def profile_row(tiny: bool, model: str, batch_size: int, attention: str | None, unroll: int) -> dict[str, Any]:
    """Milliseconds of each group of kernels in a training step, and the longest kernels."""
    import kernels
    import work

    found = []
    made = network(model, tiny, remat="matmuls", attention=attention, unroll=None if tiny else unroll)
    row = work.training_row(made, 2 if tiny else batch_size, 3, lambda one: found.append(kernels.kernel_seconds(one)))
    (seconds,) = found
    total = sum(seconds.values())
    groups = {group: f"{1e3 * s:.3g} ms, {s / total:.0%}" for group, s in kernels.by_group(seconds)}
    longest = {f"{name[:60]}": f"{1e3 * s:.3g} ms" for name, s in seconds.most_common(25)}
    return {"step": row["time"], "in kernels": f"{1e3 * total:.4g} ms", **groups, "longest": longest}


ROWS: dict[str, Any] = {
    "where": where_row,
    "goldens": goldens_row,
    "attention": attention_row,
    "training": training_row,
    "sampling": sampling_row,
    "video": video_row,
    "official": official_row,
    "profile": profile_row,
}


if __name__ == "__main__":
    print(json.dumps(measure_row(json.loads(sys.argv[1]))))
