"""The one training loop, which knows the contract and no algorithm."""
