"""Training: the step, the optimizer, the loop, validation."""
