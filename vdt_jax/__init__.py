"""VDT, the Video Diffusion Transformer (Lu et al., ICLR 2024, arXiv 2305.13311), in JAX and Flax."""
