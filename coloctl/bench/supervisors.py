"""Measure many pairs on one machine, each with its supervisor, all in COLO at once.

Called by `cli.verbs.bench` for `coloctl bench supervisors`; starts each pair with
`control.daemon.spawn`. The guests are firmware that found nothing to boot, so that the machine's
time is the supervisors' and QEMU's own. They need no lab: each pair has loopback addresses of its
own, and no network card.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coloctl import pairfile
from coloctl.bench.cost import Meter, spent
from coloctl.bench.document import BENCH_SCHEMA
from coloctl.bench.soak import SoakCounts
from coloctl.chaos.run import testbed
from coloctl.chaos.run.figures import summary
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient
from coloctl.control.daemon.spawn import spawned_supervisor
from coloctl.host import open_host
from coloctl.machine import image
from coloctl.model.units import MIB

DISK_BYTES = 16 * MIB
BASE_PORT = 21000

_PAIR = """\
name = {name}
[guest]
memory = "64MiB"
accel = {accel}
qemu = {qemu}
[[disk]]
id = "disk0"
image = {{ a = {disk_a}, b = {disk_b} }}
[node.a]
address = {address_a}
[node.b]
address = {address_b}
[replication]
base_port = {base_port}
[checkpoint]
delay_ms = {delay_ms}
[policy]
auto_reprotect = false
"""


@dataclass(frozen=True)
class Crowd:
    """The number and kind of pairs, and for how long they are watched."""

    qemu: Path
    accel: str
    name: str
    pairs: int = 10
    seconds: float = 60.0
    delay_ms: int = 1000


def crowd(what: Crowd, tell: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
    """Protect all pairs, watch them for ``seconds`` without a fault, and return the document.

    Every pair is removed afterwards. ``tell`` receives a line when a pair is protected.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{what.name}-")))
        clients = []
        for number in range(1, what.pairs + 1):
            began_s = time.monotonic()
            clients.append(_protected(what, number, folder, stack))
            tell(f"pair {number} is in COLO after {time.monotonic() - began_s:.1f} s")
        pids = [Acts(client).view().supervisor_pid for client in clients]
        meters = [Meter.read(pid) for pid in pids]
        seen = _all_watched(clients, what.seconds)
        costs = [spent(meter) for meter in meters]
        views = [Acts(client).view() for client in clients]
    pauses = [pause for one in seen for pause in one.pauses_ms]
    return {
        "schema": BENCH_SCHEMA,
        "bench": "supervisors",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count()},
        "setting": {
            "qemu": {"binary": str(what.qemu), "accel": what.accel},
            "pairs": what.pairs,
            "seconds": what.seconds,
            "delay_ms": what.delay_ms,
        },
        "false_failovers": [reason for one in seen for reason in one.false_failovers],
        "protected": sum(view.protected for view in views),
        "checkpoints": len(pauses),
        "checkpoint_pause_ms": summary(pauses),
        "supervisor_cpu_percent": summary(cost["cpu_percent"] for cost in costs),
        "supervisor_rss_mib": summary(cost["rss_mib"] for cost in costs),
    }


def _protected(what: Crowd, number: int, folder: Path, stack: ExitStack) -> ControlClient:
    """Start one more pair and bring it into COLO; it ends with ``stack``."""
    pair = pairfile.load(asyncio.run(_written(what, number, folder)))
    born = stack.enter_context(spawned_supervisor(pair))
    stack.callback(born.end)
    client = stack.enter_context(born.connect())
    Acts(client).start(wait_s=testbed.PROTECT_DEADLINE_S)
    return client


async def _written(what: Crowd, number: int, folder: Path) -> Path:
    """Write the pair file and its empty disks beside it."""
    disks = {node: folder / f"{number}-{node}.qcow2" for node in ("a", "b")}
    host = open_host("local")
    try:
        for disk in disks.values():
            await image.create_overlay(disk, DISK_BYTES, host.run, qemu_img=image.tool(what.qemu))
    finally:
        await host.aclose()
    # Loopback addresses that follow from the process, so that two benches do not meet.
    net = f"127.{os.getpid() >> 8 & 63 | 128}.{os.getpid() & 255}"
    values = {
        "name": f"{what.name}-{number}",
        "accel": what.accel,
        "qemu": str(what.qemu),
        "disk_a": str(disks["a"]),
        "disk_b": str(disks["b"]),
        "address_a": f"{net}.{2 * number}",
        "address_b": f"{net}.{2 * number + 1}",
    }
    path = folder / f"{number}.toml"
    path.write_text(
        _PAIR.format(
            base_port=BASE_PORT,
            delay_ms=what.delay_ms,
            **{key: json.dumps(value) for key, value in values.items()},
        )
    )
    return path


def _all_watched(clients: Sequence[ControlClient], seconds: float) -> list[SoakCounts]:
    """Collect the events of every supervisor in that time; an interrupt ends the time."""
    ended = threading.Event()
    until_s = time.monotonic() + seconds
    with ThreadPoolExecutor(len(clients)) as pool:
        try:
            return list(pool.map(lambda client: _watched(client, until_s, ended), clients))
        finally:
            ended.set()


def _watched(client: ControlClient, until_s: float, ended: threading.Event) -> SoakCounts:
    seen = SoakCounts()
    while not ended.is_set() and (left_s := until_s - time.monotonic()) > 0:
        for event in client.events(min(left_s, 0.5)):
            seen.note(event)
    return seen
