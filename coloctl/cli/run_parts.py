"""Provide QEMU, accelerator and guest for a lab, and check what a run needs.

Called by `cli.bench_options`, `cli.verbs.demo` and `cli.verbs.chaos`; asks `check.choose` for the
parts and shows progress where something is fetched.
"""

from __future__ import annotations

import importlib.util

from coloctl.check import choose
from coloctl.check.choose import RunParts
from coloctl.cli.views.downloads import Bars
from coloctl.errors import UsageError

#: The libraries of the extra ``demo``, by what needs them.
LIBRARIES = {
    "clients": ("redis", "The clients of {} need redis-py"),
    "page": ("jinja2", "The page of {} needs Jinja"),
    "junit": ("junitparser", "The JUnit XML of {} needs junitparser"),
}


def require_libraries(who: str, *uses: str) -> None:
    """Require the libraries of ``uses``, keys of `LIBRARIES`; raises `UsageError` otherwise."""
    for module, sentence in map(LIBRARIES.__getitem__, uses):
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"{sentence.format(who)}, which is not installed.",
                hint="pip install 'coloctl[demo]'",
            )


def engage(qemu: str | None) -> RunParts:
    """Find binary, accelerator and guest, fetched where need be.

    Raises what `check.choose.engage` raises.
    """
    with Bars() as bars:
        return choose.engage(qemu, bars.report)
