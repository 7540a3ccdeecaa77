"""Report the progress of long work; the terminal decides how to draw it.

Used by `lab.apt`, `lab.qemu`, `lab.guestbuild`, `lab.compiler` and `check.choose`; drawn by
`cli.views.downloads`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One step forward: ``what`` is being done, and how far it is where that can be counted."""

    what: str
    done_bytes: int | None = None
    total_bytes: int | None = None


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report to no reader."""
