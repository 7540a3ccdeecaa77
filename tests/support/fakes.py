"""A pair without QEMU: processes, hosts and monitors that write down what was done, in one order.

Lines of the log: ``a: query-status`` (a command), ``a: killed``, ``a: tap-a0 down``, and whatever a
test adds. Monitors speak real QMP with `fake_qmp`; only the QEMU behind them is made up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fake_qmp import FakeQMP

from coloctl.colo.ground import Ground, same_on_both
from coloctl.errors import FencingFailed, HostOutOfReach, PreconditionFailed, Unreachable
from coloctl.host.access import Caller
from coloctl.host.base import Host, Identity, Process
from coloctl.host.console import GuestConsole
from coloctl.host.delivery import Deliveries, TcpConnection
from coloctl.host.local_files import read_log
from coloctl.host.machine import this_machine
from coloctl.host.process import file_bytes
from coloctl.host.records import (
    Completed,
    Contact,
    Death,
    DeathProof,
    Friends,
    LogPiece,
    Machine,
    Reach,
    Stray,
    ThreadTimes,
)
from coloctl.host.watching import Beacon, Channel, Listener
from coloctl.journal import Journal
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.disk import DiskIdentity
from coloctl.model.observation import Life
from coloctl.model.pair import (
    NODES,
    DiskSpec,
    GuestSpec,
    NicSpec,
    NodeName,
    NodeSpec,
    PairSpec,
    Policy,
    Role,
    TapSpec,
)
from coloctl.model.pairevent import PairEvent
from coloctl.model.protection import Fact, Protection
from coloctl.model.wires import Address, Endpoint
from coloctl.qmp.monitor import Monitor
from coloctl.supervisor.state import PairState
from coloctl.vm import VM, Binary

Log = list[str]

DIALECTS = {
    "reconnect": Dialect("7.2.22", ReturnPath.FORBIDDEN, "reconnect"),
    "reconnect-ms": Dialect(
        "11.1.3", ReturnPath.REQUIRED, "reconnect-ms", switchover_bandwidth=True
    ),
}

_pids = itertools.count(100_000)


def make_spec(*, disks: int = 1, nics: int = 1, by_hand: bool = False) -> PairSpec:
    """A pair on two hosts that do not exist; ``by_hand``: it fails over only when it is asked."""
    return PairSpec(
        name="web",
        guest=GuestSpec(memory_mib=512),
        disks=tuple(
            DiskSpec(f"disk{i}", {n: Path(f"/srv/{n}{i}.qcow2") for n in NODES})
            for i in range(disks)
        ),
        nics=tuple(
            NicSpec(
                f"hn{i}",
                f"52:54:00:12:34:5{i}",
                TapSpec({"a": f"tap-a{i}", "b": f"tap-b{i}"}, "br0"),
            )
            for i in range(nics)
        ),
        nodes={
            "a": NodeSpec("a", "netns:host-a", "10.66.0.1"),
            "b": NodeSpec("b", "netns:host-b", "10.66.0.2"),
        },
        policy=Policy(auto_failover=not by_hand, auto_reprotect=False),
    )


def on_one_host(spec: PairSpec) -> PairSpec:
    """Both nodes of the pair are on this machine."""
    return replace(spec, nodes={n: replace(node, host="local") for n, node in spec.nodes.items()})


class FakeProcess(Process):
    def __init__(self, node: NodeName, log: Log) -> None:
        self._node, self._log = node, log
        self._identity = Identity(next(_pids), 1)
        self._dead = asyncio.Event()
        self.immortal = False  #: a kill gives no proof
        self._console: Path | None = None
        self.away: Callable[[], bool] = lambda: False  #: its machine does not report of it
        self.killing: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
        self.is_frozen = False
        self.is_dying = False  #: its end has begun
        #: What the threads have worked that are watched, the first at least.
        self.times: Callable[[], ThreadTimes | None] = lambda: None
        self.threads: tuple[int, ...] = ()

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def argv(self) -> tuple[str, ...]:
        return ("qemu-system-x86_64",)

    @property
    def node(self) -> str:
        return self._node

    def die(self) -> None:
        self._dead.set()

    async def wait(self) -> Death:
        await self._dead.wait()
        return Death(self._identity.pid, 0.0, None)

    def alive(self) -> bool:
        return not self._dead.is_set()

    def life(self) -> Life:
        if not self.alive():
            return Life.DEAD
        if self.away():
            return Life.UNKNOWN
        return Life.STOPPED if self.is_frozen else Life.ALIVE

    def dying(self) -> bool:
        return self.is_dying and self.alive()

    def cpu_s(self) -> float | None:
        return 0.0

    def watch(self, *, threads: Sequence[int] | None = None, console: Path | None = None) -> None:
        self._console = console or self._console
        self.threads = self.threads if threads is None else tuple(threads)

    def worked(self) -> ThreadTimes | None:
        return self.times() if self.threads else None

    def console_bytes(self) -> int:
        return file_bytes(self._console)

    def signal(self, signum: int) -> bool:
        return self.alive()

    async def kill(self, deadline_s: float) -> DeathProof:
        try:
            async with asyncio.timeout(deadline_s):
                await self.killing()
        except HostOutOfReach as error:
            raise FencingFailed(self._node, error.message, out_of_reach=True) from None
        except TimeoutError:
            raise FencingFailed(self._node, f"Node {self._node} has not answered.") from None
        await asyncio.sleep(0)
        if self.immortal:
            raise FencingFailed(self._node, f"Node {self._node} does not die.")
        how = "sigkill" if self.alive() else "already-dead"
        self.die()
        self._log.append(f"{self._node}: killed")
        return DeathProof(self._identity.pid, 1, how, 0.0, None)

    async def terminate(self, deadline_s: float) -> DeathProof:
        return await self.kill(deadline_s)

    def close(self) -> None:
        return None


class FakeBeacon(Beacon):
    """Hears its peer at every beat, as long as its host's link holds, or as ``answer`` says."""

    def __init__(self, host: FakeHost) -> None:
        self.session, self.delay_s, self.refused = b"", 0.0, 0
        self.reported_ms: float | None = None
        self.answer: bool | None = True
        self._host = host

    @property
    def lost(self) -> int:  # type: ignore[override]
        return self._host.lost

    def meet(self, session: bytes) -> None:
        return None

    def beat(self) -> bool | None:
        return self.answer and not self._host.cut_off

    def close(self) -> None:
        return None


class FakeDeliveries(Deliveries):
    """Its host's connections, as a test has them."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    def find(self) -> Sequence[TcpConnection]:
        return self._host.sent_data

    def look(self) -> Sequence[TcpConnection]:
        return self._host.sent_data

    def close(self) -> None:
        return None


class FakeChannel(Channel):
    """Carries what is asked for, as long as its host's link holds."""

    def __init__(self, host: FakeHost, local: Endpoint) -> None:
        self.description, self.local = str(local), local
        self._host = host

    async def send(self, data: bytes, deadline_s: float) -> None:
        if self._host.cut_off:
            raise Unreachable(f"no data over {self.description}")

    async def receive(self, length: int, deadline_s: float) -> bytes:
        await self.send(b"", deadline_s)
        return bytes(length)

    def close(self) -> None:
        return None


class FakeListener(Listener):
    """Accepts every peer, as long as its host's link holds."""

    def __init__(self, host: FakeHost, at: Endpoint) -> None:
        self.at, self._host = at, host

    async def accept(self, peer: Endpoint, *, nodelay: bool, deadline_s: float) -> Channel:
        if self._host.cut_off:
            raise Unreachable(f"no connection to {self.at}")
        return FakeChannel(self._host, peer)

    def close(self) -> None:
        return None


class FakeHost(Host):
    """Its taps can be made to fail; it starts nothing."""

    def __init__(self, node: NodeName, log: Log) -> None:
        self._node, self._log = node, log
        self.no_taps = False
        self.taps: dict[str, bool | None] = {}  #: up, down, or not there; up where nothing is said
        self.open_taps: set[str] = set()  #: taps that another process has open
        self.connected = asyncio.Event()  #: the guest's first TCP connection crosses the tap
        self.sent = asyncio.Event()  #: a frame of the guest crosses the tap
        self.unwatchable = False
        self.lost = 0  #: datagrams that it did not hear
        self.sent_data: tuple[
            TcpConnection, ...
        ] = ()  #: what its kernel knows of the pair's connections
        self.strangers: tuple[Caller, ...] = ()  #: who else is connected to its QEMU
        self.cut_off = False  #: nothing reaches it over the replication link
        self.holding: list[str] = []  #: what processes that nobody knows hold of a dead QEMU
        self.letting_go = False  #: one of it less each time that it is asked about
        self.files: dict[Path, bytes] = {}  #: what was written durably there
        self._reach = Reach(Contact.HERE, 0.0)
        self._moved = asyncio.Event()
        self.silent = False  #: connected, and nothing comes from there
        self.strays: dict[Path, tuple[Stray, ...]] = {}  #: who listens at a socket there

    @property
    def reach(self) -> Reach:
        reports = self._reach.contact is Contact.CONNECTED and not self.silent
        if reports:  # at every look
            self._reach = replace(self._reach, heard_s=(self._reach.heard_s or 0.0) + 0.02)
        return self._reach

    def move(
        self,
        contact: Contact,
        *,
        session: int | None = None,
        silent: bool = False,
        round_trip_ms: float = 0.0,
    ) -> None:
        """Reach it in another way from now on."""
        self.silent = silent
        before = self._reach
        known = before.session if session is None else session
        why = "No route to host."
        self._reach = Reach(contact, 0.0, why, known, round_trip_ms, before.heard_s)
        self._moved.set()
        self._moved = asyncio.Event()

    async def answer(self) -> None:
        """Return when it answers; raises `HostOutOfReach` where it cannot be asked."""
        while self.silent and not self.reach.out:
            await self._moved.wait()
        self._require_reach()

    def _require_reach(self) -> None:
        if self.reach.out:
            raise HostOutOfReach(f"{self.name} is out of reach: {self.reach.why}")

    @property
    def machine(self) -> Machine:
        return this_machine()

    async def ready(self, deadline_s: float) -> None:
        self._require_reach()

    async def reached(self, than: Reach) -> Reach:
        while (self.reach.contact, self.reach.session) == (than.contact, than.session):
            await self._moved.wait()
        return self.reach

    async def holders(self, sockets: Collection[Path]) -> Mapping[Path, tuple[Stray, ...]]:
        self._require_reach()
        return {path: self.strays[path] for path in sockets if path in self.strays}

    async def still_held(
        self, *, images: Collection[Path], taps: Collection[str], besides: object = None
    ) -> tuple[str, ...]:
        if self.letting_go and self.holding:
            self.holding.pop()
        return tuple(self.holding)

    @property
    def name(self) -> str:
        return f"netns:host-{self._node}"

    async def kill(
        self,
        identity: Identity,
        *,
        node: str,
        deadline_s: float,
        leader: Identity | None = None,
        sockets: Collection[Path] = (),
    ) -> DeathProof:
        try:
            await self.answer()
        except HostOutOfReach as error:
            raise FencingFailed(node, error.message, out_of_reach=True) from None
        self._log.append(f"{self._node}: process {identity.pid} ended")
        return DeathProof(identity.pid, identity.start_time, "sigkill", 0.0, None)

    async def keep_bounded(self, paths: Collection[Path]) -> None:
        self._require_reach()

    async def read_tail(self, path: Path, lines: int = 20) -> str:
        self._require_reach()
        return ""

    async def read_log(self, path: Path, offset: int, most: int) -> LogPiece:
        self._require_reach()
        return read_log(path, offset, most)

    async def tap(self, name: str, *, up: bool) -> None:
        await self.answer()
        if self.no_taps:
            raise PreconditionFailed(f"{name} is not there")
        self._log.append(f"{self._node}: {name} {'up' if up else 'down'}")
        self.taps[name] = up

    async def tap_is_up(self, name: str) -> bool | None:
        return self.taps.get(name, True)

    async def tap_held(self, name: str) -> bool:
        return name in self.open_taps

    async def image_user(self, image: Path) -> str | None:
        return None

    @contextlib.asynccontextmanager
    async def first_connection(self, tap: str) -> AsyncIterator[Any]:
        if self.unwatchable:
            raise PreconditionFailed(f"{tap} cannot be watched")
        connected = self.connected

        class Watch:
            async def wait(self) -> None:
                await connected.wait()

        yield Watch()

    async def calls(self, client: Identity, at: Address) -> Friends:
        return Friends(client.pid)

    async def callers(self, server: Identity, at: Address, friends: Friends) -> Sequence[Caller]:
        return (Caller("the peer", friend=True), *self.strangers)

    async def hang_up(
        self, server: Identity, at: Address, only: Collection[str] | None = None
    ) -> int:
        self.strangers = ()
        return 0

    async def widen(self, server: Identity, at: Address, size: int) -> None:
        return None

    async def beacon(self, at: Endpoint, peer: Endpoint, key: bytes, beat_ms: int) -> Beacon:
        return FakeBeacon(self)

    async def listen(self, at: Endpoint) -> Listener:
        return FakeListener(self, at)

    async def connect(self, to: Endpoint, *, nodelay: bool, deadline_s: float) -> Channel:
        if self.cut_off:
            raise Unreachable(f"no connection to {to}")
        return FakeChannel(self, to)

    async def hear(self, at: Address, length: int, *, deadline_s: float) -> bytes:
        assert isinstance(at, Endpoint)
        await self.connect(at, nodelay=True, deadline_s=deadline_s)
        return b"NBDMAGICIHAVEOPT"

    async def deliveries(self, at: str, peer: str, ports: Collection[int]) -> Deliveries | None:
        return FakeDeliveries(self)

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        return Completed(0, "{}", "")

    @contextlib.asynccontextmanager
    async def first_packet(self, tap: str) -> AsyncIterator[Any]:
        sent = self.sent

        class Watch:
            async def wait(self) -> None:
                await sent.wait()

        yield Watch()

    async def identify(self, path: Path) -> DiskIdentity:
        await self.answer()
        return DiskIdentity(f"file:{path}")

    async def read_file(self, path: Path, limit: int) -> bytes | None:
        await self.answer()
        return self.files.get(path)

    async def write_durably(self, path: Path, content: bytes, *, make_folder: bool = False) -> None:
        await self.answer()
        self.files[path] = content
        self._log.append(f"{self._node}: {path.name} = {content.decode().strip()}")

    async def aclose(self) -> None:
        return None


class LoggedQMP(FakeQMP):
    """Writes every command into the pair's log before it is answered."""

    def __init__(self, node: NodeName, log: Log, answers: dict[str, Any]) -> None:
        super().__init__()
        self._node, self._log = node, log
        self.answers = answers
        #: Called with each command's name before it is answered; what it returns replaces the
        #: answer, unless that is None.
        self.before: Callable[[str], Any] = lambda name: None

    def _handle(self, message: dict[str, Any]) -> None:
        name = str(message.get("execute") or message.get("exec-oob"))
        if name == "qmp_capabilities":
            return super()._handle(message)
        self._log.append(f"{self._node}: {name}")
        usual = self.answers.get(name, {})
        instead = self.before(name)
        self.answers[name] = usual if instead is None else instead
        super()._handle(message)
        self.answers[name] = usual
        return None


#: What the lonely survivor of a pair answers.
ALONE: dict[str, Any] = {
    "query-status": {"status": "running", "running": True},
    "query-migrate": {},
    "query-colo-status": {"mode": "none", "last-mode": "none", "reason": "none"},
    "query-yank": [
        {"type": "migration"},
        {"type": "block-node", "node-name": "nbd0"},
        {"type": "chardev", "id": "mirror0"},
        {"type": "chardev", "id": "red0"},
        {"type": "chardev", "id": "compare_out"},
    ],
    "query-named-block-nodes": [],
    "query-jobs": [],
    "qom-list": [],
    "migrate-set-parameters": {},
}


class FakeVM(VM):
    """A VM of which a test holds the strings: ``fakes`` are its two roads."""

    process: FakeProcess
    host: FakeHost
    fakes: tuple[LoggedQMP, LoggedQMP]

    def writes_to(self, console: Path) -> None:
        """Its guest's console is that file from now on."""
        self.console = GuestConsole(self.host, console)
        self.process.watch(console=console)

    def event(self, name: str, **data: Any) -> None:
        for fake in self.fakes:
            fake.event(name, data)

    def before(self, deed: Callable[[str], Any]) -> None:
        """``deed`` is called with each command's name; what it returns is the answer, if any."""
        for fake in self.fakes:
            fake.before = deed

    def takes_checkpoints(self) -> list[int]:
        """A checkpoint is taken whenever its delay is set; answers the delays, growing."""
        delays: list[int] = []

        def take(arguments: Mapping[str, Any]) -> dict[str, Any]:
            delays.append(arguments["x-checkpoint-delay"])
            self.event("STOP")
            self.event("RESUME")
            return {}

        self.answer("migrate-set-parameters", take)
        return delays

    def answer(self, command: str, answer: Any) -> None:
        """From now on; a `Refusal`, a misbehaviour or a function of the arguments too."""
        self.fakes[0].answers[command] = answer


@contextlib.asynccontextmanager
async def fake_vm(node: NodeName, log: Log, **answers: Any) -> AsyncIterator[FakeVM]:
    """One QEMU that is made up; ``answers`` by command, underscores for dashes."""
    given = ALONE | {name.replace("_", "-"): answer for name, answer in answers.items()}
    async with LoggedQMP(node, log, given) as one, LoggedQMP(node, log, given) as two:
        monitor = await Monitor.open(node, one.client, two.client, deadline_s=5)
        host, process = FakeHost(node, log), FakeProcess(node, log)
        process.away = lambda: host.silent or host.reach.out
        process.killing = host.answer
        vm = FakeVM(node, host, process, monitor, Path("/nowhere"))
        vm.fakes = (one, two)
        try:
            yield vm
        finally:
            await monitor.aclose()


@contextlib.asynccontextmanager
async def fake_state(
    folder: Path, spec: PairSpec | None = None, *, log: Log | None = None
) -> AsyncIterator[PairState]:
    """A pair that is down, on a ground that does not exist; events go to the log."""
    spec, log = spec or make_spec(), log if log is not None else []
    hosts = {node: FakeHost(node, log) for node in NODES}
    binary = Binary(Path("/usr/bin/qemu-system-x86_64"), DIALECTS["reconnect-ms"])
    with Journal(folder / "journal.jsonl") as journal:

        def emit(event: PairEvent) -> None:
            log.append(" ".join([event.NAME, *map(str, event.to_json().values())]))

        ground = Ground(hosts, same_on_both(binary, "tcg"), folder)
        yield PairState(spec, ground, journal, emit)


def seat_pair(state: PairState, a: FakeVM, b: FakeVM) -> None:
    """The pair is in COLO, with its primary on node a."""
    for vm, role in ((a, Role.PRIMARY), (b, Role.SECONDARY)):
        state.seats[vm.node].take(vm, role, "11.1.3")
    state.note(Fact.MIGRATION_BEGAN, "test")
    state.note(Fact.CHECKPOINT_COMPLETED, "test")
    assert state.protection is Protection.COLO


@contextlib.asynccontextmanager
async def in_colo(
    folder: Path, spec: PairSpec | None = None, log: Log | None = None
) -> AsyncIterator[tuple[PairState, FakeVM, FakeVM]]:
    """A pair in COLO: its state, its primary on node a, its secondary on node b."""
    log = [] if log is None else log
    async with (
        fake_state(folder, spec, log=log) as state,
        fake_vm("a", log) as a,
        fake_vm("b", log) as b,
    ):
        seat_pair(state, a, b)
        yield state, a, b
