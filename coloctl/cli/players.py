"""What plays in a lab: a QEMU that holds COLO here, and the lab's guest; fetched if need be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from coloctl.check.trial import holds_colo
from coloctl.cli import provision
from coloctl.cli.downloads import Bars
from coloctl.errors import UnsupportedQEMU, UsageError
from coloctl.lab.guest import GuestImage


class Players(NamedTuple):
    """A binary, an accelerator under which it holds COLO, and a guest."""

    qemu: Path
    accel: str
    guest: GuestImage


def require_clients(who: str) -> None:
    """The library of the clients is there; raises `UsageError` otherwise."""
    if importlib.util.find_spec("redis") is None:
        raise UsageError(
            f"The clients of {who} need redis-py, which is not installed.",
            hint="pip install 'coloctl[demo]'",
        )


def engage(qemu: str | None) -> Players:
    """Binary, accelerator and guest are there; progress is shown where something is fetched.

    Raises `UnsupportedQEMU` when the QEMU that was asked for does not hold COLO.
    """
    with Bars() as bars:
        binary, accel = choose(qemu, bars)
        return Players(binary, accel, provision.lab_guest(bars.report))


def choose(qemu: str | None, bars: Bars) -> tuple[Path, str]:
    """A QEMU by name or path, or else the one that is best here, and its accelerator."""
    if qemu is None:
        choice = provision.choose_qemu(bars.report)
        return choice.build.binary, choice.accel
    binary = provision.named_qemu(qemu)
    accel = provision.usable_accelerators(bars.report)[0][0]
    trial = holds_colo(binary, accel)
    if not trial.works:
        raise UnsupportedQEMU(trial.sentence, hint="`coloctl probe --full` shows more")
    return binary, accel
