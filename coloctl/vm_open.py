"""Open the monitors of a QEMU that was launched or adopted, and explain a launch that failed.

Called by `vm`; connects through `host.base`, and opens `qmp.monitor`.

Invariant: where opening fails, no connection stays open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coloctl.asked import LAUNCH_DEADLINE_S
from coloctl.errors import LaunchError, MonitorError, Unreachable
from coloctl.host import as_sentence
from coloctl.host.base import DeathProof, Host, Process
from coloctl.model.pair import NodeName
from coloctl.qmp.monitor import Monitor
from coloctl.tasks import first_of

Recorder = Callable[[str, Mapping[str, Any]], None]


async def open_monitor(
    node: NodeName,
    host: Host,
    process: Process,
    sockets: Mapping[str, Path],
    record: Recorder | None,
    *,
    disks: Sequence[Path] = (),
) -> Monitor:
    """Open both monitors of one QEMU; a process that ends meanwhile is noticed at once.

    Raises `Unreachable` then. The process that greets, or that has ``disks`` open, is the one that
    ``process`` stands for from then on: where ``process`` is a wrapper, QEMU is another one.
    """

    async def connect() -> Monitor:
        with contextlib.ExitStack() as until_open:
            command_sock = await host.monitor(sockets["qmp"], LAUNCH_DEADLINE_S)
            until_open.callback(command_sock.close)
            rescue_sock = await host.monitor(sockets["rescue"], LAUNCH_DEADLINE_S)
            until_open.callback(rescue_sock.close)
            speaker = await host.speaker(command_sock, LAUNCH_DEADLINE_S)
            await process.answers(speaker, disks)
            until_open.pop_all()
        return await Monitor.open(
            node, command_sock, rescue_sock, deadline_s=LAUNCH_DEADLINE_S, record=record
        )

    async with first_of(connect(), process.wait()) as (opening, _):
        if opening.done() and not opening.cancelled():
            monitor: Monitor = opening.result()
            return monitor
        raise Unreachable(f"QEMU of node {node} ended before its monitor answered.")


def launch_error(
    node: NodeName,
    argv: Sequence[str],
    proof: DeathProof,
    *,
    log: Path,
    last: str,
    error: MonitorError,
) -> LaunchError:
    """Make the error of a failed launch.

    A QEMU that ended by itself gave the reason in ``last``, the end of its ``log``; for one that
    ran, ``error`` does.
    """
    last = last.strip()
    words = as_sentence(last.splitlines()[-1]) if last else "no output."
    why = words if proof.how == "already-dead" else error.message
    return LaunchError(
        f"QEMU for node {node} would not start: {why}",
        node=node,
        argv=argv,
        exit_code=proof.exit_code,
        tail=last,
        hint=f"its whole output is in {log}",
    )
