"""Give a machine what a pair needs there, step by step: account, certificate, QEMU.

Called by `cli.verbs.host`; calls `colo.accounts` for the account of QEMU, `certs.store` for the
certificate, `check.machine_there` for its folder, and `cli.host_qemu` for a QEMU.

Invariant: each step may be repeated, and where one fails those before it are undone.
"""

from __future__ import annotations

import contextlib
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

from coloctl.certs import store
from coloctl.check.finding import Precondition, Severity
from coloctl.check.machine_there import account_finding, certificate_folder
from coloctl.cli import host_qemu
from coloctl.colo import accounts
from coloctl.errors import ColoctlError
from coloctl.host.base import Host
from coloctl.host.records import Contact
from coloctl.hostlist import ListedHost
from coloctl.lab.progress import Report


async def plan(there: Host, qemu: str | None) -> list[Precondition]:
    """Report what `provide` would make on the machine; changes nothing."""
    choice = await host_qemu.choose(there, qemu)
    return [*await _planned_account(there), *host_qemu.planned(there, choice)]


async def _planned_account(there: Host) -> list[Precondition]:
    if there.machine.euid == 0 and await there.account(accounts.ACCOUNT) is None:
        sentence = f"The account {accounts.ACCOUNT} is made on {there.machine.name}."
        return [Precondition("account", Severity.INFO, sentence)]
    return await account_finding(there)


async def provide(
    there: Host, one: ListedHost, qemu: str | None, report: Report
) -> tuple[ListedHost, list[Precondition]]:
    """Make what is missing on the machine; return its entry for the list, and what was done.

    Raises `ColoctlError`, and nothing of it is left.
    """
    choice = await host_qemu.choose(there, qemu)
    async with AsyncExitStack() as undo:
        found = await _account(there, undo)
        path, sent = await host_qemu.provide(there, choice, undo, report)
        found += [*sent, await _certify(there, one)]
        undo.pop_all()
    return replace(one, qemu=path or one.qemu), found


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
