"""Measure many pairs on one machine, each with its supervisor, all in COLO at once.

Called by `cli.verbs.bench` for `coloctl bench supervisors`; starts each pair with
`control.daemon.spawn`. The guests are firmware that found nothing to boot, so that the machine's
time is the supervisors' and QEMU's own. They need no lab: each pair has loopback addresses of its
own, and no network card.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from coloctl import pairfile
from coloctl.bench.cost import Meter, spent
from coloctl.bench.document import head
from coloctl.chaos.evidence.chronicle import Chronicle
from coloctl.chaos.evidence.listener import EventListener
from coloctl.chaos.run.testbed import PROTECT_WAIT_S
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient
from coloctl.control.daemon.spawn import spawned_supervisor
from coloctl.host import open_host
from coloctl.lab import sample
from coloctl.machine import image
from coloctl.model.figures import summary
from coloctl.model.units import MIB

DISK_BYTES = 16 * MIB
BASE_PORT = 21000


@dataclass(frozen=True)
class SupervisorsPlan:
    """The number and kind of pairs, and for how long they are watched."""

    qemu: Path
    accel: str
    name: str
    pairs: int = 10
    seconds: float = 60.0
    delay_ms: int = 1000

    def to_json(self) -> dict[str, Any]:
        """Return the part of the document that says what was measured."""
        qemu = {"binary": str(self.qemu), "accel": self.accel}
        keys = ("pairs", "seconds", "delay_ms")
        return {"qemu": qemu, **{key: getattr(self, key) for key in keys}}


def supervisors(
    plan: SupervisorsPlan, tell: Callable[[str], None] = lambda _line: None
) -> dict[str, Any]:
    """Protect all pairs, watch them for ``seconds`` without a fault, and return the document.

    Every pair is removed afterwards. ``tell`` receives a line when a pair is protected.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{plan.name}-")))
        clients = []
        for number in range(1, plan.pairs + 1):
            began_s = time.monotonic()
            clients.append(_protected(plan, number, folder, stack))
            tell(f"pair {number} is in COLO after {time.monotonic() - began_s:.1f} s")
        meters = [Meter.read(Acts(client).view().supervisor_pid) for client in clients]
        listeners = [stack.enter_context(EventListener(client.pair)) for client in clients]
        time.sleep(plan.seconds)
        costs = [spent(meter) for meter in meters]
        views = [Acts(client).view() for client in clients]
        chronicles = [Chronicle(events=tuple(listener.heard)) for listener in listeners]
    pauses = [pause.ms for one in chronicles for pause in one.pauses]
    return {
        **head("supervisors", plan.to_json()),
        "false_failovers": [left.reason for one in chronicles for left in one.left_protection],
        "protected": sum(view.protected for view in views),
        "checkpoints": len(pauses),
        "checkpoint_pause_ms": summary(pauses),
        "supervisor_cpu_percent": summary(cost["cpu_percent"] for cost in costs),
        "supervisor_rss_mib": summary(cost["rss_mib"] for cost in costs),
    }


def _protected(plan: SupervisorsPlan, number: int, folder: Path, stack: ExitStack) -> ControlClient:
    """Start one more pair and bring it into COLO; it ends with ``stack``."""
    pair = pairfile.load(asyncio.run(_written(plan, number, folder)))
    born = stack.enter_context(spawned_supervisor(pair))
    stack.callback(born.end)
    client = stack.enter_context(born.connect())
    Acts(client).start(wait_s=PROTECT_WAIT_S)
    return client


async def _written(plan: SupervisorsPlan, number: int, folder: Path) -> Path:
    """Write the pair file and its empty disks beside it."""
    path = folder / f"{number}.toml"
    disks = sample.disks_beside(path)
    host = open_host("local")
    try:
        for disk in disks.values():
            await image.create_overlay(disk, DISK_BYTES, host.run, qemu_img=image.tool(plan.qemu))
    finally:
        await host.aclose()
    # Loopback addresses that follow from the process, so that two benches do not meet.
    net = f"127.{os.getpid() >> 8 & 63 | 128}.{os.getpid() & 255}"
    document = sample.document(
        name=f"{plan.name}-{number}",
        guest={"memory": "64MiB", "accel": plan.accel, "qemu": str(plan.qemu)},
        images={node: str(disk) for node, disk in disks.items()},
        nodes={
            "a": {"address": f"{net}.{2 * number}"},
            "b": {"address": f"{net}.{2 * number + 1}"},
        },
        base_port=BASE_PORT,
        checkpoint_delay_ms=plan.delay_ms,
    )
    text = tomli_w.dumps({**document, "policy": {"auto_reprotect": False}})
    path.write_text(text, encoding="utf-8")
    return path
