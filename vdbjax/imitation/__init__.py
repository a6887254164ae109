"""Learning from demonstrations: a reward is learnt, then optimised."""
