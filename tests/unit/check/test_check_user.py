"""What the doctor says of the user as which the QEMUs of a pair would run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fakes import FakeHost, make_spec

from coloctl.check.finding import guarded
from coloctl.check.user import examine_user
from coloctl.host.machine import this_machine
from coloctl.host.records import Machine
from coloctl.model.launch import Account
from coloctl.model.pair import NodeName

QEMU = Account("coloctl-qemu", 998, 997)


class Place(FakeHost):
    """A machine, with the account or without it."""

    def __init__(self, node: NodeName, name: str, euid: int, account: Account | None) -> None:
        super().__init__(node, [])
        self.called, self.euid, self.known = name, euid, account

    @property
    def machine(self) -> Machine:
        return replace(this_machine(), name=self.called, euid=self.euid)

    async def account(self, user: str) -> Account | None:
        return self.known if self.known and user == self.known.name else None


@pytest.mark.parametrize(
    ("user", "a", "b", "said"),
    [
        ("auto", ("hv1", 0, QEMU), ("hv1", 0, QEMU), ["ok: Both QEMUs run as coloctl-qemu"]),
        ("auto", ("hv1", 0, None), ("hv1", 0, None), ["ok: Both QEMUs run as root on hv1"]),
        ("root", ("hv1", 0, QEMU), ("hv1", 0, QEMU), ["ok: Both QEMUs run as user id 0"]),
        ("auto", ("hv1", 1000, QEMU), ("hv1", 1000, QEMU), ["ok: Both QEMUs run as user id 1000"]),
        (
            "auto",
            ("hv1", 0, QEMU),
            ("hv2", 0, None),
            [
                "ok: The QEMU of node a runs as coloctl-qemu",
                "ok: The QEMU of node b runs as root",
            ],
        ),
        ("bob", ("hv1", 0, QEMU), ("hv1", 0, QEMU), ["error: There is no user bob on hv1."]),
    ],
)
async def test_the_doctor_names_the_user(
    user: str,
    a: tuple[str, int, Account | None],
    b: tuple[str, int, Account | None],
    said: list[str],
) -> None:
    spec = make_spec()
    spec = replace(spec, guest=replace(spec.guest, user=user))
    found = await guarded("user", examine_user(spec, {"a": Place("a", *a), "b": Place("b", *b)}))
    lines = [f"{one.severity}: {one.sentence}" for one in found]
    assert len(lines) == len(said)
    assert all(line.startswith(want) for line, want in zip(lines, said, strict=True)), lines
    assert all("coloctl host add" in one.hint for one in found if "as root" in one.sentence)
