"""Tasks behind one protocol: batches of episodes as pure functions."""
