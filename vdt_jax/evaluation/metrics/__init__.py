"""How near samples are to the truth, and what simple baselines reach."""
