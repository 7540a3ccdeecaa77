"""Define `coloctl host`: add a machine, list and check those that are known, remove one.

Calls `check.machine_there` to look at a machine, `cli.host_add` to give it what a pair needs, and
`hostlist` for the list.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coloctl.check.finding import Precondition, Severity, document, worst
from coloctl.cli.options import format_option, pair_names
from coloctl.cli.views import plain, render
from coloctl.cli.views.findings import EXIT_CODES, show
from coloctl.errors import PreconditionFailed, UsageError

if TYPE_CHECKING:
    from coloctl.host.base import Host
    from coloctl.hostlist import ListedHost
    from coloctl.model.pair import PairSpec

#: A machine over ssh: login, Python, and the agent's zip the first time.
REACH_DEADLINE_S = 30.0
_COMMAND_DEADLINE_S = 20.0


@click.group()
def host() -> None:
    """Add, list, check and remove the machines that pairs run on.

    A machine needs Debian or another Linux, Python 3.11 and QEMU; coloctl reaches it with your ssh,
    as you configured it. What coloctl runs there is sent over that connection.
    """


@host.command(short_help="Check a machine, give it a certificate, and list it.")
@click.argument("name")
@click.argument("at", metavar="SSH")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="ADDR",
    help="Its address for replication; may be given more than once.",
)
@click.option(
    "--qemu",
    metavar="VERSION|PATH",
    help="The QEMU of its pairs: a version that is sent there, or a path as it is there.",
)
@click.option("--dry-run", is_flag=True, help="Only check; change nothing on either machine.")
@format_option("pretty", "json")
def add(
    *,
    name: str,
    at: str,
    addresses: tuple[str, ...],
    qemu: str | None,
    dry_run: bool,
    form: str,
) -> int:
    """Check the machine NAME at ssh://[user@]name[:port], and give it what a pair needs there.

    It gets the account coloctl-qemu, as which QEMU runs, where coloctl is root there, and a key and
    a certificate of the CA that is here, which is made where there is none. SSH is "local" for this
    machine. May be repeated: what is there already stays.

    --qemu 11.1 fetches that build here (`coloctl lab qemu`), sends it there and lets each pair use
    it whose file names none; so does a machine whose own QEMU has a bug that pairs do not survive.

    \b
    Exit codes: 0 all is well, 3 there are warnings, 1 there are errors and nothing was changed.
    """
    from coloctl import hostlist
    from coloctl.certs import store
    from coloctl.cli import host_add, host_qemu
    from coloctl.cli.views.downloads import Bars

    host_qemu.require_version(qemu)
    name, parsed = store.parse_machine(f"{name}={','.join(addresses)}")
    known = hostlist.load()
    before = known[name].qemu if name in known and known[name].at == at else ""
    one = hostlist.ListedHost(name, at, parsed, before)

    async def work(there: Host) -> list[Precondition]:
        nonlocal one
        found = await _examine(there, one, made=False)
        if worst(found) is Severity.ERROR:
            return found
        if dry_run:
            return found + await host_add.plan(there, qemu)
        with Bars() as bars:
            one, made = await host_add.provide(there, one, qemu, bars.report)
        return found + made

    found = _on(one, work)
    if not dry_run and worst(found) is not Severity.ERROR:
        hostlist.save(known | {name: one})
    _print(found, form)
    if form != "json" and not dry_run and worst(found) is not Severity.ERROR:
        click.echo("\n".join(_pair_file_lines(one)))
    return EXIT_CODES[worst(found)]


@host.command("list")
@format_option("pretty", "json")
def list_hosts(form: str) -> None:
    """List the machines that were added; none of them is asked."""
    from coloctl import hostlist

    hosts = hostlist.load()
    if form == "json":
        rows = [
            {"name": one.name, "at": one.at, "addresses": list(one.addresses), "qemu": one.qemu}
            for one in hosts.values()
        ]
        click.echo(json.dumps({"schema": 1, "hosts": rows}))
        return
    if not hosts:
        click.echo("No machine was added. `coloctl host add hv2 ssh://root@hv2` adds one.")
    width = max(map(len, hosts), default=0)
    for one in hosts.values():
        click.echo(f"{one.name:{width}}  {one.at}  {' '.join((*one.addresses, one.qemu))}".rstrip())


@host.command(short_help="Check a machine as a place for a pair's node.")
@click.argument("name")
@click.option("--peer", metavar="NAME", help="Also measure the link from that machine to this one.")
@format_option("pretty", "json")
def check(name: str, peer: str | None, form: str) -> int:
    """Check the machine NAME: agent, clock, QEMU, accelerator, bridges, certificate.

    Bonds and the addresses for replication are looked at as well, with --peer the link too. Nothing
    is changed there. The link is measured for some two seconds at full speed.

    \b
    Exit codes: 0 all is well, 3 there are warnings, 1 there are errors.
    """
    from coloctl.check.machine_there import examine_link

    one, other = _known(name), None if peer is None else _known(peer)
    if other is not None and not one.addresses:
        raise UsageError(
            f"{name} has no address for replication.",
            hint=f"`coloctl host add {name} {one.at} --address ADDRESS` gives it one",
        )

    async def work(there: Host) -> list[Precondition]:
        found = await _examine(there, one, made=True)
        if other is not None:
            async with _opened(other) as far:
                await far.ready(REACH_DEADLINE_S)
                found += await examine_link(far, there, one.addresses[0])
        return found

    found = _on(one, work)
    _print(found, form)
    return EXIT_CODES[worst(found)]


@host.command(short_help="Take a machine off the list, and its certificate from it.")
@click.argument("name")
@click.option("--keep-files", is_flag=True, help="Leave its certificate and agent there.")
@format_option("pretty", "json")
def remove(name: str, keep_files: bool, form: str) -> None:
    """Remove the machine NAME from the list, and its certificate, agent and sent QEMU from it.

    Refused while a pair of this machine has a node there. Images are never touched, and the account
    of QEMU stays: files there may be its own.
    """
    from coloctl import hostlist
    from coloctl.check.machine_there import certificate_folder
    from coloctl.cli import host_qemu

    one = _known(name)
    if user := _pair_on(one):
        raise PreconditionFailed(
            f"Pair {user} has a node on {name}.", hint=f"`coloctl stop {user}` first"
        )

    async def work(there: Host) -> list[Precondition]:
        zips = there.machine.cache_dir / "agent"
        argv = ["rm", "-rf", "--", str(certificate_folder(there)), str(zips)]
        await there.run(argv, deadline_s=_COMMAND_DEADLINE_S)
        if one.qemu:
            await host_qemu.remove(there, Path(one.qemu))
        return []

    if not keep_files:
        _on(one, work)
    hosts = hostlist.load()
    hosts.pop(name)
    hostlist.save(hosts)
    if form == "json":
        click.echo(json.dumps({"schema": 1, "removed": name, "files_kept": keep_files}))
    else:
        click.echo(f"{name} is off the list{'' if keep_files else ', and so are its files there'}.")


def _on(
    one: ListedHost, work: Callable[[Host], Coroutine[Any, Any, list[Precondition]]]
) -> list[Precondition]:
    """Do ``work`` on the machine; raises `HostOutOfReach` with ssh's own reason."""

    async def reached() -> list[Precondition]:
        async with _opened(one) as there:
            await there.ready(REACH_DEADLINE_S)
            return await work(there)

    return asyncio.run(reached())


def _opened(one: ListedHost) -> Any:
    from coloctl.host import open_host

    return open_host(one.at)


async def _examine(there: Host, one: ListedHost, *, made: bool) -> list[Precondition]:
    """Examine the machine; without ``made``, apart from what is about to be made there."""
    from coloctl.check.machine_there import examine_host

    nics = [nic for pair in _pairs_on(one) for nic in pair.nics]
    bridges = {nic.tap.bridge for nic in nics if nic.tap is not None and nic.tap.bridge}
    found = await examine_host(there, one.name, one.addresses, bridges)
    given = ("account", "certificate", "address")
    return [each for each in found if made or each.name not in given]


def _known(name: str) -> ListedHost:
    """Return a machine of the list; raises `UsageError`."""
    from coloctl import hostlist

    hosts = hostlist.load()
    if name not in hosts:
        listed = ", ".join(hosts) or "none"
        raise UsageError(
            f"No machine is called {name} here.",
            hint=f"known: {listed}; `coloctl host add {name} ssh://root@{name}` adds it",
        )
    return hosts[name]


def _pair_on(one: ListedHost) -> str | None:
    """Find a pair of this machine with a node on that one."""
    return next((pair.name for pair in _pairs_on(one)), None)


def _pairs_on(one: ListedHost) -> Iterator[PairSpec]:
    """Yield the pairs of this machine with a node on that one, as they were started."""
    from coloctl import paths
    from coloctl.errors import ColoctlError
    from coloctl.supervisor.started import remembered

    for pair in pair_names():
        try:
            started = remembered(paths.pair_dir(pair))
        except ColoctlError:  # a damaged folder names no machine
            continue
        if started and any(node.host == one.at for node in started.pair.nodes.values()):
            yield started.pair


def _print(found: list[Precondition], form: str) -> None:
    if form == "json":
        plain.print_json(document(found))
    else:
        show(found, render.console())


def _pair_file_lines(one: ListedHost) -> list[str]:
    """Format what a pair file needs for a node on that machine."""
    lines = ["", "In a pair file:", "", "[node.b]", f'host = "{one.at}"']
    lines += [f'address = "{one.addresses[0]}"'] if one.addresses else []
    if one.at != "local" and not one.at.rpartition("@")[2].removeprefix("ssh://").startswith(
        one.name
    ):
        lines += ["", "[tls]", f'names.b = "{one.name}"']
    return lines
