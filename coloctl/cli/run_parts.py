"""Provide QEMU, accelerator and guest for a lab, and check what clients need.

Called by `cli.bench_options`, `cli.verbs.demo` and `cli.verbs.chaos`; asks `check.choose` for the
parts and shows progress where something is fetched.
"""

from __future__ import annotations

import importlib.util

from coloctl.check import choose
from coloctl.check.choose import RunParts
from coloctl.cli.views.downloads import Bars
from coloctl.errors import UsageError


def require_clients(who: str, *, page: bool = False) -> None:
    """Require the library of the clients, and that of the page; raises `UsageError` otherwise."""
    needs = {"redis": f"The clients of {who} need redis-py"}
    if page:
        needs["jinja2"] = f"The page of {who} needs Jinja"
    for module, sentence in needs.items():
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"{sentence}, which is not installed.", hint="pip install 'coloctl[demo]'"
            )


def engage(qemu: str | None) -> RunParts:
    """Find binary, accelerator and guest, fetched where need be.

    Raises what `check.choose.engage` raises.
    """
    with Bars() as bars:
        return choose.engage(qemu, bars.report)
