"""What systemd on a machine means for a QEMU there, from what the machine answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import FakeHost

from coloctl.check.logins import ASK, LINGER, examine_logins
from coloctl.host.machine import this_machine
from coloctl.host.records import Completed, Machine
from coloctl.host.systemd import BOOTED

BUS = Path("/run/dbus/system_bus_socket")


class Place(FakeHost):
    """A machine with some files, whose logind answers ``kills``."""

    def __init__(self, euid: int, *files: Path, kills: str = "b false") -> None:
        super().__init__("a", [])
        self.euid, self.files, self.kills = euid, files, kills

    @property
    def machine(self) -> Machine:
        return replace(this_machine(), name="hv2", euid=self.euid)

    async def usable(self, path: Path, mode: int) -> str:
        return "" if path in self.files else "No such file or directory"

    async def which(self, program: str) -> Path | None:
        return Path("/usr/bin", program)

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        assert tuple(argv) in (ASK, ("id", "-un"))
        return Completed(0, f"{'alice' if argv[0] == 'id' else self.kills}\n", "")


@pytest.mark.parametrize(
    ("place", "severity", "sentence", "hint"),
    [
        (Place(0), "info", "systemd does not run on hv2", ""),
        (Place(0, BOOTED, BUS), "ok", "Each QEMU gets a unit", ""),
        (Place(0, BOOTED), "warning", "there is no D-Bus", "apt-get install dbus"),
        (Place(7, BOOTED), "ok", "outlives the login", ""),
        (Place(7, BOOTED, kills="b true"), "warning", "what alice leaves", "enable-linger alice"),
        (Place(7, BOOTED, LINGER / "alice", kills="b true"), "ok", "outlives the login", ""),
        (Place(7, BOOTED, kills=""), "ok", "outlives the login", ""),
    ],
)
async def test_what_systemd_means_there(
    place: Place, severity: str, sentence: str, hint: str
) -> None:
    (found,) = await examine_logins(place)
    assert str(found.severity) == severity and sentence in found.sentence and hint in found.hint
