"""As which user a QEMU runs: what a pair file names, and what the machine has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fakes import FakeHost, make_spec

from coloctl.colo import accounts
from coloctl.errors import PreconditionFailed
from coloctl.host.machine import this_machine
from coloctl.host.records import Machine
from coloctl.model.launch import Account
from coloctl.model.pair import PairSpec

QEMU = Account("coloctl-qemu", 998, 997)
ALICE = Account("alice", 1000, 1000)


class Place(FakeHost):
    """A machine with some accounts, on which coloctl is the user ``euid``."""

    def __init__(self, euid: int, *known: Account, here: bool = True) -> None:
        super().__init__("a", [])
        self.euid, self.known, self.here = euid, known, here
        self.asked: list[str] = []

    @property
    def machine(self) -> Machine:
        own = this_machine()
        boot = own.boot_id if self.here else "another"
        return replace(own, name="hv1", euid=self.euid, boot_id=boot)

    async def account(self, user: str) -> Account | None:
        self.asked.append(user)
        return next((one for one in self.known if user in (one.name, str(one.uid))), None)


def spec_of(user: str) -> PairSpec:
    spec = make_spec()
    return replace(spec, guest=replace(spec.guest, user=user))


@pytest.mark.parametrize(
    ("user", "euid", "known", "found"),
    [
        ("auto", 0, (QEMU, ALICE), QEMU),
        ("auto", 0, (ALICE,), None),
        ("auto", 1000, (QEMU, ALICE), None),
        ("auto", 998, (QEMU,), None),
        ("root", 0, (QEMU,), None),
        ("root", 1000, (QEMU,), None),
        ("alice", 0, (QEMU, ALICE), ALICE),
        ("1000", 0, (QEMU, ALICE), ALICE),
        ("alice", 1000, (ALICE,), None),
        ("0", 0, (Account("root", 0, 0),), None),
    ],
)
async def test_the_user_of_a_qemu(
    user: str, euid: int, known: tuple[Account, ...], found: Account | None
) -> None:
    assert await accounts.find(spec_of(user), Place(euid, *known)) == found


@pytest.mark.parametrize(
    ("user", "euid", "known", "sentence"),
    [
        ("bob", 0, (QEMU,), "There is no user bob on hv1."),
        ("alice", 1001, (ALICE,), "Only root starts a QEMU as another user"),
        ("bob", 1001, (), "coloctl is user id 1001 on hv1"),
    ],
)
async def test_a_named_user_that_cannot_be_taken_is_refused(
    user: str, euid: int, known: tuple[Account, ...], sentence: str
) -> None:
    with pytest.raises(PreconditionFailed, match=sentence):
        await accounts.find(spec_of(user), Place(euid, *known))


async def test_another_machine_needs_the_account_or_root_by_name() -> None:
    with pytest.raises(PreconditionFailed, match="hv1 has no account coloctl-qemu") as refused:
        await accounts.find(spec_of("auto"), Place(0, ALICE, here=False))
    assert "coloctl host add hv1" in str(refused.value.hint)
    assert 'guest.user = "root"' in str(refused.value.hint)
    for user in ("root", "alice"):
        await accounts.find(spec_of(user), Place(0, ALICE, here=False))
    assert await accounts.find(spec_of("auto"), Place(0, QEMU, here=False)) == QEMU
    assert await accounts.find(spec_of("auto"), Place(1000, here=False)) is None


@pytest.mark.parametrize(
    ("uid", "account", "name"),
    [
        (998, QEMU, "coloctl-qemu"),
        (-1, QEMU, "coloctl-qemu"),
        (0, QEMU, "root"),
        (0, None, "root"),
        (1000, None, "1000"),
        (-1, None, ""),
    ],
)
def test_the_user_that_is_shown_is_the_process_s(
    uid: int, account: Account | None, name: str
) -> None:
    assert accounts.named(uid, account) == name


async def test_no_account_is_asked_for_where_coloctl_is_to_run_it_itself() -> None:
    place = Place(0, QEMU)
    assert await accounts.find(spec_of("root"), place) is None
    assert place.asked == []
