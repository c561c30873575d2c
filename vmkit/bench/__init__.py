"""Floor 3: how fast guests are, beside the host itself."""
