"""Provide fault tolerance for QEMU virtual machines, built on COLO.

``coloctl.pair`` is the entry point for Python programs (docs/python-api.md), made by `api.pair`. It
is loaded when it is first used: the command line imports this package too, and starts quickly.
Types are in __init__.pyi.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__", "pair"]


def __getattr__(name: str) -> object:
    if name == "pair":
        import importlib

        return importlib.import_module("coloctl.api.pair").pair
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
