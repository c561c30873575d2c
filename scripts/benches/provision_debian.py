"""How long until a Debian guest is ready: the ways of provision.py, with the image that most guests resemble."""

from __future__ import annotations

from typing import Any

import provision

SUMMARY = "Debian 12 guest from nothing to ready, as provision: takes half an hour without KVM (needs root)"


def run(*, quick: bool, uri: str | None) -> dict[str, Any]:
    """Measure; returns rows, ratios and claims."""
    return provision.compared("debian-12", ["debian", "--release", "12"], 512, 2 if quick else 5, uri)
