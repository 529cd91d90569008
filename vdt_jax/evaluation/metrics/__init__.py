"""Metrics of video samples against the truth, and baselines without a model."""
