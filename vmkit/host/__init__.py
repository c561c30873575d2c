"""Floor 1: what a host can do, found out by trying."""
