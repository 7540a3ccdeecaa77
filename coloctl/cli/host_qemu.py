"""Give a machine a QEMU that can do COLO: a build of the lab, fetched here and sent there.

Called by `cli.host_add` and `cli.verbs.host`; calls `lab.qemu` for the build, and `colo.known_bugs`
for what the QEMU of that machine cannot do.

Rules: a version that is asked for is sent, and a path names a QEMU that is there already. Where
neither is given, and the machine's own QEMU has a bug that a start refuses, `lab.qemu.FALLBACK` is
sent. A machine without any QEMU gets none unasked. Example: Debian 13's QEMU 10.0 under TCG has
such a bug, and under KVM it has none.

Invariant: the build appears there whole or not at all, and what was sent is removed on failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from coloctl.check.finding import Precondition, Severity
from coloctl.colo.inspect import kvm_trial
from coloctl.colo.known_bugs import Combination, threatening
from coloctl.colo.refuse import REFUSED
from coloctl.errors import ColoctlError, PreconditionFailed, UsageError
from coloctl.host.base import Host
from coloctl.lab import qemu
from coloctl.lab.progress import Progress, Report
from coloctl.vm import inspect

NAME = "qemu"
#: What is sent at once: as much as a session keeps to send it again after a cut.
PIECE = 4 << 20
PIECE_DEADLINE_S = 120.0
UNPACK_DEADLINE_S = 300.0
_COMMAND_DEADLINE_S = 30.0

#: A build takes some 160 MiB, and as much again while an older one is replaced.
NEEDED_MIB = 400
#: $1 a folder that is made; prints the room in it in MiB.
_ROOM = 'umask 022; mkdir -p "$1" && df --output=avail -B1M "$1" | tail -n 1'
#: $1 the archive, $2 the folder that appears. Other users may read it, as QEMU's own must.
_UNPACK = """
set -eu
umask 022
rm -rf "$2.new"
trap 'rm -rf "$2.new"' EXIT
mkdir "$2.new"
tar -xzf "$1" -C "$2.new" --no-same-owner
rm -rf "$2"
mv "$2.new" "$2"
"""


@dataclass(frozen=True)
class Choice:
    """The QEMU for a machine: a build to send, or a path that is there; both empty for its own."""

    version: str = ""
    path: str = ""
    why: str = ""  #: for people


def require_version(wanted: str | None) -> None:
    """Require a path, or the version of a build; raises `UsageError`."""
    if wanted is not None and not wanted.startswith("/") and wanted not in qemu.SUITES:
        raise UsageError(
            f"There is no QEMU {wanted} to send.",
            hint=f"one of: {', '.join(qemu.SUITES)}; or a path as it is on that machine",
        )


def home(there: Host, version: str) -> Path:
    """Return the folder of a build on that machine."""
    return there.machine.registry_dir.parent / "qemu" / version


async def choose(there: Host, wanted: str | None) -> Choice:
    """Choose the QEMU by what was typed, or by what the machine's own can do.

    Raises `PreconditionFailed` for a path that cannot be run there.
    """
    if wanted is not None and wanted.startswith("/"):
        if why := await there.usable(Path(wanted), os.X_OK):
            raise PreconditionFailed(
                f"{wanted} on {there.machine.name} cannot be run: {why}.",
                hint="give the path of a QEMU as it is there, or the version of one to send",
            )
        return Choice(path=wanted)
    if wanted is not None:
        return Choice(wanted)
    own = await there.which(qemu.SYSTEM_EMULATOR)
    if own is None:
        return Choice()
    accel = (await kvm_trial(there, own)).accel
    dialect = (await inspect(own, there)).dialect
    bugs = [bug for bug in threatening(Combination(dialect, accel)) if bug.name in REFUSED]
    return Choice(qemu.FALLBACK, why=bugs[0].verdict()) if bugs else Choice()


def planned(there: Host, choice: Choice) -> list[Precondition]:
    """Report what `provide` would do."""
    if not choice.version:
        return []
    sentence = (
        f"QEMU {choice.version} is sent to {there.machine.name}, to {home(there, choice.version)}."
    )
    return [Precondition(NAME, Severity.INFO, f"{sentence} {choice.why}".strip())]


async def provide(
    there: Host, choice: Choice, undo: AsyncExitStack, report: Report
) -> tuple[str, list[Precondition]]:
    """Provide the chosen QEMU; return its path for the list, "" for the machine's own.

    ``undo`` removes what was sent. Raises `ProvisionError`, and `PreconditionFailed` where that
    machine does not take it.
    """
    if choice.path:
        found = await inspect(Path(choice.path), there)
        sentence = f"QEMU {found.version} at {choice.path} is taken for {there.machine.name}."
        return choice.path, [Precondition(NAME, Severity.OK, sentence)]
    if not choice.version:
        return "", []
    folder = home(there, choice.version)
    binary = folder / "bin" / qemu.SYSTEM_EMULATOR
    if await there.usable(binary, os.X_OK):
        await _require_room(there, folder.parent)
        build = await asyncio.to_thread(qemu.provide, choice.version, report=report)
        undo.push_async_callback(remove, there, binary)
        await _send(there, build, folder, report)
    found = await inspect(binary, there)
    sentence = f"QEMU {found.version} is on {there.machine.name}: {binary}."
    return str(binary), [Precondition(NAME, Severity.OK, sentence)]


async def remove(there: Host, binary: Path) -> None:
    """Remove a build that was sent; any other QEMU is left alone."""
    folder = binary.parent.parent
    if folder == home(there, folder.name):
        with contextlib.suppress(ColoctlError):
            await there.run(["rm", "-rf", "--", str(folder)], deadline_s=_COMMAND_DEADLINE_S)


async def _require_room(there: Host, folder: Path) -> None:
    """Make the folder for builds, and require room in it; raises `PreconditionFailed`."""
    room = await _run(there, ["sh", "-c", _ROOM, "sh", str(folder)], _COMMAND_DEADLINE_S)
    if int(room) < NEEDED_MIB:
        raise PreconditionFailed(
            f"{there.machine.name} has {int(room)} MiB left in {folder}, and a QEMU needs "
            f"{NEEDED_MIB}.",
            hint="free some, or install a QEMU there and name it with --qemu PATH",
        )


async def _send(there: Host, build: qemu.Build, folder: Path, report: Report) -> None:
    name = there.machine.name
    done = await there.run(["uname", "-m"], deadline_s=_COMMAND_DEADLINE_S)
    if done.stdout.strip() != "x86_64":
        raise PreconditionFailed(
            f"{name} is a machine of the kind {done.stdout.strip()}, and QEMU {build.name} is for "
            "x86_64.",
            hint="install a QEMU with COLO there, and name it with --qemu PATH",
        )
    with tempfile.TemporaryFile() as archive:
        report(Progress(f"packing QEMU {build.version}"))
        await asyncio.to_thread(qemu.pack, build, folder, archive)
        total = archive.tell()
        archive.seek(0)
        async with there.workspace("coloctl-qemu-") as made:
            packed = made / "qemu.tar.gz"
            while piece := await asyncio.to_thread(archive.read, PIECE):
                words = ["sh", "-c", 'cat >>"$1"', "sh", str(packed)]
                await _run(there, words, PIECE_DEADLINE_S, piece)
                what = f"sending QEMU {build.version} to {name}"
                report(Progress(what, archive.tell(), total))
            report(Progress(f"unpacking QEMU {build.version} on {name}"))
            words = ["sh", "-c", _UNPACK, "sh", str(packed), str(folder)]
            await _run(there, words, UNPACK_DEADLINE_S)


async def _run(there: Host, words: list[str], deadline_s: float, stdin: bytes = b"") -> str:
    done = await there.run(words, deadline_s=deadline_s, stdin=stdin)
    if done.code:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.code}"])[-1].rstrip(".")
        raise PreconditionFailed(
            f"{there.machine.name} did not take the QEMU that was sent: {why}.",
            hint="is there room in its folder for temporary files, and in /var/lib?",
        )
    return done.stdout
