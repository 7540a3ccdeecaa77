"""Examine a machine as a place for the node of a pair, through the host layer: here or over ssh.

Called by `cli.verbs.host`, `cli.host_add` and `check.connection`. `check.link` measures a link,
`check.interfaces` looks at bridges, bonds and addresses, `check.processors` compares two machines,
`colo.inspect` finds the accelerators, `colo.accounts` names the account of QEMU, `check.logins`
looks at systemd, and `certs.read` reads the certificate.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from coloctl.certs import read, store
from coloctl.check import interfaces, link, logins, processors
from coloctl.check.finding import Precondition, Severity, guarded
from coloctl.check.machine import COMMAND_DEADLINE_S, available_mib
from coloctl.colo import accounts, clocks
from coloctl.colo.inspect import kvm_trial
from coloctl.colo.tls import DISTANT_FOLDER, FILE_BYTES
from coloctl.errors import ColoctlError
from coloctl.host.base import Host
from coloctl.host.records import Contact
from coloctl.host.tap import TUN_NODE
from coloctl.model.pair import NodeName
from coloctl.vm import inspect

_QEMU = "qemu-system-x86_64"


async def examine_host(
    host: Host, name: str, addresses: tuple[str, ...], bridges: Collection[str] = ()
) -> list[Precondition]:
    """Find all that is to report about the machine called ``name``; changes nothing there.

    ``bridges`` are those that pairs name on it.
    """
    return [
        *await guarded("agent", _agent(host)),
        *await guarded("kernel", _kernel(host)),
        *await guarded("clock", examine_clock(host)),
        *await guarded("qemu", _qemu(host)),
        *await guarded("tun", _tun(host)),
        *await guarded("memory", _memory(host)),
        *await guarded("bridges", interfaces.examine_interfaces(host, addresses, bridges)),
        *await guarded("account", account_finding(host)),
        *await guarded(logins.NAME, logins.examine_logins(host)),
        *await guarded("certificate", _certificate(host, name, addresses)),
    ]


async def examine_link(here: Host, there: Host, address: str) -> list[Precondition]:
    """Report the link from one machine to the other's ``address``, and compare processors."""

    async def look() -> list[Precondition]:
        return link.findings(here, there, await link.measure(here, there, address))

    return [
        *await guarded(link.NAME, look()),
        *await guarded(processors.NAME, _processors(here, there)),
    ]


async def _processors(here: Host, there: Host) -> list[Precondition]:
    hosts: dict[NodeName, Host] = {"a": here, "b": there}
    found = {node: await host.which(_QEMU) for node, host in hosts.items()}
    binaries = {node: binary for node, binary in found.items() if binary is not None}
    return await processors.examine_processors(hosts, binaries) if len(binaries) == 2 else []


async def _agent(host: Host) -> list[Precondition]:
    machine = host.machine
    trip = host.reach.round_trip_ms
    way = f", {trip:.1f} ms away over ssh" if trip else ""
    sentence = f"{machine.name} has Python {machine.python}{way}; its agent is coloctl"
    found = [Precondition("agent", Severity.OK, f"{sentence} {machine.version}.")]
    if machine.euid:
        sentence = f"coloctl works on {machine.name} as user id {machine.euid}."
        hint = "without root there are no taps, no packet rules and no user of QEMU's own"
        found.append(Precondition("root", Severity.WARNING, sentence, hint))
    return found


async def _kernel(host: Host) -> list[Precondition]:
    done = await host.run(["uname", "-sr"], deadline_s=COMMAND_DEADLINE_S)
    return [Precondition("kernel", Severity.INFO, f"{done.stdout.strip()}.")]


async def examine_clock(host: Host) -> list[Precondition]:
    """Compare the clocks; a difference is an error only where a certificate is not valid by it."""
    found = await clocks.offset(host)
    if found.differs:
        warning = Severity.WARNING
        return [Precondition("clock", warning, found.sentence, clocks.SET_CLOCK)]
    at_most = max(abs(found.seconds), found.doubt_s)
    sentence = f"Its clock differs by at most {at_most:.2f} s from this one's."
    return [Precondition("clock", Severity.OK, sentence)]


async def _qemu(host: Host) -> list[Precondition]:
    binary = await host.which(_QEMU)
    if binary is None:
        sentence = f"There is no {_QEMU} on {host.machine.name}."
        hint = "`apt-get install qemu-system-x86 qemu-utils` there, or `host add` with --qemu 11.1"
        return [Precondition("qemu", Severity.WARNING, sentence, hint)]
    found = await inspect(binary, host)
    version = f"QEMU {found.version} at {binary}."
    trial = await kvm_trial(host, binary)
    return [
        Precondition("qemu", Severity.OK, version),
        Precondition("accelerator", Severity.INFO, trial.sentence),
    ]


async def _tun(host: Host) -> list[Precondition]:
    if why := await host.usable(Path(TUN_NODE), os.R_OK | os.W_OK):
        sentence = f"{TUN_NODE} on {host.machine.name} cannot be used: {why}."
        return [Precondition("tun", Severity.WARNING, sentence, "`modprobe tun` there")]
    return [Precondition("tun", Severity.OK, f"{TUN_NODE} opens.")]


async def _memory(host: Host) -> list[Precondition]:
    sentence = f"{await available_mib(host)} MiB are available."
    return [Precondition("memory", Severity.INFO, sentence)]


async def account_finding(host: Host) -> list[Precondition]:
    """Report the account as which QEMU runs there; raises `PreconditionFailed`."""
    machine = host.machine
    if machine.euid:
        sentence = f"QEMU runs as user id {machine.euid} on {machine.name}, as coloctl does."
        return [Precondition("account", Severity.INFO, sentence)]
    if found := await host.account(accounts.ACCOUNT):
        sentence = f"QEMU runs as {found.name} (user id {found.uid}) there."
        return [Precondition("account", Severity.OK, sentence)]
    sentence = f"{machine.name} has no account {accounts.ACCOUNT}, as which QEMU is to run there."
    here = host.reach.contact is Contact.HERE
    severity = Severity.INFO if here else Severity.WARNING
    hint = f"`coloctl host add {machine.name} {host.name}` makes it"
    return [Precondition("account", severity, sentence, hint)]


def certificate_folder(host: Host) -> Path:
    """Return the folder of the machine's own certificate."""
    return store.machine_dir() if host.reach.contact is Contact.HERE else DISTANT_FOLDER


async def _certificate(host: Host, name: str, addresses: tuple[str, ...]) -> list[Precondition]:
    file = certificate_folder(host) / store.CERT
    content = await host.read_file(file, FILE_BYTES)
    if content is None:
        sentence = f"{host.machine.name} has no certificate in {file.parent}."
        hint = f"`coloctl certs init {name}={','.join(addresses) or 'ADDRESS'}`, and copy it there"
        return [Precondition("certificate", Severity.WARNING, sentence, hint)]
    found = read.facts(content, f"{file} of {host.machine.name}")
    clock = await clocks.offset(host)
    now = clock.there(datetime.now(UTC)) if clock.differs else datetime.now(UTC)
    try:
        for address in addresses or ("",):
            read.require_usable(found, host.machine.name, name=name, address=address, now=now)
    except ColoctlError as error:
        there = f" {clock.sentence}" if clock.differs else ""
        sentence = error.message + there
        return [Precondition("certificate", Severity.ERROR, sentence, error.hint or "")]
    left = found.days_left(now)
    severity = Severity.OK if left >= read.SOON_DAYS else Severity.WARNING
    sentence = f"Its certificate for {name} ends in {left} days."
    return [Precondition("certificate", severity, sentence, f"`coloctl certs renew {name}`")]
