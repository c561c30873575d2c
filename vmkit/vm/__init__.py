"""Floor 2: one VM on one host."""
