"""The lossless coder: host side, NumPy alone. Nothing here imports jax or knows a network."""
