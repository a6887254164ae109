"""Data from files: expert demonstrations, and what else is learned from rather than simulated."""
