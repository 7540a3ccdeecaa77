"""The lab's guest as a pair, and redis clients that talk to it from the client's machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from support.evidences import around, checked
from support.pairs import Stage, firmware_spec

from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.records import WorkloadRecord
from coloctl.chaos.scenario.values import Workload
from coloctl.chaos.workloads.history import Op, parse
from coloctl.lab import guest, layout, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import CheckpointSpec, GuestSpec, NicSpec, NodeSpec, PairSpec, TapSpec

WORKLOAD = (sys.executable, "-m", "coloctl.chaos.workloads.redis_appends")
MAC = "52:54:00:12:34:56"
#: One redis command over a connection of its own: address, port, patience, the command.
ASK = """
import socket, sys
_, address, port, patience, *words = sys.argv
with socket.create_connection((address, int(port)), float(patience)) as s:
    s.settimeout(float(patience))
    s.sendall(" ".join(words).encode() + b"\\r\\n")
    print(s.recv(4096).decode())
"""

#: Writes over one connection: milliseconds of the connect and of each request, as JSON.
TIMED = """
import json, socket, sys, time
_, address, count = sys.argv
marks = [time.monotonic()]
with socket.create_connection((address, 6379), 60) as s:
    marks.append(time.monotonic())
    s.settimeout(60)
    for n in range(int(count)):
        s.sendall(b"SET first %d\\r\\n" % n)
        assert s.recv(64) == b"+OK\\r\\n"
        marks.append(time.monotonic())
print(json.dumps([1e3 * (b - a) for a, b in zip(marks, marks[1:])]))
"""
#: Requests on a connection whose waits are compared.
REQUESTS = 20
#: An answer may wait for a checkpoint, that for its turn on a busy machine, and a packet of the
#: handshake may have done so before. Waits of 9 s were reported once.
FACTOR = 6

#: From power on to redis, and from the end of the clients to the end of their process, seconds.
BOOT_PATIENCE_S = 90.0
END_PATIENCE_S = 40.0


def guest_spec(
    lab: Lab, image: guest.GuestImage, folder: Path, build: qemu.Build, **append: object
) -> PairSpec:
    """A pair of the lab's guest on the lab's two hosts, its disks in ``folder``."""
    spec = firmware_spec(folder, build, "tcg")
    for disk in spec.disks:
        for path in disk.image.values():
            image.copy_disk(path)
    address = f"{layout.GUEST}/{layout.PREFIX_LENGTH}"
    return replace(
        spec,
        guest=GuestSpec(
            memory_mib=256,
            accel="tcg",
            qemu=build.binary,
            kernel=image.kernel,
            initrd=image.initrd,
            append=image.append_for(address, **append),  # type: ignore[arg-type]
        ),
        nics=(NicSpec("hn0", MAC, TapSpec({"a": "tap-a", "b": "tap-b"}, layout.BRIDGE)),),
        nodes={
            "a": NodeSpec("a", f"netns:{lab.host_a}", layout.REPLICATION_A),
            "b": NodeSpec("b", f"netns:{lab.host_b}", layout.REPLICATION_B),
        },
        checkpoint=CheckpointSpec(delay_ms=500),
    )


async def ask(lab: Lab, *words: str, server: str = layout.GUEST, patience_s: float = 10) -> str:
    """What the guest's redis answers a client; empty when it does not."""
    address, _, port = server.partition(":")
    argv = [sys.executable, "-c", ASK, address, port or "6379", str(patience_s), *words]
    return (await asyncio.to_thread(lab.run, argv, check=False)).stdout.strip()


async def slowest_ms(lab: Lab) -> float:
    """Open a connection, write over it, and return the longest wait of all, milliseconds."""
    argv = [sys.executable, "-c", TIMED, layout.GUEST, str(REQUESTS)]
    waits: list[float] = json.loads((await asyncio.to_thread(lab.run, argv)).stdout)
    assert len(waits) == REQUESTS + 1
    return max(waits)


async def first_as_later(stage: Stage, lab: Lab) -> None:
    """Nothing waits much longer on the first connection of a guest than on the next one.

    What holds an answer in COLO ends with a checkpoint, so the measure is their period, or what
    the next connection took, and no absolute time (docs/qemu.md, "The first request").
    """
    first = await slowest_ms(lab)
    later = await slowest_ms(lab)
    assert first < FACTOR * max(later, stage.state.spec.checkpoint.delay_ms), (first, later)


async def tell(lab: Lab, word: str) -> None:
    """The guest has been told to end: "reboot", "reset", "poweroff" or "panic"."""
    await ask(lab, "PUBLISH", "life", word, patience_s=2)


async def booted(stage: Stage) -> None:
    """The guest serves."""
    console = stage.state.ground.rundir("a") / "console.log"

    def said() -> str:
        return console.read_text(errors="replace") if console.exists() else ""

    deadline = time.monotonic() + BOOT_PATIENCE_S
    while guest.READY_LINE not in said():
        assert time.monotonic() < deadline, said()[-1500:]
        await asyncio.sleep(0.05)


@dataclass
class Clients:
    """Clients that append records, each over one connection; `history` once they have ended."""

    lab: Lab
    count: int
    process: subprocess.Popen[str]
    log: Path
    server: str = layout.GUEST
    history: list[Op] = field(default_factory=list)
    #: What was read of the log so far: its operations, acknowledgements by client, and its length.
    _seen: list[Op] = field(default_factory=list)
    _acks: Counter[int] = field(default_factory=Counter)
    _read: int = 0

    def seen(self) -> list[Op]:
        """Return what they have done so far.

        Each line is parsed once: the supervisor under test runs in the same loop, and a history
        has thousands of lines.
        """
        with self.log.open("rb") as log:
            log.seek(self._read)
            more = log.read()
        whole = more[: more.rfind(b"\n") + 1]
        self._read += len(whole)
        ops = list(parse(whole.decode().splitlines()))
        self._acks.update(op.client for op in ops if op.outcome == "ok" and op.n >= 0)
        self._seen += ops
        return self._seen

    async def until(self, enough: Callable[[Sequence[Op]], bool]) -> None:
        async with asyncio.timeout(BOOT_PATIENCE_S):
            while not enough(self.seen()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def acknowledged(self, more: int) -> None:
        """Wait until every client has seen that many records more acknowledged."""
        self.seen()
        goals = [self._acks[client] + more for client in range(self.count)]
        await self.until(lambda _seen: all(self._acks[c] >= goal for c, goal in enumerate(goals)))

    async def connected(self) -> None:
        """Every client has its connection."""
        await self.until(
            lambda seen: sum(op.note.startswith("opened") for op in seen) == self.count
        )

    def end(self) -> list[Op]:
        """They have noted how their connections ended."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.wait(END_PATIENCE_S)
        self.history = self.seen()
        return self.history

    def verdicts(self, fault_at_s: float) -> list[Verdict]:
        """End the clients, and check that the fault cost them no record and no connection."""
        spec = Workload(name="clients", kind="redis-appends", clients=self.count)
        run = around(fault_at_s, WorkloadRecord(spec, self.end(), self.read_back()))
        return [checked(check, run) for check in ("no_lost_acks", "connections_survive")]

    def read_back(self) -> Mapping[int, list[int]]:
        """What the guest holds of each client, over new connections."""
        argv = (*WORKLOAD, "--host", self.server, "--clients", str(self.count), "--read-back")
        held: Mapping[str, list[int]] = json.loads(self.lab.run(argv).stdout)
        return {int(client): records for client, records in held.items()}


@contextmanager
def clients(
    lab: Lab, log: Path, count: int = 4, pause_ms: float = 0, server: str = layout.GUEST
) -> Iterator[Clients]:
    """Clients at work inside the block; ``server`` is the guest's address, with or without port."""
    params = json.dumps({"pause_ms": pause_ms})
    argv = (*WORKLOAD, "--host", server, "--clients", str(count), "--params", params)
    with log.open("w") as out:
        process = lab.popen(argv, stdin=subprocess.PIPE, stdout=out, text=True)
    try:
        yield Clients(lab, count, process, log, server)
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
