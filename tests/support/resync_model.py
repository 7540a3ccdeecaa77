"""Two nodes' disks in memory, the parts of QEMU that a comparison uses, and a guest that writes.

A write is not a moment: its bytes arrive in parts, and its bit is set when it ends. The guest
writes whenever anything happens: around every QMP command, and around every NBD request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.nbd_server import Connection, Export, Extents, whole

from coloctl.errors import CommandRefused, Unreachable
from coloctl.host.machine import this_machine
from coloctl.host.records import Contact, Reach
from coloctl.nbd.client import NbdClient
from coloctl.nbd.digest import lines
from coloctl.nbd.mend import Mender
from coloctl.nbd.scan import Grain
from coloctl.nbd.wire import NBDFailed
from coloctl.qmp.command import Command

GRAIN = Grain(chunk=16, piece=32, ahead=2)


@dataclass
class Bitmap:
    granularity: int
    recording: bool = True
    busy: bool = False
    dirty: set[int] = field(default_factory=set)


@dataclass
class Write:
    """A write under way: what is left of it to arrive, and what it will have touched."""

    begin: int
    data: bytes
    arrived: int = 0


class Lost(Exception):
    """A test's fault has happened."""


class World:
    """The survivor's QEMU and disk, the replica's disk, and what happens to both."""

    def __init__(self, survivor: bytes, replica: bytes, chance: random.Random) -> None:
        self.disk, self.replica = bytearray(survivor), bytearray(replica)
        self.chance = chance
        self.size = len(survivor)
        self.running = True
        self.attached = False
        self.writing: list[Write] = []
        self.bitmaps: dict[str, Bitmap] = {}
        self.exports: dict[str, Export] = {}
        self.served: dict[str, str | None] = {}  #: bitmap by export
        self.server = False
        self.eager = 0.3  #: how likely the guest does something at each step
        self.steps = 0
        self.fault: Callable[[], None] = lambda: None  #: called at every step
        self.targets: list[Connection] = []
        self.said: list[str] = []
        self.inside = False  #: a program is what is running now

    @contextlib.contextmanager
    def program(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    # -- the guest

    def step(self) -> None:
        """Some time passes."""
        self.steps += 1
        self.fault()
        while self.running and self.chance.random() < self.eager:
            if self.writing and self.chance.random() < 0.6:
                self._arrive(self.chance.choice(self.writing))
            else:
                begin = self.chance.randrange(self.size)
                length = min(self.size - begin, self.chance.choice((1, 5, 16, 40)))
                data = bytes([self.chance.choice((0, 0, 1, 2, 255))]) * length
                self.writing.append(Write(begin, data))

    def _arrive(self, write: Write) -> None:
        upto = self.chance.randrange(write.arrived, len(write.data) + 1)
        for disk in [self.disk, *([self.replica] if self.attached else [])]:
            disk[write.begin + write.arrived : write.begin + upto] = write.data[
                write.arrived : upto
            ]
        write.arrived = upto
        if upto == len(write.data):
            self.writing.remove(write)
            for bitmap in self.bitmaps.values():
                if bitmap.recording:
                    first = write.begin // bitmap.granularity
                    last = (write.begin + len(write.data) - 1) // bitmap.granularity
                    bitmap.dirty |= set(range(first, last + 1))

    def drain(self) -> None:
        """Every write has ended."""
        while self.writing:
            self._arrive(self.writing[0])

    # -- QMP

    def execute(self, command: Command) -> Any:
        self.step()
        try:
            self.said.append(command.execute)
            handler = getattr(self, "_" + command.execute.replace("-", "_"))
            return handler(**{k.replace("-", "_"): v for k, v in command.arguments.items()})
        finally:
            self.step()

    def _stop(self) -> None:
        self.drain()
        self.running = False

    def _cont(self) -> None:
        self.running = True

    def _x_blockdev_change(self, parent: str, node: str) -> None:
        assert not self.writing, "a write under way would reach one child only"
        self.attached = True

    def _block_dirty_bitmap_add(self, node: str, name: str, granularity: int) -> None:
        _refuse_if(name in self.bitmaps, f"Bitmap already exists: {name}")
        self.bitmaps[name] = Bitmap(granularity)

    def _bitmap(self, name: str) -> Bitmap:
        _refuse_if(name not in self.bitmaps, f"Dirty bitmap '{name}' not found")
        _refuse_if(self.bitmaps[name].busy, f"Bitmap '{name}' is currently in use")
        return self.bitmaps[name]

    def _block_dirty_bitmap_disable(self, node: str, name: str) -> None:
        self._bitmap(name).recording = False

    def _block_dirty_bitmap_remove(self, node: str, name: str) -> None:
        self._bitmap(name)
        del self.bitmaps[name]

    def _nbd_server_start(self, addr: Any) -> None:
        _refuse_if(self.server, "NBD server already running")
        self.server = True

    def _nbd_server_stop(self) -> None:
        _refuse_if(not self.server, "NBD server not running")
        for name in list(self.exports):
            self._block_export_del(name)
        self.server = False

    def _block_export_add(
        self,
        *,
        id: str,
        type: str,
        node_name: str,
        name: str,
        writable: bool,
        bitmaps: Sequence[str] = (),
    ) -> None:
        _refuse_if(not self.server, "NBD server not running")
        _refuse_if(id in self.exports, f"Block export id '{id}' is already in use")
        contexts: dict[str, Callable[[], Extents]] = {"base:allocation": self._allocation}
        for bitmap in bitmaps:
            known = self._bitmap(bitmap)
            _refuse_if(known.recording and not writable, f"Enabled bitmap '{bitmap}' incompatible")
            known.busy = True
            contexts[f"qemu:dirty-bitmap:{bitmap}"] = lambda known=known: self._dirty(known)
        self.served[id] = bitmaps[0] if bitmaps else None
        self.exports[id] = Export(
            self.size, lambda at, n: bytes(self.disk[at : at + n]), None, contexts
        )

    def _block_export_del(self, id: str, mode: str = "hard") -> None:
        del self.exports[id]
        bitmap = self.served.pop(id)
        if bitmap:
            self.bitmaps[bitmap].busy = False

    def _query_block_exports(self) -> list[dict[str, Any]]:
        return [{"id": name} for name in self.exports]

    def _query_named_block_nodes(self, flat: bool) -> list[dict[str, Any]]:
        bitmaps = [
            {"name": name, "count": len(one.dirty) * one.granularity}
            for name, one in self.bitmaps.items()
        ]
        image = {"virtual-size": self.size}
        return [{"node-name": "colo-disk0", "image": image, "dirty-bitmaps": bitmaps}]

    # -- what NBD shows

    def _allocation(self) -> Extents:
        return allocation(self.disk, self.chance)

    def _dirty(self, bitmap: Bitmap) -> Extents:
        step = bitmap.granularity
        return whole(self.size, step, lambda at: int(at // step in bitmap.dirty))

    def replica_export(self) -> Export:
        def write(at: int, data: bytes) -> None:
            self.replica[at : at + len(data)] = data

        return Export(
            self.size,
            lambda at, n: bytes(self.replica[at : at + n]),
            write,
            {"base:allocation": lambda: allocation(self.replica, self.chance)},
            can_zero=self.chance.random() < 0.8,
        )

    def unwritten(self) -> list[tuple[int, bytes]]:
        """Writes that a replica's QEMU was sent and has not carried out: place, data."""
        return [
            (offset, data if kind == 1 else bytes(length))
            for target in self.targets
            for kind, _, offset, length, data in target.queue
            if kind in (1, 6)
        ]

    def lose_replica(self) -> None:
        """Its QEMU is killed; what it had been sent was written, or not."""
        for offset, data in self.unwritten():
            if not self.attached and self.chance.random() < 0.5:
                self.replica[offset : offset + len(data)] = data
        self.targets.clear()
        self.attached = False

    @property
    def clean(self) -> bool:
        """Nothing of a comparison is left, and the guest runs."""
        return not (self.bitmaps or self.exports or self.server) and self.running


def _refuse_if(wrong: bool, why: str) -> None:
    if wrong:
        raise CommandRefused("test", why)


def allocation(disk: bytearray, chance: random.Random) -> Extents:
    """Zeros are told as such, or not; never anything else."""
    honest = chance.random() < 0.8
    return whole(len(disk), 8, lambda at: 3 if honest and not any(disk[at : at + 8]) else 0)


# -- what difference.send needs of a VM and its host


class ModelMonitor:
    node = "a"
    gone = False

    def __init__(self, world: World) -> None:
        self._world = world

    async def execute(self, command: Command, deadline_s: float = 5.0, *, fd: Any = None) -> Any:
        return self._world.execute(command)


class Digester:
    """`nbd.digest` on the replica's host."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lines: Iterator[Any] = iter(())

    async def say(self, line: str, deadline_s: float) -> None:
        told = json.loads(line)
        connection = Connection(
            {"parent0": self._world.replica_export()}, self._world.chance, self._world.step
        )
        self._world.targets.append(connection)
        client = NbdClient(connection, told["at"]["export"], ["base:allocation"])
        self._lines = lines(client, bytes.fromhex(told["key"]), GRAIN)

    async def hear(self, deadline_s: float) -> str | None:
        try:
            with self._world.program():
                return next((json.dumps(line) for line in self._lines), None)
        except NBDFailed as error:
            return json.dumps({"failed": error.message})
        except Lost:
            return None

    def last_words(self) -> str:
        return ""


class Talk:
    """`nbd.mend` on the survivor's host."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._said: deque[str] = deque()
        self.killed = False
        self._over = False
        self._mender = Mender(lambda m: self._said.append(json.dumps(m)), self._connect, GRAIN)

    def _connect(self, at: Any, contexts: Iterable[str]) -> NbdClient:
        world = self._world
        if "unix" in at:
            connection = Connection(world.exports, world.chance, world.step)
        else:
            connection = Connection({"parent0": world.replica_export()}, world.chance, world.step)
            world.targets.append(connection)
        return NbdClient(connection, at["export"], contexts)

    async def say(self, line: str, deadline_s: float) -> None:
        await asyncio.sleep(0)
        if self._over:
            raise Unreachable("it has ended")
        try:
            with self._world.program():
                self._over = not self._mender.hear(json.loads(line))
        except Lost:
            self._over = True

    async def hear(self, deadline_s: float) -> str | None:
        while not self._said:
            if self._over:
                return None
            await asyncio.sleep(0)
        return self._said.popleft()

    def last_words(self) -> str:
        return ""


class ModelHost:
    def __init__(self, world: World) -> None:
        self._world = world
        self.machine = this_machine()
        self.reach = Reach(Contact.HERE, 0.0)

    @contextlib.asynccontextmanager
    async def converse(self, argv: Sequence[str]) -> AsyncIterator[Any]:
        yield (Digester if argv[-1].endswith("digest") else Talk)(self._world)


class ModelVM:
    """Stands for the primary and for the secondary, of which only the host is asked."""

    def __init__(self, world: World, node: str) -> None:
        self.node = node
        self.monitor = ModelMonitor(world)
        self.host = ModelHost(world)
        self.rundir = Path("/nowhere")
        self.world = world

    async def execute(self, command: Command, deadline_s: float = 5.0) -> Any:
        return self.world.execute(command)
