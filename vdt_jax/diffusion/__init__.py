"""The diffusion process: schedules, losses, masks, guidance, samplers."""
