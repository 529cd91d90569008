"""Pixels and latents: which of them a model works on, and a cache of latents."""
