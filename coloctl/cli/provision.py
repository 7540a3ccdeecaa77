"""Describe the QEMU and the guest of the lab for JSON and for people.

Called by `cli.verbs.lab_goods` with builds of `lab.qemu` and choices of `check.choose`.
"""

from __future__ import annotations

from typing import Any

from coloctl.check.choose import WorkingQemu, called
from coloctl.lab.qemu import Build


def build_document(build: Build) -> dict[str, Any]:
    """Return the document of a build."""
    return {
        "name": build.name,
        "suite": build.suite,
        "version": build.version,
        "binary": str(build.binary),
        "img": str(build.img),
    }


def choice_document(choice: WorkingQemu) -> dict[str, Any]:
    """Return the document of a choice."""
    return {
        **build_document(choice.build),
        "accel": choice.accel,
        "why": choice.why,
        "passed-over": list(choice.passed_over),
        "accelerators": choice.accelerators,
        "fresh-code": choice.fresh_code,
    }


def choice_lines(choice: WorkingQemu) -> list[str]:
    """Format a choice for people: the build, the reason, and the builds passed over."""
    return [
        f"{called(choice.build)} holds COLO here under {choice.accel}.",
        f"  {choice.build.binary}",
        f"  {choice.build.img}",
        "",
        f"  {choice.why}",
        f"  {choice.accelerators}",
        *([f"  {choice.fresh_code}"] if choice.fresh_code else []),
        *(f"  Passed over: {sentence}" for sentence in choice.passed_over),
    ]
