"""Examine every precondition of a pair by name, also those that a start would not report.

Called by `cli.verbs.doctor`; the parts are in `check.command`, `check.connection`, `check.disks`,
`check.machine`, `check.network` and `check.room`; asks the fence agents through `ha.agent`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from coloctl import paths
from coloctl.check.command import StartedAs, examine_command_lines, startable
from coloctl.check.connection import examine_connection
from coloctl.check.disks import examine_disks
from coloctl.check.finding import Precondition, Severity, guarded, of_check
from coloctl.check.machine import COMMAND_DEADLINE_S, available_mib, unusable
from coloctl.check.network import examine_network
from coloctl.check.probe import Report, probe
from coloctl.check.processors import examine_processors
from coloctl.check.room import examine_room
from coloctl.check.tls import examine_encryption
from coloctl.check.user import examine_user
from coloctl.check.verdict import CheckResult
from coloctl.colo.ground import Ground, one_machine
from coloctl.colo.inspect import (
    READY_DEADLINE_S,
    find_qemu,
    look,
    qemu_img,
    require_two_identities,
    unusable_files,
)
from coloctl.colo.known_bugs import KNOWN_BUGS
from coloctl.colo.refuse import REFUSED, refusals
from coloctl.errors import ColoctlError
from coloctl.ha import agent
from coloctl.host import open_host
from coloctl.host.base import Host
from coloctl.model.pair import NODES, FencingMethod, NodeName, PairSpec
from coloctl.model.units import OVERHEAD_MIB
from coloctl.pairfile import file_problems
from coloctl.vm import inspect

CONTROL_WAIT_S = 1.0

#: The data of a secret object, a password of a URL or of iSCSI's.
_SPOKEN_SECRET = re.compile(
    r"^secret,.*\bdata=|^\{(?=.*\"secret\").*\"data\"|://[^/@\s]*:[^@\s]+@|\bpassword=(?!on|off)"
)


async def examine_pair(spec: PairSpec) -> list[Precondition]:
    """Find all about the pair that ``spec`` describes that a start would meet, or ought to.

    Nothing is changed: QEMUs that are started to be asked execute no instruction of the guest.
    """
    async with contextlib.AsyncExitStack() as stack:
        hosts: dict[NodeName, Host] = {}
        findings: list[Precondition] = []
        for node in NODES:
            try:
                host = open_host(spec.nodes[node].host)
                stack.push_async_callback(host.aclose)
                await host.ready(READY_DEADLINE_S)
            except ColoctlError as error:
                findings.append(
                    Precondition(f"node {node}", Severity.ERROR, error.message, error.hint or "")
                )
                continue
            hosts[node] = host
            findings += await guarded("connection", examine_connection(host, node))
        if len(hosts) == len(NODES):
            findings += await _on_hosts(spec, hosts)
    fencing = [one async for one in _fencing(spec)]
    return [*_files(spec), *findings, *_state(spec), *fencing, *_said_aloud(spec)]


def _files(spec: PairSpec) -> Iterator[Precondition]:
    """Check every file that the pair file names and that a start could not use, by its key."""
    for problem in file_problems(spec):
        # The length of socket paths is looked at with the state, an image with its disk.
        if problem.key != "name" and not problem.key.startswith("disk["):
            yield Precondition(problem.key, Severity.ERROR, problem.sentence, problem.hint or "")


async def _files_elsewhere(
    spec: PairSpec, hosts: Mapping[NodeName, Host]
) -> AsyncIterator[Precondition]:
    """Check the files of each node on another machine, as `_files` does those of this one."""
    for node in NODES:
        if spec.nodes[node].machine:
            async for problem in unusable_files(spec, hosts[node], node):
                if not problem.key.startswith("disk["):
                    hint = problem.hint or ""
                    yield Precondition(problem.key, Severity.ERROR, problem.sentence, hint)


async def _on_hosts(spec: PairSpec, hosts: dict[NodeName, Host]) -> list[Precondition]:
    try:
        binaries = {node: await find_qemu(spec, hosts[node], node) for node in NODES}
    except ColoctlError as error:
        return [Precondition("binary", Severity.ERROR, error.message, error.hint or "")]
    tools = {node: await qemu_img(hosts[node], binaries[node]) for node in NODES}
    always = [
        *await _binaries(spec, binaries, hosts),
        *await guarded("versions", _versions(binaries, hosts)),
        *await guarded("machines", _identities(hosts)),
        *await guarded("user", examine_user(spec, hosts)),
        *await guarded("processor", _processors(spec, binaries, hosts)),
    ]
    if await _runs(spec):
        sentence = "The pair runs: its memory, disks, ports and taps are in use by itself."
        hint = f"`coloctl status {spec.name}` shows how it is"
        return [*always, Precondition("running", Severity.INFO, sentence, hint)]
    found = [
        *always,
        *[one async for one in _files_elsewhere(spec, hosts)],
        *await guarded("memory", _memory(spec, hosts)),
        *await examine_disks(spec, hosts, tools),
        *await guarded("room", examine_room(spec, hosts, tools)),
        *await examine_network(spec, hosts),
        *await guarded("encryption", examine_encryption(spec, hosts)),
    ]
    known = [*found, *_files(spec), *_state(spec)]
    return [*found, *await guarded("command line", _command_lines(spec, hosts, known))]


async def _command_lines(
    spec: PairSpec, hosts: dict[NodeName, Host], known: list[Precondition]
) -> list[Precondition]:
    """Check what both QEMUs report about the pair's command lines, where they can start."""
    reduced = startable(spec, known)
    if reduced is None:
        sentence = "No command line was tried: first the errors above have to go."
        return [Precondition("command line", Severity.INFO, sentence)]
    pair, blank = reduced
    ground = Ground(hosts, await look(pair, hosts), paths.pair_dir(spec.name))
    return await examine_command_lines(StartedAs(pair, ground, blank))


async def _runs(spec: PairSpec) -> bool:
    """Check whether a supervisor on this machine answers at the pair's control socket."""
    here = open_host("local")
    try:
        connection = await here.monitor(paths.control_socket(spec.name), CONTROL_WAIT_S)
    except ColoctlError:
        return False
    finally:
        await here.aclose()
    connection.close()
    return True


async def _binaries(
    spec: PairSpec, binaries: Mapping[NodeName, Path], hosts: Mapping[NodeName, Host]
) -> list[Precondition]:
    """Report the findings about each node's QEMU; one that both share is examined once."""
    if _one_machine(hosts) and binaries["a"] == binaries["b"]:
        return await guarded("binary", _binary(spec, binaries["a"], hosts["a"]))
    return [
        replace(found, sentence=f"Node {node}: {found.sentence}")
        for node in NODES
        for found in await guarded("binary", _binary(spec, binaries[node], hosts[node]))
    ]


async def _binary(spec: PairSpec, binary: Path, host: Host) -> list[Precondition]:
    """Report the findings of a probe; a known bug that a start refuses is an error here."""
    guest = spec.guest
    report = await probe(binary, guest.accel, guest.machine, host)
    findings = [of_check(check) for check in report.checks if check.name != "known bug"]
    if any(check.verdict is CheckResult.FAIL for check in report.checks):
        return findings
    return findings + await _bugs(spec, binary, report, host)


async def _bugs(spec: PairSpec, binary: Path, report: Report, host: Host) -> list[Precondition]:
    refused = refusals(spec, await inspect(binary, host), report.accel)
    suspected = {check.sentence for check in report.checks if check.name == "known bug"}
    findings = [Precondition(bug.name, Severity.ERROR, bug.verdict(), bug.hint) for bug in refused]
    findings += [
        Precondition(bug.name, Severity.WARNING, bug.verdict(), bug.hint)
        for bug in KNOWN_BUGS
        if bug.name not in REFUSED and bug.verdict() in suspected
    ]
    return findings


async def _versions(
    binaries: Mapping[NodeName, Path], hosts: Mapping[NodeName, Host]
) -> list[Precondition]:
    """Compare the versions; two patches of one version, in brackets, are a reason for a warning."""
    said = {}
    for node in NODES:
        argv = [str(binaries[node]), "--version"]
        done = await hosts[node].run(argv, deadline_s=COMMAND_DEADLINE_S)
        said[node] = (done.stdout.splitlines() or [""])[0]
    if said["a"] != said["b"]:
        a, b = (hosts[node].machine.name for node in NODES)
        a, b = ("Node a", "node b") if _one_machine(hosts) else (f"Node a on {a}", f"node b on {b}")
        sentence = f"{a} runs '{said['a']}' and {b} '{said['b']}'."
        hint = "COLO works only between equal versions: install the same on both"
        equal = said["a"].partition(" (")[0] == said["b"].partition(" (")[0]
        severity = Severity.WARNING if equal else Severity.ERROR
        return [Precondition("versions", severity, sentence, hint)]
    return [Precondition("versions", Severity.OK, "Both nodes run the same QEMU.")]


async def _processors(
    spec: PairSpec, binaries: Mapping[NodeName, Path], hosts: Mapping[NodeName, Host]
) -> list[Precondition]:
    guest = spec.guest
    return await examine_processors(hosts, binaries, wanted=guest.accel, model=guest.cpu)


async def _identities(hosts: Mapping[NodeName, Host]) -> list[Precondition]:
    """Find two machines that a start would take for one, as copies of one disk are."""
    require_two_identities({node: hosts[node].machine for node in NODES})
    return []


async def _memory(spec: PairSpec, hosts: dict[NodeName, Host]) -> list[Precondition]:
    """Check the memory: a secondary holds the guest's twice, its own and the last checkpoint's."""
    guest = spec.guest.memory_mib
    if _one_machine(hosts):
        return [_room("both nodes on this machine", await available_mib(hosts["a"]), guest, 3)]
    return [_room(f"node {node}", await available_mib(hosts[node]), guest, 2) for node in NODES]


def _one_machine(hosts: Mapping[NodeName, Host]) -> bool:
    return one_machine(hosts["a"].machine, hosts["b"].machine)


def _room(where: str, available: int, guest: int, times: int) -> Precondition:
    needed = guest * times + OVERHEAD_MIB
    sentence = f"{available} MiB are available for {where}, which may need {needed} MiB"
    if available >= needed:
        return Precondition("memory", Severity.OK, f"{sentence}.")
    hint = f"a guest of at most {max(0, (available - OVERHEAD_MIB) // times)} MiB has room"
    sentence += f": {times} times the guest's {guest}, and QEMU itself."
    return Precondition("memory", Severity.WARNING, sentence, hint)


def _state(spec: PairSpec) -> Iterator[Precondition]:
    """Check the pair's folder, and the sockets in it."""
    folder = paths.pair_dir(spec.name)
    hint = "set COLOCTL_STATE_DIR to a folder of your own with a short path"
    if (problem := unusable(folder)) is not None:
        yield Precondition("state", Severity.ERROR, problem, hint)
        return
    # The longest name among a node's sockets.
    longest = folder / "a" / f"compare_out{'' if len(spec.nics) < 2 else '-n9'}.sock"
    try:
        paths.check_socket_path(longest)
    except ColoctlError as error:
        yield Precondition("state", Severity.ERROR, error.message, error.hint or "")
        return
    yield Precondition("state", Severity.OK, f"Its state is kept in {folder}.")


async def _fencing(spec: PairSpec) -> AsyncIterator[Precondition]:
    """Ask the fence agent for the status of each node: it must work before it is needed."""
    if spec.fencing.method is not FencingMethod.COMMAND:
        return
    for node in NODES:
        heard = await agent.ask(spec.fencing, node)
        severity = Severity.OK if heard.on else Severity.WARNING if heard.works else Severity.ERROR
        hint = ""
        if not heard.works:
            hint = "call it by hand with action=status and the options of the pair file"
        elif not heard.on:
            hint = f"is fencing.{node} the machine that node {node} runs on?"
        yield Precondition("fencing", severity, heard.said, hint)


def _said_aloud(spec: PairSpec) -> Iterator[Precondition]:
    """Report what no look at the machine can find."""
    if spec.fencing.method is FencingMethod.KILL:
        sentence = "A node that is to be left behind is killed, and its death proven."
        yield Precondition("fencing", Severity.OK, sentence)
    elif spec.fencing.method is FencingMethod.MANUAL:
        yield Precondition(
            "fencing",
            Severity.WARNING,
            f"Fencing method {spec.fencing.method} leaves every failover waiting for a person.",
            'fencing.method = "kill" lets coloctl do it where it runs beside QEMU',
        )
    if spec.guest.extra_args:
        yield Precondition(
            "extra_args",
            Severity.WARNING,
            "Devices in guest.extra_args are not known to coloctl: their state must survive COLO.",
            "try a failover before you rely on them",
        )
    if any(_SPOKEN_SECRET.search(word) for word in spec.guest.extra_args):
        yield Precondition(
            "secrets",
            Severity.WARNING,
            "guest.extra_args holds a secret in the open: every user of this machine can read it "
            "on QEMU's command line.",
            "give QEMU a file that only you can read: `-object secret,id=...,file=PATH`",
        )
    if spec.nics:
        yield from _connections(spec)


def _connections(spec: PairSpec) -> Iterator[Precondition]:
    """Report what clients of the guest should know."""
    cure = "net.ipv4.tcp_syncookies=2 inside the guest removes this for every connection"
    if spec.checkpoint.guard_first_connection:
        yield Precondition(
            "first connection",
            Severity.INFO,
            "A checkpoint follows the guest's first TCP connection, whose secrets it then shares;"
            " a failover within milliseconds of it can still break that connection.",
            cure,
        )
    else:
        yield Precondition(
            "first connection",
            Severity.WARNING,
            "Connections opened before the next checkpoint can break in a failover: the two guests"
            " draw different TCP secrets at the first connection of their life.",
            f"checkpoint.guard_first_connection = true; {cure}",
        )
    yield Precondition(
        "ipv6",
        Severity.INFO,
        "Answers over IPv6 leave at once: they are not held until a checkpoint or a comparison.",
        "let clients that must lose nothing use IPv4",
    )
