"""Give a machine what a pair needs there, step by step: account and certificate.

Called by `cli.verbs.host`; calls `colo.accounts` for the account of QEMU, `certs.store` for the
certificate, and `check.machine_there` for its folder. Invariant: each step may be repeated, and
where one fails those before it are undone.
"""

from __future__ import annotations

import contextlib
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from coloctl.certs import store
from coloctl.check.finding import Precondition, Severity
from coloctl.check.machine_there import account_finding, certificate_folder
from coloctl.colo import accounts
from coloctl.errors import ColoctlError
from coloctl.host.base import Host
from coloctl.host.records import Contact
from coloctl.hostlist import ListedHost


async def plan(there: Host) -> list[Precondition]:
    """Report what `provide` would make on the machine; changes nothing."""
    if there.machine.euid == 0 and await there.account(accounts.ACCOUNT) is None:
        sentence = f"The account {accounts.ACCOUNT} is made on {there.machine.name}."
        return [Precondition("account", Severity.INFO, sentence)]
    return await account_finding(there)


async def provide(there: Host, one: ListedHost) -> list[Precondition]:
    """Make what is missing on the machine; raises `ColoctlError`, and nothing of it is left."""
    async with AsyncExitStack() as undo:
        found = [*await _account(there, undo), await _certify(there, one)]
        undo.pop_all()
    return found


async def _account(there: Host, undo: AsyncExitStack) -> list[Precondition]:
    if there.machine.euid == 0 and await there.account(accounts.ACCOUNT) is None:
        made = await accounts.make(there)
        undo.push_async_callback(_unmake_account, there)
        sentence = f"QEMU runs as {made.name} there: the account was made (user id {made.uid})."
        return [Precondition("account", Severity.OK, sentence)]
    return await account_finding(there)


async def _unmake_account(there: Host) -> None:
    with contextlib.suppress(ColoctlError):  # the first failure is the one to report
        await accounts.unmake(there)


async def _certify(there: Host, one: ListedHost) -> Precondition:
    """Give the machine its certificate; raises `PreconditionFailed`."""
    authority, now = store.Authority(store.authority_dir()), datetime.now(UTC)
    if not authority.exists():
        authority.make(now)
    made = authority.provide(one.name, one.addresses, now)
    if there.machine.euid and there.reach.contact is not Contact.HERE:
        sentence = (
            f"User id {there.machine.euid} of {there.machine.name} has no right to "
            f"{certificate_folder(there)}: the certificate for {one.name} stays here, "
            f"in {made.folder}."
        )
        hint = "copy it to a folder of that user there, and name that by [tls] folders"
        return Precondition("certificate", Severity.WARNING, sentence, hint)
    place = certificate_folder(there)
    await there.make_private(place)
    for name in (store.CA_CERT, store.KEY, store.CERT):
        await there.put(place / name, (made.folder / name).read_bytes(), 0o600)
    sentence = f"Its certificate for {one.name} ends on {made.facts.until:%Y-%m-%d}: {place}."
    return Precondition("certificate", Severity.OK, sentence)
