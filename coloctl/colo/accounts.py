"""Decide as which user the QEMU of a node runs, and make the account for it.

Called by `colo.inspect` once, when a pair is started, by `check.user` and `cli.host_add`; asks
`host` for the account. `supervisor.acts.protect` and `supervisor.adopt` take the name of one.

Rules: ``root`` is coloctl's own user. ``auto`` takes the account `ACCOUNT` where coloctl is root on
that machine, and coloctl's own user where it is not root. Without the account, ``auto`` is
coloctl's own user on this machine, and refused on another one. Any other value names a user that
must be there. A weaker choice in silence would be no protection.

Invariant: None stands for coloctl's own user, and no other user of number 0 is returned.
"""

from __future__ import annotations

from coloctl.colo.ground import is_here
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.launch import Account
from coloctl.model.pair import PairSpec

#: The account that ``guest.user = "auto"`` takes.
ACCOUNT = "coloctl-qemu"
AUTO, OWN = "auto", "root"

#: Makes the account: with a group of its own, without a home, a shell or a password.
MAKE = (
    "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",  # ssh may give a shorter one
    "useradd", "--system", "--user-group", "--no-create-home",
    "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", ACCOUNT,
)  # fmt: skip
#: Both wait for the lock of the table of users.
_COMMAND_DEADLINE_S = 30.0


async def find(spec: PairSpec, host: Host) -> Account | None:
    """Find the account for a QEMU of ``spec`` on ``host``; None: coloctl's own user.

    Raises `PreconditionFailed` for a named user that is not there, or cannot be taken.
    """
    wanted, machine = spec.guest.user, host.machine
    if wanted == OWN:
        return None
    found = await host.account(ACCOUNT if wanted == AUTO else wanted)
    if found is not None and found.uid == machine.euid:
        return None
    if machine.euid != 0:
        if wanted == AUTO:
            return None
        raise PreconditionFailed(
            f"Only root starts a QEMU as another user, and coloctl is user id {machine.euid} on "
            f"{machine.name}.",
            hint='guest.user = "auto" runs it as coloctl\'s own user',
        )
    if found is None and wanted != AUTO:
        raise PreconditionFailed(
            f"There is no user {wanted} on {machine.name}.",
            hint=f"`adduser --system --group --no-create-home {wanted}` makes one",
        )
    if found is None and not is_here(machine):
        raise PreconditionFailed(
            f"{machine.name} has no account {ACCOUNT}, as which QEMU is to run there.",
            hint=f"`coloctl host add {machine.name} {host.name}` makes it; "
            'guest.user = "root" runs QEMU as root',
        )
    return found


def named(uid: int, account: Account | None) -> str:
    """Return the name of the user ``uid`` of a QEMU, started as ``account``; a number for others.

    Empty where its kernel did not report it.
    """
    if account is not None and uid in (account.uid, -1):
        return account.name
    return {0: OWN, -1: ""}.get(uid, str(uid))


async def make(host: Host) -> Account:
    """Make the account for QEMU on ``host``; raises `PreconditionFailed`."""
    done = await host.run(MAKE, deadline_s=_COMMAND_DEADLINE_S)
    found = await host.account(ACCOUNT) if done.code == 0 else None
    if found is None:
        why = (done.stderr.strip().splitlines() or [f"useradd ended with {done.code}"])[-1]
        raise PreconditionFailed(
            f"The account {ACCOUNT} could not be made on {host.machine.name}: {why}.",
            hint=f"`{' '.join(MAKE[2:])}` there shows what is wrong",
        )
    return found


async def unmake(host: Host) -> None:
    """Remove an account that `make` has just made and no QEMU has used."""
    await host.run([*MAKE[:2], "userdel", ACCOUNT], deadline_s=_COMMAND_DEADLINE_S)
