"""How many examples of a property are tried, where the default of `make test` is too many."""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def at_most(count: int, **more: Any) -> settings:
    """Try that many examples, or as many as the profile does where that is fewer."""
    return settings(max_examples=min(count, settings().max_examples), deadline=None, **more)
