"""The seven tasks written out, and the mixtures against 20,000 draws of the official generator."""

from collections import Counter
from pathlib import Path

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt_jax.diffusion import masks as module
from vdt_jax.diffusion.masks import TASKS, apply_mask, block_mask, draw_masks, official_mask, task_mask, varied_mask
from vdt_jax.distributed.mesh import batch_sharding, make_mesh
from vdt_jax.errors import UserError

GOLDENS = Path(__file__).parents[1] / "goldens"


def frames(mask) -> str:
    """Frame by frame: 1 all generated, 0 all given, b a block."""
    share = np.asarray(mask).reshape(mask.shape[0], -1).mean(1)
    return "".join({0.0: "0", 1.0: "1"}.get(float(value), "b") for value in share)


@pytest.mark.parametrize(
    ("task", "num_frames", "expected"),
    [
        ("predict", 16, "0000000011111111"),
        ("backward", 16, "1111111100000000"),
        ("interpolation", 16, "0111011101110111"),
        ("unconditional", 16, "1111111111111111"),
        ("predict", 5, "00111"),
        ("backward", 5, "11100"),
        ("interpolation", 5, "01110"),
        ("predict", 1, "1"),
        ("single_frame", 1, "1"),
        ("interpolation", 1, "1"),
    ],
)
def test_task_masks_written_out(task, num_frames, expected):
    assert frames(task_mask(jax.random.key(0), task, (num_frames, 8, 6))) == expected


def first_and_last(num_frames, mixture):
    """How often a block stands on the frames `first` to `last`, in 400 masks for sampling."""
    draw = jax.jit(jax.vmap(lambda key: task_mask(key, "spatial_temporal", (num_frames, 8, 6), mixture=mixture)))
    masks = np.asarray(draw(jax.random.split(jax.random.key(0), 400)))[..., 0]
    hidden = masks.any((2, 3))
    first, last = hidden.argmax(1), num_frames - 1 - hidden[:, ::-1].argmax(1)
    for mask, a, b in zip(masks, first, last, strict=True):
        assert (mask[a : b + 1] == mask[a]).all() and 0 < mask[a].mean() <= 0.5
    return Counter(zip(first.tolist(), last.tolist(), strict=True))


def test_blocks_for_sampling_stand_where_the_weights_were_trained_to_have_them():
    """Officially on frames start:-end, both 0 to 3: never on frame 15, and empty, which is left out, if end is 0."""
    official, varied = first_and_last(16, "official"), first_and_last(16, "varied")
    assert set(official) == {(first, last) for first in range(4) for last in (12, 13, 14)}
    assert set(varied) == {(first, last) for first in range(4) for last in (12, 13, 14, 15)}
    # Each of 12 has 33 of 400 draws on average, each of 16 has 25; five standard deviations.
    assert all(abs(count - 400 / 12) < 28 for count in official.values())
    assert all(abs(count - 25) < 25 for count in varied.values())


@pytest.mark.parametrize(
    ("num_frames", "official", "varied"),
    [
        (5, {(a, b) for a in (0, 1, 2) for b in (2, 3)}, {(a, b) for a in (0, 1, 2) for b in (2, 3, 4)}),
        (2, {(0, 0)}, {(0, 1)}),
        (1, {(0, 0)}, {(0, 0)}),
    ],
)
def test_blocks_for_sampling_of_other_lengths(num_frames, official, varied):
    assert set(first_and_last(num_frames, "official")) == official
    assert set(first_and_last(num_frames, "varied")) == varied


def test_single_frame_gives_one_frame_and_any():
    draw = jax.jit(jax.vmap(lambda seed: task_mask(jax.random.key(seed), "single_frame", (4, 2, 2))))
    assert {frames(mask) for mask in draw(jnp.arange(40))} == {"0111", "1011", "1101", "1110"}


def test_num_given_is_obeyed():
    assert frames(task_mask(jax.random.key(0), "predict", (6, 2, 2), num_given=2)) == "001111"
    assert frames(task_mask(jax.random.key(0), "backward", (6, 2, 2), num_given=5)) == "100000"


@pytest.mark.parametrize(
    ("task", "num_given", "message"),
    [
        ("predict", 6, "num_given must be 1 to 5 for 6 frames, got 6"),
        ("predict", 0, "got 0"),
        ("unconditional", 2, "num_given is for predict and backward"),
        ("x", None, "'x'"),
    ],
)
def test_impossible_masks_are_refused(task, num_given, message):
    with pytest.raises(UserError, match=message):
        task_mask(jax.random.key(0), task, (6, 2, 2), num_given)


def test_blocks_for_sampling_do_not_depend_on_where_they_stand():
    """The key of the block does not also draw the frames that it stands on."""
    draw = jax.jit(jax.vmap(lambda key: task_mask(key, "spatial_temporal", (16, 8, 8))))
    keys = jax.random.split(jax.random.key(0), 400)
    masks = np.asarray(draw(keys))[..., 0]
    last = 15 - masks.any((2, 3))[:, ::-1].argmax(1)
    end_keys = jax.vmap(lambda key: jax.random.split(key, 3)[2])(keys)
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(end_keys)  # by the key of the block
    assert (15 - np.asarray(drawn) == last).mean() < 0.5


def test_an_unknown_mixture_is_refused():
    with pytest.raises(UserError, match="mask_mixture must be one of varied, official, got 'offical'"):
        task_mask(jax.random.key(0), "predict", (6, 2, 2), mixture="offical")


@pytest.mark.parametrize("grid", [32, 16])
def test_block_masks_have_the_official_statistics(grid):
    golden = np.load(GOLDENS / "mask_stats.npz")
    blocks = np.asarray(
        jax.jit(jax.vmap(lambda key: block_mask(key, (grid, grid))))(jax.random.split(jax.random.key(0), 4000))
    )
    cells, official = blocks.sum((1, 2)), golden[f"block{grid}_coverage_cells"]
    assert official.min() - 6 <= cells.min() and cells.max() <= official.max()
    assert cells.mean() == pytest.approx(official.mean(), abs=6 * official.std() / np.sqrt(4000))
    # 4,000 and 20,000 draws: the difference of two frequencies near 1/2 has a standard deviation of 0.0087.
    difference = blocks.mean(0) - golden[f"block{grid}_cell_frequency"]
    assert np.abs(difference).max() < 5 * 0.0087 and abs(difference.mean()) < 0.002


def test_drawing_masks_needs_no_word_from_other_devices(monkeypatch):
    """A loop that ends when all masks are done would ask all devices after each rectangle."""
    sharding = batch_sharding(make_mesh())

    def drawn(rectangles):
        monkeypatch.setattr(module, "_RECTANGLES", rectangles)
        keys = jax.device_put(jax.random.split(jax.random.key(0), 256), sharding)
        draw = jax.jit(lambda keys: jax.vmap(lambda key: block_mask(key, (16, 16)))(keys), out_shardings=sharding)
        return hlo.Program(draw.lower(keys).compile().as_text()), np.asarray(draw(keys))

    (program, drawn_masks), (_, more) = drawn(module._RECTANGLES), drawn(100)
    assert program.endless() == program.collectives() == []
    np.testing.assert_array_equal(drawn_masks, more)
    assert (drawn(20)[1] != more).any()


@pytest.fixture(scope="module")
def official_mixture():
    draw = jax.jit(lambda key: draw_masks(key, 2000, (16, 16, 16), "official"))
    return np.concatenate([np.asarray(draw(jax.random.key(i))) for i in range(5)])[..., 0]


def test_official_mixture_has_the_official_statistics(official_mixture):
    golden = np.load(GOLDENS / "mask_stats.npz")
    empty = (official_mixture.sum((1, 2, 3)) == 0).mean()
    everything = (official_mixture.mean((1, 2, 3)) == 1).mean()
    frequency = official_mixture.mean((0, 2, 3))
    # 10,000 draws against 20,000: five standard deviations.
    assert empty == pytest.approx(float(golden["mixture_empty"]), abs=0.0135)
    assert everything == pytest.approx(float(golden["mixture_all_generated"]), abs=0.021)
    np.testing.assert_allclose(frequency, golden["mixture_frame_generated"], atol=0.03)


def test_official_mixture_is_for_16_frames():
    with pytest.raises(UserError, match="16 frames, not 8"):
        draw_masks(jax.random.key(0), 2, (8, 4, 4), "official")
    with pytest.raises(UserError, match="'offical'"):
        draw_masks(jax.random.key(0), 2, (16, 4, 4), "offical")


@pytest.mark.parametrize("num_frames", [1, 2, 5, 16])
def test_varied_masks_always_generate_something(num_frames):
    masks = np.asarray(jax.jit(lambda key: draw_masks(key, 500, (num_frames, 8, 8)))(jax.random.key(1)))
    assert masks.shape == (500, num_frames, 8, 8, 1)
    assert set(np.unique(masks)) <= {0.0, 1.0}
    assert (masks.sum((1, 2, 3, 4)) > 0).all()


def test_varied_predict_gives_every_number_of_frames():
    draw = jax.jit(jax.vmap(lambda key: varied_mask(key, jnp.array(0), (6, 2, 2))))
    masks = draw(jax.random.split(jax.random.key(0), 200))
    assert {frames(mask) for mask in masks} == {"011111", "001111", "000111", "000011", "000001"}


@pytest.mark.parametrize("draw", [official_mask, varied_mask])
def test_masks_drawn_together_are_those_drawn_one_by_one(draw):
    keys, shape = jax.random.split(jax.random.key(3), 7), (16, 8, 8)
    one = jax.jit(lambda key, task: draw(key, task, shape))
    together = jax.jit(jax.vmap(one))(keys, jnp.arange(7))
    for task in range(len(TASKS)):
        np.testing.assert_array_equal(together[task], one(keys[task], jnp.array(task)))


def test_apply_mask_lets_nothing_through():
    mask = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1, 1)
    generated = jnp.full((1, 2, 1, 1, 3), jnp.inf)
    out = apply_mask(mask, generated, jnp.ones((1, 2, 1, 1, 3)))
    np.testing.assert_array_equal(out[0, :, 0, 0, 0], [np.inf, 1.0])
