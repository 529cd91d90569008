"""Networks: VDT and the Stable Diffusion autoencoder, in Flax Linen."""
