"""Policy optimisation: knows rewards, not where they come from."""
