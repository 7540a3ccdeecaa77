"""Hold one running QEMU: a process on a host, its two monitors, and its binary's spellings.

Made by `colo.launch` and `check.trial_run`, taken over by `supervisor.discovery`; `host.base`
starts the process, `vm_open` opens its monitors, and `asked` queries a binary.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from coloctl import probe_cache
from coloctl.asked import LAUNCH_DEADLINE_S, asked
from coloctl.clock import Deadline
from coloctl.errors import (
    ColoctlError,
    DeadlineMissed,
    MonitorError,
    Unreachable,
    UnsupportedQEMU,
)
from coloctl.host import console
from coloctl.host.base import DeathProof, Host, Identity, Process
from coloctl.host.console import GuestConsole
from coloctl.host.records import Contact
from coloctl.host.watching import Channel
from coloctl.model.dialect import Dialect
from coloctl.model.launch import Launch
from coloctl.model.pair import NodeName
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.model.revive import revive
from coloctl.qmp import command as qmp
from coloctl.qmp.dialect import discover, learn_schema
from coloctl.qmp.monitor import Monitor
from coloctl.qmp.schema import Schema
from coloctl.tasks import side_by_side
from coloctl.vm_open import Recorder as Recorder  # noqa: PLC0414 - part of this class's calls
from coloctl.vm_open import launch_error, open_monitor

#: For the end of a log, which is only shown; seconds.
LAST_WORDS_WAIT_S = 1.0

#: A QEMU that closed its monitors because it ends is gone this much later at most, or hangs.
END_WAIT_S = 0.5


@dataclass(frozen=True)
class Binary:
    """One QEMU binary and the spellings that it was found to have."""

    path: Path
    dialect: Dialect
    #: The machine type that an alias such as ``pc`` stands for.
    machines: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return self.dialect.version

    @property
    def release(self) -> str:
        """The version without the patch of a distribution: ``11.1.3``."""
        return self.version.partition(" ")[0]


@dataclass(frozen=True)
class Vitals:
    """The state that one QEMU reports of itself."""

    run_state: RunState
    migration: MigrationStatus
    colo_mode: COLOMode


async def _require_file(path: Path, host: Host) -> None:
    if why := await host.usable(path, os.F_OK):
        where = "not there" if host.reach.contact is Contact.HERE else f"not on {host.machine.name}"
        raise UnsupportedQEMU(
            f"{path} is {where}: {why}.",
            hint="install qemu-system-x86, or run `coloctl lab qemu` and name that binary",
        )


async def cache_key(host: Host, binary: Path, accel: str, machine: str) -> str:
    """Return the name in `probe_cache` of what is found out about a binary on its host."""
    place = host.machine
    boot = f"{place.machine_id} {place.boot_id}"
    return probe_cache.key_at(boot, await host.fingerprint(binary), accel, machine)


async def inspect(path: Path, host: Host) -> Binary:
    """Find the binary's dialect: query it once, then remember it.

    Raises `UnsupportedQEMU` when it does not exist, does not start, or has no COLO.
    """
    _, key = await side_by_side(_require_file(path, host), cache_key(host, path, "none", "dialect"))
    with contextlib.suppress(ValueError):
        answer = probe_cache.recall(key) or {}
        if set(answer.get("dialect", ())) != {known.name for known in fields(Dialect)}:
            raise ValueError("an earlier coloctl asked for less, or for more")
        return revive(Binary, {**answer, "path": str(path)})
    binary = await _ask(path, host)
    if not binary.dialect.x_colo:
        raise UnsupportedQEMU(
            f"{path} ({binary.version}) was built without COLO.",
            missing=("x-colo",),
            hint="`coloctl lab qemu` fetches a build that has it",
        )
    found = asdict(binary)
    probe_cache.remember(key, {name: found[name] for name in ("dialect", "machines")})
    return binary


async def learn(path: Path, host: Host) -> Schema:
    """Query the QMP schema of the binary now, with COLO or without.

    Raises `UnsupportedQEMU` when it does not exist or does not answer as QEMU.
    """
    await _require_file(path, host)
    async with asked(path, host) as session:
        return await learn_schema(session, LAUNCH_DEADLINE_S)


async def _ask(path: Path, host: Host) -> Binary:
    async with asked(path, host) as session:
        dialect = await discover(session, LAUNCH_DEADLINE_S)
        listed = await session.execute(qmp.query_machines(), LAUNCH_DEADLINE_S)
    return Binary(path, dialect, {one["alias"]: one["name"] for one in listed if "alias" in one})


class VM:
    """One QEMU of a pair. Made by `launch` or `adopt`; ended by `kill` or `quit`."""

    def __init__(
        self, node: NodeName, host: Host, process: Process, monitor: Monitor, rundir: Path
    ) -> None:
        self.node = node
        self.host = host
        self.process = process
        self.monitor = monitor
        self.rundir = rundir
        self.console = GuestConsole(host, rundir / "console.log")
        process.watch(console=self.console.path)

    @classmethod
    async def launch(
        cls,
        node: NodeName,
        host: Host,
        launch: Launch,
        rundir: Path,
        *,
        record: Recorder | None = None,
    ) -> VM:
        """Launch QEMU detached, and wait until both its monitors answer.

        Raises `LaunchError`: with the last output of a QEMU that ended, or with what is wrong with
        its monitors. No process is left running then.
        """
        await host.make_private(rundir)
        log = rundir / "qemu.log"
        process = await host.launch(launch, stderr=log, node=node)
        try:
            monitor = await open_monitor(
                node, host, process, launch.sockets, record, disks=launch.disks
            )
        except MonitorError as error:
            try:
                await ended(process, END_WAIT_S)
            finally:
                proof = await process.kill(LAUNCH_DEADLINE_S)
            last = await _tail(host, log, 5)
            raise launch_error(node, launch.argv, proof, log=log, last=last, error=error) from error
        except BaseException:
            await process.kill(LAUNCH_DEADLINE_S)
            raise
        return cls(node, host, process, monitor, rundir)

    @classmethod
    async def adopt(
        cls,
        node: NodeName,
        host: Host,
        identity: Identity,
        sockets: Mapping[str, Path],
        rundir: Path,
        *,
        leader: Identity | None = None,
        record: Recorder | None = None,
    ) -> VM | None:
        """Adopt the QEMU that another supervisor started; None when that process is gone.

        Raises `Unreachable` when it ends before its monitor answers, else as `Session.open`.
        """
        process = await host.adopt(identity, node=node, leader=leader, sockets=sockets.values())
        if process is None:
            return None
        monitor = await open_monitor(node, host, process, sockets, record)
        return cls(node, host, process, monitor, rundir)

    async def reopen(self, sockets: Mapping[str, Path], *, record: Recorder | None) -> None:
        """Open both monitors again, because those that were open are lost with their host's agent.

        What is left of the old ones is closed before: QEMU serves one connection at a time. Raises
        `Unreachable` when the process ends before they answer, else as `Session.open`.
        """
        await self.monitor.aclose()
        self.monitor = await open_monitor(self.node, self.host, self.process, sockets, record)

    async def execute(self, command: qmp.Command, deadline_s: float = 5.0) -> Any:
        """Return the answer of the command monitor."""
        return await self.monitor.execute(command, deadline_s)

    async def observe(self, deadline_s: float = 1.0) -> Vitals:
        """Query the state that QEMU reports; raises `MonitorError` when an answer is missing."""
        status, migration, colo = await side_by_side(
            self.execute(qmp.query_status(), deadline_s),
            self.execute(qmp.query_migrate(), deadline_s),
            self.execute(qmp.query_colo_status(), deadline_s),
        )
        try:
            return Vitals(
                RunState(status["status"]),
                MigrationStatus(migration.get("status", "none")),
                COLOMode(colo["mode"]),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise MonitorError(f"QEMU of node {self.node} gave half an answer: {error}.") from error

    async def give(self, name: str, channel: Channel, deadline_s: float = 5.0) -> None:
        """Pass the channel to QEMU, which knows it as ``fd:name`` then."""
        await self.monitor.execute(qmp.getfd(name), deadline_s, fd=channel.fileno())

    async def kill(self, deadline_s: float) -> DeathProof:
        """Kill the process and return the proof; raises `FencingFailed` otherwise."""
        proof = await self.process.kill(deadline_s)
        await self.monitor.aclose()
        return proof

    async def quit(self, deadline_s: float) -> DeathProof:
        """Ask QEMU to end itself, and kill it at the deadline."""
        with contextlib.suppress(MonitorError):
            await self.execute(qmp.quit(), deadline_s)
        await ended(self.process, deadline_s)
        return await self.kill(deadline_s)

    @property
    def booting(self) -> bool:
        """True when the guest has begun to boot here, and `until_booted` has not returned since."""
        return self.console.boots_from is not None

    def boots(self, written: int | None = None) -> int:
        """Note that the guest begins to boot; returns how many bytes of its console are of an
        earlier life.

        These are the first ``written`` bytes, or all that are there.
        """
        mark = self.process.console_bytes() if written is None else written
        self.console.boots_from = mark
        return mark

    async def until_booted(self, text: str, deadline_s: float) -> None:
        """Wait until the guest has written ``text`` to its serial console since it last began to
        boot.

        Returns at once where its boot was not seen here: it came with a migration, booted. Raises
        `DeadlineMissed`, or `Unreachable` when QEMU ends before.
        """
        deadline = Deadline(deadline_s)
        while self.booting and not await self.console.says(text):
            if not self.process.alive():
                raise Unreachable(f"QEMU of node {self.node} ended while its guest booted.")
            if deadline.expired:
                raise DeadlineMissed(
                    f"The guest did not write '{text}' to its console in {deadline_s:.0f} s.",
                    hint=f"what it wrote is in {self.console.path}",
                )
            await asyncio.sleep(console.PERIOD_S)
        self.console.boots_from = None

    async def last_words(self, lines: int = 5, *, wait_s: float = LAST_WORDS_WAIT_S) -> str:
        """Return the end of what QEMU wrote to its log; "" where its host does not answer soon."""
        return await _tail(self.host, self.rundir / "qemu.log", lines, wait_s)


async def _tail(host: Host, log: Path, lines: int, wait_s: float = LAST_WORDS_WAIT_S) -> str:
    with contextlib.suppress(ColoctlError, TimeoutError):
        async with asyncio.timeout(wait_s):
            return await host.read_tail(log, lines)
    return ""


async def ended(process: Process, within_s: float) -> bool:
    """Wait for the process to end, ``within_s`` at most; returns whether it is gone."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await process.wait()
    return not process.alive()


__all__ = ["VM", "Binary", "Vitals", "ended", "inspect", "learn"]
