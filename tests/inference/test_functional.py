"""From a model to samples, and the pages that show them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vdt_jax.diffusion.blend import linear_blend
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.diffusion.samplers import SAMPLERS
from vdt_jax.distributed.mesh import make_mesh, replicated
from vdt_jax.errors import UserError
from vdt_jax.inference import functional
from vdt_jax.inference.functional import generate, generate_on_devices, sample_keys, task_masks
from vdt_jax.inference.outputs import write_comparison
from vdt_jax.models.vdt import VDT, param_shapes

MODEL = VDT(input_size=4, num_frames=4, in_channels=1, patch_size=2, hidden_size=8, depth=1, num_heads=1, num_classes=2)
DIFFUSION = make_diffusion(timestep_respacing="3")


@pytest.fixture(scope="module")
def params():
    x = jnp.zeros((1, *MODEL.video_shape))
    params = jax.jit(MODEL.init)(jax.random.key(0), x, jnp.zeros(1))["params"]
    return jax.tree.map(lambda leaf: leaf + 0.1, params)


def clean(batch):
    return np.random.default_rng(0).uniform(-1, 1, (batch, *MODEL.video_shape)).astype(np.float32)


def test_sampling_scans_the_blocks_however_the_model_was_trained():
    deep = MODEL.clone(depth=2)
    given, mask, keys = clean(1), np.ones((1, *MODEL.video_shape[:3], 1), np.float32), sample_keys(0, range(1))
    scanned, unrolled = (
        str(jax.make_jaxpr(lambda params, model=model: generate(model, params, DIFFUSION, given, mask, keys))(shapes))
        for model in (deep, deep.clone(unroll=2))
        for shapes in [param_shapes(model)]
    )
    assert "length=2" in scanned and scanned == unrolled


@pytest.mark.parametrize("task", TASKS)
def test_every_task_keeps_what_is_given(params, task):
    mask = np.asarray(task_masks(0, range(2), task, MODEL))
    out = np.asarray(generate_on_devices(MODEL, params, DIFFUSION, clean(2), mask, sample_keys(0, range(2))))
    given = np.broadcast_to(mask < 0.5, out.shape)
    np.testing.assert_array_equal(out[given], clean(2)[given])
    assert (out != clean(2))[~given].all() and (~given).any()


@pytest.mark.parametrize("sample", [generate, generate_on_devices])
def test_samples_of_residuals_are_the_blend_plus_those_residuals(params, sample):
    """The network gets the same inputs with and without `residual`, so it makes the same residuals."""
    mask = np.ones((2, *MODEL.video_shape[:3], 1), np.float32)
    mask[:, [0, 3]] = 0
    residual, plain = (
        np.asarray(sample(MODEL, params, diffusion, clean(2), mask, sample_keys(0, range(2))))
        for diffusion in (make_diffusion(timestep_respacing="3", residual=True), DIFFUSION)
    )
    blend = linear_blend(jnp.asarray(clean(2)), jnp.asarray(mask))
    np.testing.assert_allclose(residual - plain, blend * mask, atol=1e-4)


def test_samples_are_numbered_not_batched(params):
    everything = np.ones((3, *MODEL.video_shape[:3], 1), np.float32)
    three = generate_on_devices(MODEL, params, DIFFUSION, clean(3), everything, sample_keys(5, range(3)))
    third = generate_on_devices(MODEL, params, DIFFUSION, clean(3)[2:], everything[2:], sample_keys(5, range(2, 3)))
    np.testing.assert_allclose(three[2:], third, rtol=1e-4)
    same = generate_on_devices(MODEL, params, DIFFUSION, np.zeros_like(clean(3)), everything, sample_keys(5, range(3)))
    assert len({float(sample.sum()) for sample in same}) == 3
    np.testing.assert_array_equal(
        task_masks(5, range(3), "single_frame", MODEL)[2:], task_masks(5, range(2, 3), "single_frame", MODEL)
    )


def test_labels_reach_the_network(params):
    everything, keys = np.ones((1, *MODEL.video_shape[:3], 1), np.float32), sample_keys(0, range(1))
    out = [
        generate_on_devices(MODEL, params, DIFFUSION, clean(1), everything, keys, labels=jnp.array([i])) for i in (0, 1)
    ]
    assert np.abs(out[0] - out[1]).max() > 1e-4
    null, unsaid = (
        generate_on_devices(MODEL, params, DIFFUSION, clean(1), everything, keys, labels=x)
        for x in (jnp.array([2]), None)
    )
    np.testing.assert_array_equal(null, unsaid)
    with pytest.raises(UserError, match=r"labels must be 0 to 2 .*, got \[3\]"):
        generate_on_devices(MODEL, params, DIFFUSION, clean(1), everything, keys, labels=jnp.array([3]))


def test_names_and_numbers_that_do_not_exist(params):
    everything, keys = np.ones((1, *MODEL.video_shape[:3], 1), np.float32), sample_keys(0, range(1))

    def fail(message, **options):
        with pytest.raises(UserError, match=message):
            generate(MODEL, params, DIFFUSION, clean(1), everything, keys, **options)

    fail("sampler must be one of ddpm, .* got 'euler'", sampler="euler")
    with pytest.raises(UserError, match="the diffusion has learn_sigma=False, the model True"):
        other = make_diffusion(timestep_respacing="3", learn_sigma=False)
        generate(MODEL, params, other, clean(1), everything, keys)
    fail("eta=0.5 is for sampler ddim, not ddpm", eta=0.5)
    fail("eta must be >= 0, got nan", sampler="ddim", eta=float("nan"))
    fail("eta must be <= 1, got 2", sampler="ddim", eta=2)
    fail("resamples must be >= 1, got 0", sampler="repaint", resamples=0)
    refused = "lower_order_final=True is for sampler dpm_solver_pp or unipc, not ddpm: leave it out"
    fail(refused, lower_order_final=True)
    fail("given_noise must be <= 1, got 2", given_noise=2)
    fail("given_noise=0.1 is for sampler ddpm or .* not repaint: leave it out", sampler="repaint", given_noise=0.1)
    residual = make_diffusion(residual=True)
    for options in ({"sampler": "repaint"}, {"mask_guidance": 2.0}):
        with pytest.raises(UserError, match=r"leave out mask_guidance, and choose one of ddim, ddpm"):
            generate(MODEL, params, residual, clean(1), everything, keys, **options)
    fail("0 <= LOW < HIGH, such as 0.3,3, got 3,0.3", mask_guidance=2.0, guidance_interval=(3.0, 0.3))
    fail("guidance_interval limits a guidance, and none is given", guidance_interval=(0.3, 3.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": clean(2)[:, :3]}, r"clean must have shape \(2, 4, 4, 4, 1\) with .*, got \(2, 3, 4, 4, 1\)"),
        ({"clean": clean(3)}, r"clean must have shape \(2, .* got \(3, 4, 4, 4, 1\)"),
        ({"mask": np.ones((2, 4, 4, 4), np.float32)}, r"mask must have shape \(2, 4, 4, 4, 1\) .* got \(2, 4, 4, 4\)"),
        ({"mask": np.ones((1, 4, 4, 4, 1), np.float32)}, "mask must have shape"),
        ({"labels": np.zeros(3, int)}, r"labels must have shape \(2,\) .* got \(3,\)"),
        ({"keys": jax.random.key(0)}, r"keys must be one for each sample, \(B,\), got a single key"),
        ({"clean": np.zeros((2, *MODEL.video_shape), np.uint8)}, r"clean must be floats in \[-1, 1\], got uint8"),
    ],
)
def test_arrays_of_another_shape_or_type(params, change, message):
    arrays = {"clean": clean(2), "mask": np.ones((2, 4, 4, 4, 1), np.float32), "keys": sample_keys(0, range(2))}
    arrays |= change
    labels = arrays.pop("labels", None)
    with pytest.raises(UserError, match=message):  # below the annotations, which only the tests check
        functional._check_arrays(MODEL, *arrays.values(), labels)


def test_samples_do_not_depend_on_the_number_of_devices(params):
    everything, keys = np.ones((3, *MODEL.video_shape[:3], 1), np.float32), sample_keys(5, range(3))
    labels = np.zeros(3, int)
    one = generate_on_devices(MODEL, params, DIFFUSION, clean(3), everything, keys, labels=labels)
    everywhere = jax.device_put(params, replicated(make_mesh()))
    assert len(functional._mesh_of(params).devices) == 1 and len(functional._mesh_of(everywhere).devices) == 8
    spread = generate_on_devices(MODEL, everywhere, DIFFUSION, clean(3), everything, keys, labels=labels)
    np.testing.assert_allclose(spread, one, rtol=1e-4)


def test_only_other_shapes_are_compiled_anew(params):
    def sample(batch=2, **options):
        mask, keys = task_masks(0, range(batch), "predict", MODEL), sample_keys(options.pop("seed"), range(batch))
        diffusion = make_diffusion(timestep_respacing="3", learn_sigma=MODEL.learn_sigma)
        options["labels"] = np.zeros(batch, int)
        return generate_on_devices(MODEL, params, diffusion, clean(batch), mask, keys, sampler="ddim", **options)

    first = sample(seed=0, guidance=2.0, eta=0.1)
    np.testing.assert_array_equal(sample(seed=0, guidance=2.0, eta=0.1, on_steps=lambda n: None), first)
    programs = functional._begin, functional._advance
    before = [program._cache_size() for program in programs]
    assert np.abs(sample(seed=1, guidance=2.0, eta=0.1) - first).max() > 0.1
    assert np.abs(sample(seed=0, guidance=4.0, eta=0.1, on_steps=lambda n: None) - first).max() > 1e-4
    assert np.abs(sample(seed=0, guidance=2.0, eta=0.9) - first).max() > 0.1
    assert [program._cache_size() for program in programs] == before


@pytest.mark.parametrize(
    "sampler", [s if s in ("ddim", "unipc") else pytest.param(s, marks=pytest.mark.slow) for s in SAMPLERS]
)
def test_jit_eager_and_chunks_give_the_same_bits(params, sampler):
    """`generate` in a jit of the user's, on its own, and in chunks of a step with a progress callback."""
    mask, keys, labels = task_masks(0, range(2), "spatial_temporal", MODEL), sample_keys(0, range(2)), np.array([0, 2])
    arguments = (MODEL, params, DIFFUSION, clean(2), np.asarray(mask), keys)
    options = {"sampler": sampler, "labels": labels, "guidance": 2.0, "mask_guidance": 1.5}
    options |= {"ddim": {"eta": 0.5}, "repaint": {"resamples": 2}}.get(sampler, {})
    options |= {"unipc": {"guidance_interval": (0.1, 10.0), "given_noise": 0.1}}.get(sampler, {})
    done = []
    in_chunks = generate_on_devices(*arguments, **options, on_steps=done.append)
    assert done == [1, 1, 1]

    @jax.jit
    def within(params, clean, mask, keys, labels, guidance):
        given = options | {"labels": labels, "guidance": guidance}
        return generate(MODEL, params, DIFFUSION, clean, mask, keys, **given)

    within_jit = within(*arguments[1:2], *arguments[3:], labels, 2.0)
    np.testing.assert_array_equal(within_jit, in_chunks)
    np.testing.assert_array_equal(generate_on_devices(*arguments, **options), in_chunks)
    if sampler == "ddim":  # the others would only take longer
        eager = generate(*arguments, **options)
        assert isinstance(eager, jax.Array)
        np.testing.assert_array_equal(eager, in_chunks)


def test_generate_is_differentiable_and_can_be_mapped(params):
    mask, keys = jnp.asarray(task_masks(0, range(2), "predict", MODEL)), sample_keys(0, range(2))

    def total(clean, guidance):
        options = {"sampler": "ddim", "labels": jnp.array([0, 1]), "guidance": guidance}
        return generate(MODEL, params, DIFFUSION, clean, mask, keys, **options).sum()

    video = jnp.asarray(clean(2))
    both = jax.jit(jax.vmap(jax.value_and_grad(total), in_axes=(None, 0)))
    mapped, gradient = both(video, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(mapped, [total(video, scale) for scale in (1.0, 2.0)], rtol=1e-4)
    assert np.isfinite(gradient).all() and np.abs(np.asarray(gradient)[:, :, :2]).min() > 0


def test_matrices_that_are_cast_once_change_nothing(params):
    model = MODEL.clone(dtype="bfloat16")
    cast = functional._cast_kernels(params, model.dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cast)} == {"bfloat16", "float32"}
    x, timesteps = clean(2), jnp.array([3, 500])
    outputs = [jax.jit(model.apply)({"params": tree}, x, timesteps) for tree in (params, cast)]
    np.testing.assert_array_equal(*outputs)


def test_guidance_needs_classes(params):
    everything, keys = np.ones((1, *MODEL.video_shape[:3], 1), np.float32), sample_keys(0, range(1))
    with pytest.raises(UserError, match="no classes"):
        generate_on_devices(MODEL.clone(num_classes=1), params, DIFFUSION, clean(1), everything, keys, guidance=2.0)
    with pytest.raises(UserError, match="needs labels"):
        generate_on_devices(MODEL, params, DIFFUSION, clean(1), everything, keys, guidance=2.0)


def test_the_package_is_imported_at_no_cost():
    code = (
        "import sys, vdt_jax; assert 'jax' not in sys.modules; import vdt_jax.inference.functional; "
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
