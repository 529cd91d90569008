"""From a model to samples, and the pages that show them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.distributed.mesh import make_mesh, replicated
from vdt_jax.errors import UserError
from vdt_jax.inference import generation
from vdt_jax.inference.generation import generate, sample_keys, task_masks
from vdt_jax.inference.outputs import Example, Section, table_text, write_comparison, write_page
from vdt_jax.models.vdt import VDT

MODEL = VDT(input_size=4, num_frames=4, in_channels=1, patch_size=2, hidden_size=8, depth=1, num_heads=1, num_classes=2)
DIFFUSION = make_diffusion(timestep_respacing="3")


@pytest.fixture(scope="module")
def params():
    x = jnp.zeros((1, *MODEL.video_shape))
    params = MODEL.init(jax.random.key(0), x, jnp.zeros(1))["params"]
    return jax.tree.map(lambda leaf: leaf + 0.1, params)


def clean(batch):
    return np.random.default_rng(0).uniform(-1, 1, (batch, *MODEL.video_shape)).astype(np.float32)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_keeps_what_is_given(params, task):
    mask = np.asarray(task_masks(0, range(2), task, MODEL))
    out = np.asarray(generate(MODEL, params, DIFFUSION, clean(2), mask, sample_keys(0, range(2))))
    given = np.broadcast_to(mask < 0.5, out.shape)
    np.testing.assert_array_equal(out[given], clean(2)[given])
    assert (out != clean(2))[~given].all() and (~given).any()


def test_samples_are_numbered_not_batched(params):
    everything = np.ones((3, *MODEL.video_shape[:3], 1), np.float32)
    three = generate(MODEL, params, DIFFUSION, clean(3), everything, sample_keys(5, range(3)))
    third = generate(MODEL, params, DIFFUSION, clean(3)[2:], everything[2:], sample_keys(5, range(2, 3)))
    np.testing.assert_allclose(three[2:], third, rtol=1e-4)
    same = generate(MODEL, params, DIFFUSION, np.zeros_like(clean(3)), everything, sample_keys(5, range(3)))
    assert len({float(sample.sum()) for sample in same}) == 3
    np.testing.assert_array_equal(
        task_masks(5, range(3), "single_frame", MODEL)[2:], task_masks(5, range(2, 3), "single_frame", MODEL)
    )


def test_labels_reach_the_network(params):
    everything, keys = np.ones((1, *MODEL.video_shape[:3], 1), np.float32), sample_keys(0, range(1))
    out = [generate(MODEL, params, DIFFUSION, clean(1), everything, keys, labels=jnp.array([i])) for i in (0, 1)]
    assert np.abs(out[0] - out[1]).max() > 1e-4
    null, unsaid = (
        generate(MODEL, params, DIFFUSION, clean(1), everything, keys, labels=x) for x in (jnp.array([2]), None)
    )
    np.testing.assert_array_equal(null, unsaid)
    with pytest.raises(UserError, match=r"labels \[3\]"):
        generate(MODEL, params, DIFFUSION, clean(1), everything, keys, labels=jnp.array([3]))


def test_names_and_numbers_that_do_not_exist(params):
    everything, keys = np.ones((1, *MODEL.video_shape[:3], 1), np.float32), sample_keys(0, range(1))
    with pytest.raises(UserError, match="'euler'"):
        generate(MODEL, params, DIFFUSION, clean(1), everything, keys, sampler="euler")


def test_samples_do_not_depend_on_the_number_of_devices(params):
    everything, keys = np.ones((3, *MODEL.video_shape[:3], 1), np.float32), sample_keys(5, range(3))
    labels = np.zeros(3, int)
    one = generate(MODEL, params, DIFFUSION, clean(3), everything, keys, labels=labels)
    everywhere = jax.device_put(params, replicated(make_mesh()))
    assert len(generation._mesh_of(params).devices) == 1 and len(generation._mesh_of(everywhere).devices) == 8
    spread = generate(MODEL, everywhere, DIFFUSION, clean(3), everything, keys, labels=labels)
    np.testing.assert_allclose(spread, one, rtol=1e-4)


def test_only_other_shapes_are_compiled_anew(params):
    def sample(batch=2, **options):
        mask, keys = task_masks(0, range(batch), "predict", MODEL), sample_keys(options.pop("seed"), range(batch))
        diffusion = make_diffusion(timestep_respacing="3", learn_sigma=MODEL.learn_sigma)
        options["labels"] = np.zeros(batch, int)
        return generate(MODEL, params, diffusion, clean(batch), mask, keys, sampler="ddim", **options)

    told = []
    first = sample(seed=0, guidance=2.0, eta=0.1)
    in_parts = sample(seed=0, guidance=2.0, eta=0.1, on_steps=told.append)
    np.testing.assert_allclose(in_parts, first, rtol=1e-6)
    assert told == [1, 1, 1]
    before = generation._advance._cache_size()
    assert np.abs(sample(seed=1, guidance=2.0, eta=0.1) - first).max() > 0.1
    assert np.abs(sample(seed=0, guidance=4.0, eta=0.1, on_steps=told.append) - first).max() > 1e-4
    assert np.abs(sample(seed=0, guidance=2.0, eta=0.9) - first).max() > 0.1
    assert generation._advance._cache_size() == before


def test_matrices_that_are_cast_once_change_nothing(params):
    model = MODEL.clone(dtype="bfloat16")
    cast = generation._cast_kernels(params, model.dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cast)} == {"bfloat16", "float32"}
    x, timesteps = clean(2), jnp.array([3, 500])
    outputs = [jax.jit(model.apply)({"params": tree}, x, timesteps) for tree in (params, cast)]
    np.testing.assert_array_equal(*outputs)


def test_guidance_needs_classes(params):
    everything, keys = np.ones((1, *MODEL.video_shape[:3], 1), np.float32), sample_keys(0, range(1))
    with pytest.raises(UserError, match="no classes"):
        generate(MODEL.clone(num_classes=1), params, DIFFUSION, clean(1), everything, keys, guidance=2.0)
    with pytest.raises(UserError, match="say which"):
        generate(MODEL, params, DIFFUSION, clean(1), everything, keys, guidance=2.0)


def test_the_package_is_imported_at_no_cost():
    code = (
        "import sys, vdt_jax; assert 'jax' not in sys.modules; import vdt_jax.inference.generation; "
        "assert all(callable(getattr(vdt_jax, name)) for name in vdt_jax.__all__); vdt_jax.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has no attribute 'nothing'" in done.stderr


def test_comparison_has_given_sample_truth(tmp_path):
    truth = np.full((4, 8, 8, 1), -1.0, np.float32)
    truth[:, 0, 0, 0] = np.linspace(-1, 1, 4)  # a GIF joins frames that are equal
    mask = np.zeros((4, 8, 8, 1), np.float32)
    mask[2:] = 1
    write_comparison(tmp_path / "x", truth, mask, [-truth])
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 4
        gif.seek(3)
        last = np.asarray(gif.convert("RGB"))
    width = (last.shape[1] - 8) // 3
    given, sample, shown = (last[-5, i * (width + 4) + 5] for i in range(3))
    assert given[2] > given[1] + 20 and (sample > 250).all() and (shown < 5).all()
    assert np.asarray(Image.open(tmp_path / "x.png")).ndim == 3


def test_table_and_page(tmp_path):
    assert table_text(["task", "PSNR"], [["predict", "9.1"]]) == "task     PSNR\n-------  ----\npredict   9.1"
    section = Section("a <b>", "python sample.py", [Example("x.gif", "clip 0")])
    write_page(tmp_path / "index.html", "T", "intro", ["task"], [["predict"]], [section])
    text = (tmp_path / "index.html").read_text()
    assert "a &lt;b&gt;" in text and '<img src="x.gif"' in text and "<td>predict</td>" in text
