"""Decide as which user the QEMU of a node runs.

Called by `colo.inspect` once, when a pair is started, and by `check.user`; asks `host` for the
account.

Rules: ``root`` is coloctl's own user. ``auto`` takes the account `ACCOUNT` where coloctl runs as
root on that machine and the machine has the account, and coloctl's own user elsewhere. Any other
value names a user that must be there, because a weaker choice in silence would be no protection.

Invariant: None stands for coloctl's own user, and no other user of number 0 is returned.
"""

from __future__ import annotations

from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.model.launch import Account
from coloctl.model.pair import PairSpec

#: The account that ``guest.user = "auto"`` takes.
ACCOUNT = "coloctl-qemu"
AUTO, OWN = "auto", "root"


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
    return found
