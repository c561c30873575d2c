"""Hotfix: changing the code of what already runs, as a transaction that is verified before, during and after."""
