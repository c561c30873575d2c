"""`python -m vmkit` is the same as `vmkit`."""

from vmkit.cli.program import program

program()
