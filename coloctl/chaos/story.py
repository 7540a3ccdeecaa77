"""The story of the project, played for real: protect a guest, kill a host, lose nothing.

The demo draws it, tests judge by it. A story leaves nothing behind however it ends, unless it was
asked to keep the pair.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from coloctl import paths, spec
from coloctl.chaos import checker
from coloctl.chaos.clients import Clients
from coloctl.chaos.history import Op, Outcome
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.control.newborn import newborn
from coloctl.errors import DeadlineMissed, LabError, PairBusy
from coloctl.lab import guest as guests
from coloctl.lab import layout
from coloctl.lab.network import Lab
from coloctl.lab.sample import write_pair

#: Version of the story's document; grows with incompatible changes only.
STORY_SCHEMA = 1

BOOT_DEADLINE_S = 120.0
PROTECT_DEADLINE_S = 300.0
STEADY_DEADLINE_S = 120.0
NOTICE_DEADLINE_S = 10.0
FAILOVER_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Cast:
    """Who plays, and what is to happen."""

    qemu: Path
    accel: str
    guest: guests.GuestImage
    kill: str = "primary"
    name: str = "demo"
    clients: int = 4
    delay_ms: int = 500
    channel: str = "fd"
    checkpoints: int = 4  #: complete ones before the fault
    seconds: float = 4.0  #: of load before the fault and after it
    keep: bool = False


class Audience(Protocol):
    """Who is told how the story goes. Called from the thread that plays it."""

    def scene(self, title: str) -> None:
        """The next scene begins."""
        ...

    def view(self, view: Mapping[str, Any], acknowledged: int) -> None:
        """How the pair stands, and how many records clients saw acknowledged so far."""
        ...


@dataclass
class Fault:
    """What was done and when it was noticed; monotonic seconds."""

    at_s: float
    node: str
    in_checkpoint: bool
    noticed_at_s: float = 0.0
    failover_at_s: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)

    def since_ms(self, step: str) -> float | None:
        """Milliseconds from the fault to a step of the failover."""
        if step not in self.steps:
            return None
        return round((self.failover_at_s - self.at_s) * 1000 + self.steps[step], 1)


def play(cast: Cast, audience: Audience) -> dict[str, Any]:
    """The story was played; answers its document, whose ``verdict`` tells how it ended.

    Raises what stopped it before the fault could be judged. Nothing is left behind then, nor after
    an interrupt.
    """
    with contextlib.ExitStack() as stack:
        audience.scene("The lab: two hosts, a client, and the wires between them")
        lab = stack.enter_context(_lab(cast))
        folder = stack.enter_context(_folder(cast))
        audience.scene("The guest boots on host a")
        client = stack.enter_context(_pair(cast, lab, folder))
        _boot(cast, client)
        clients = Clients(lab, cast.clients)
        stack.callback(clients.kill)
        stage = _Stage(cast, client, clients, audience)
        document = stage.play()
        document["qemu"] = {"binary": str(cast.qemu), "accel": cast.accel}
        audience.scene("Everything goes" if not cast.keep else "The pair stays for you to explore")
    document["left_behind"] = [] if cast.keep else _left_behind(cast)
    document["kept"] = str(folder) if cast.keep else None
    return document


class _Stage:
    """The scenes between the boot and the verdict."""

    def __init__(
        self, cast: Cast, client: ControlClient, clients: Clients, audience: Audience
    ) -> None:
        self.cast, self.client, self.clients, self.audience = cast, client, clients, audience

    def play(self) -> dict[str, Any]:
        cast, audience = self.cast, self.audience
        audience.scene(f"{cast.clients} clients append numbered records")
        self._until(STEADY_DEADLINE_S, lambda _: self.clients.acknowledged() >= 10 * cast.clients)
        audience.scene("The guest is protected while it serves")
        began = time.monotonic()
        self.client.execute("pair-start", PROTECT_DEADLINE_S, protect=True)
        protected = time.monotonic()
        audience.scene("Protected: every checkpoint makes host b the guest's second home")
        self._until(STEADY_DEADLINE_S, self._steady(protected + cast.seconds))
        checkpoints = self._view()["checkpoints"]
        fault = self._kill()
        audience.scene(f"The {cast.kill} is dead: the other side carries on")
        self._fail_over(fault)
        self._until(STEADY_DEADLINE_S, self._later(fault.at_s + cast.seconds))
        audience.scene("Every acknowledged record is read back from the survivor")
        history = self.clients.finish()
        survivors = self.clients.read_back()
        return self._judge(fault, history, survivors, checkpoints, (began, protected))

    def _view(self) -> dict[str, Any]:
        view: dict[str, Any] = self.client.execute("query-pair", 10)
        self.audience.view(view, self.clients.acknowledged())
        return view

    def _until(self, deadline_s: float, enough: Callable[[Mapping[str, Any]], bool]) -> None:
        """``enough`` said yes to a view; `DeadlineMissed` otherwise."""
        give_up = time.monotonic() + deadline_s
        while not enough(self._view()):
            if time.monotonic() > give_up:
                raise DeadlineMissed(f"The story did not go on within {deadline_s:.0f} s.")
            for _ in self.client.events(0.25):
                pass

    def _steady(self, not_before_s: float) -> Callable[[Mapping[str, Any]], bool]:
        return lambda view: (
            view["checkpoints"]["count"] >= self.cast.checkpoints
            and time.monotonic() >= not_before_s
        )

    def _later(self, not_before_s: float) -> Callable[[Mapping[str, Any]], bool]:
        return lambda _: time.monotonic() >= not_before_s

    def _kill(self) -> Fault:
        """The victim's QEMU was killed as soon as the next checkpoint began."""
        nodes = {node["role"]: node for node in self._view()["nodes"]}
        victim = nodes[self.cast.kill]
        for event in self.client.events(STEADY_DEADLINE_S):
            if event.name == "CHECKPOINT" and event.data["phase"] == "begin":
                os.kill(victim["pid"], signal.SIGKILL)
                return Fault(time.monotonic(), victim["name"], in_checkpoint=True)
        raise DeadlineMissed("No checkpoint began in which to kill.")

    def _fail_over(self, fault: Fault) -> None:
        """The death was noticed, and the survivor runs alone."""

        def heard(event: ControlEvent) -> None:
            if event.name == "STEP" and "at-ms" in event.data:
                fault.steps[event.data["step"]] = event.data["at-ms"]

        for event in self.client.events(NOTICE_DEADLINE_S):
            if event.name == "CHECKPOINT" and event.data["phase"] == "end":
                fault.in_checkpoint = False
            if event.name == "NODE_DEAD":
                break
        else:
            raise DeadlineMissed("The supervisor did not notice the death.")
        fault.noticed_at_s = fault.failover_at_s = time.monotonic()
        self.client.on_event = heard
        try:
            self.client.execute("pair-failover", FAILOVER_DEADLINE_S)
        finally:
            self.client.on_event = None

    def _judge(
        self,
        fault: Fault,
        history: list[Op],
        survivors: Mapping[int, list[int]],
        checkpoints: Mapping[str, Any],
        protecting: tuple[float, float],
    ) -> dict[str, Any]:
        verdicts = [
            checker.no_lost_acks(history, survivors, fault.at_s),
            checker.connections_survive(history, self.cast.clients),
        ]
        outage = checker.outage(history, fault.at_s)
        return {
            "schema": STORY_SCHEMA,
            "verdict": checker.worst(verdicts),
            "killed": self.cast.kill,
            "in_checkpoint": fault.in_checkpoint,
            "acks": {
                "sent": sum(op.outcome is Outcome.INVOKE for op in history),
                "acknowledged": sum(op.outcome is Outcome.OK for op in history),
                "lost": len(checker.lost(history, survivors)),
            },
            "connections": {
                "opened": sum(op.note.startswith("opened ") for op in history),
                "broken": len(checker.broken_connections(history)),
            },
            "outage_ms": outage.longest_ms,
            "protect_gap_ms": checker.longest_gap_ms(history, *protecting),
            "timeline": {
                "fault": 0,
                "detected_ms": round((fault.noticed_at_s - fault.at_s) * 1000, 1),
                "fenced_ms": fault.since_ms("fenced"),
                "promoted_ms": fault.since_ms("promoted"),
                "running_ms": fault.since_ms("running"),
                "first_reply_ms": outage.first_reply_ms,
            },
            "checkpoints": {
                "count": checkpoints["count"],
                "pause_ms_p50": checkpoints["pause_p50_ms"],
                "pause_ms_p99": checkpoints["pause_p99_ms"],
            },
            "checks": [
                {"check": v.check, "verdict": v.validity, "because": v.because} for v in verdicts
            ],
        }


@contextlib.contextmanager
def _lab(cast: Cast) -> Iterator[Lab]:
    _refuse_tenants(cast)
    lab = Lab.up(cast.name)
    try:
        yield lab
    except BaseException:
        lab.down()
        raise
    if not cast.keep:
        lab.down()


def _refuse_tenants(cast: Cast) -> None:
    """Nobody uses the lab of that name; raises `PairBusy`. What a crash left standing is mended."""
    with contextlib.suppress(LabError):
        if any(Lab.open(cast.name).processes().values()):
            raise PairBusy(
                f"The lab {cast.name} is in use.",
                hint=f"`coloctl stop {cast.name}` and `coloctl lab down --name {cast.name}` end "
                "that, or give another --name",
            )


@contextlib.contextmanager
def _folder(cast: Cast) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"coloctl-{cast.name}-"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not cast.keep:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _pair(cast: Cast, lab: Lab, folder: Path) -> Iterator[ControlClient]:
    """A supervisor of the story's own answers; raises `PairBusy` when one is there already."""
    pair_file = write_pair(
        folder / f"{cast.name}.toml",
        name=cast.name,
        lab=lab,
        guest=cast.guest,
        qemu=cast.qemu,
        accel=cast.accel,
        checkpoint_delay_ms=cast.delay_ms,
        channel=cast.channel,
    )
    with newborn(spec.load(pair_file)) as born:
        with born.connect() as client:
            yield client
        if cast.keep:
            born.keep()
        else:
            born.end()


def _boot(cast: Cast, client: ControlClient) -> None:
    """The guest's own line says that it serves; nothing has been connected to it yet."""
    client.execute("pair-start", BOOT_DEADLINE_S, protect=False)
    console = paths.pair_dir(cast.name) / "a" / "console.log"
    give_up = time.monotonic() + BOOT_DEADLINE_S
    while time.monotonic() < give_up:
        text = console.read_text(errors="replace") if console.exists() else ""
        if guests.READY_LINE in text:
            return
        if guests.FAILED_PREFIX in text:
            raise LabError(f"The guest failed to start: {text.strip().splitlines()[-1]}")
        time.sleep(0.1)
    raise DeadlineMissed(f"The guest was not ready within {BOOT_DEADLINE_S:.0f} s.")


def _left_behind(cast: Cast) -> list[str]:
    """What should be gone and is not."""
    left = [str(path) for path in (paths.pair_dir(cast.name),) if path.exists()]
    return left + [
        f"namespace {name}"
        for name in (layout.namespace(cast.name, role) for role in layout.ROLES)
        if (Path("/run/netns") / name).exists()
    ]
