"""From a checkpoint and an input to samples."""
