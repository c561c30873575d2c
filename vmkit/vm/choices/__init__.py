"""How a VM is virtualised: every choice, with its reason and what was not taken. Pure; one module for each concern."""
