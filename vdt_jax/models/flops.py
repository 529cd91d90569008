"""FLOPs of a VDT, computed from its sizes: XLA's own count takes the body of a scan once.

A multiplication with its addition counts as two. With N tokens per frame, F frames, width D and MLP ratio r, a block
does for each token 2 D^2 (4 + 1 + 4 + 2r) in its linear maps (temporal qkv and proj, temporal_fc, spatial qkv and proj,
MLP) and 4 D (F + N) in the two attentions; an image model has no temporal ones. Work per sample (adaLN, the timestep's
MLP) is included; norms, softmax and sums are not.
"""

from vdt_jax.models.vdt import VDT

# Dense bf16 peak of one device in FLOP/s, from the vendors' data sheets, by prefix of jax's device_kind.
PEAK_FLOPS = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
_TIMESTEP_FEATURES = 256


def forward_flops(model: VDT) -> float:
    """FLOPs of the network's forward pass for one sample."""
    width, frames = model.hidden_size, model.num_frames
    tokens_a_frame = model.grid[0] * model.grid[1]
    out_channels = model.in_channels * (2 if model.learn_sigma else 1)
    linear = 2 * width**2 * ((9 if model.temporal else 4) + 2 * model.mlp_ratio)
    attention = 4 * width * ((frames if model.temporal else 0) + tokens_a_frame)
    ends = 2 * width * model.patch_size**2 * (model.in_channels + out_channels)
    token = model.depth * (linear + attention) + ends
    conditions = 2 * width**2 * (6 * model.depth + 2) + 2 * width * (_TIMESTEP_FEATURES + width)
    return float(frames * tokens_a_frame * token + conditions)


def training_flops(model: VDT) -> float:
    """FLOPs of a training step for one sample: the backward pass is two forward passes; remat is not counted."""
    return 3 * forward_flops(model)


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None if unknown, as for CPUs."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if device_kind.startswith(kind)), None)


def utilisation(
    model: VDT, batch_size: int, device_kind: str, num_devices: int, steps_per_second: float
) -> float | None:
    """Model FLOPs utilisation of training (Chowdhery et al. 2022, arXiv 2204.02311, app. B), 0 to 1.

    Relative to the bf16 peak for every dtype; None if the peak is unknown.
    """
    peak = peak_flops(device_kind)
    if peak is None:
        return None
    return training_flops(model) * batch_size * steps_per_second / (num_devices * peak)
