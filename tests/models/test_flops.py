"""The count of arithmetic against the published sizes and against XLA, where XLA counts right."""

import jax
import jax.numpy as jnp
import pytest

from vdt_jax.models.flops import forward_flops, peak_flops, training_flops, utilisation
from vdt_jax.models.vdt import VDT, VDT_VARIANTS


@pytest.mark.parametrize(("name", "tera"), [("VDT-L/2", 5.3196), ("VDT-S/2", 0.2671)])
def test_the_count_of_the_paper_s_sizes(name, tera):
    assert forward_flops(VDT(**VDT_VARIANTS[name])) / 1e12 == pytest.approx(tera, abs=5e-5)


@pytest.mark.parametrize("temporal", [True, False])
def test_xla_counts_the_same_in_one_block(temporal):
    """At depth 1 the scan's body counts rightly; norms, softmax and GELU make XLA's count a little larger."""
    model = VDT(input_size=16, num_frames=4, hidden_size=256, depth=1, num_heads=4, temporal=temporal)
    x, t = jnp.zeros((1, *model.video_shape)), jnp.zeros(1)
    params = jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]
    compiled = jax.jit(lambda p: model.apply({"params": p}, x, t)).lower(params).compile()
    counted = compiled.cost_analysis()
    assert counted is not None
    assert 1 <= counted["flops"] / forward_flops(model) < 1.05


def test_utilisation_is_a_share_of_the_peak():
    model = VDT(**VDT_VARIANTS["VDT-L/2"])
    assert training_flops(model) == 3 * forward_flops(model)
    assert utilisation(model, 31, "NVIDIA H100 80GB HBM3", 1, 2.0) == pytest.approx(1.0, abs=0.001)
    assert utilisation(model, 31, "NVIDIA H100 80GB HBM3", 2, 2.0) == pytest.approx(0.5, abs=0.001)
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5p") == 459e12
    assert peak_flops("cpu") is None and utilisation(model, 1, "cpu", 1, 1.0) is None
