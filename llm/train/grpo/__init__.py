"""Group-relative policy optimisation: prompts, rewards, rollouts, rows, loss."""
