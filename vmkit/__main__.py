"""`python -m vmkit` is the same as `vmkit`."""

from vmkit.cli.main import main

main()
