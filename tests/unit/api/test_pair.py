"""A pair from Python: what is awaited, what ends with the block, and what faults may be dealt."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.asked import given
from support.fakes import make_spec
from support.views import PROTECTED

import coloctl
from coloctl import paths
from coloctl.api import faults
from coloctl.api.pair import Pair
from coloctl.api.thread import awaited
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit
from coloctl.control.commands import COMMANDS, ControlCommand
from coloctl.control.listener import listen
from coloctl.control.server import ControlServer
from coloctl.errors import (
    DeadlineMissed,
    FailoverRefused,
    LabError,
    NoSuchPair,
    NotProtected,
    UsageError,
)
from coloctl.lab import machines
from coloctl.model.pair import Role
from coloctl.model.pairevent import PauseChanged, StateChanged
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import Timeline

pytestmark = pytest.mark.unit

NAME = "web"


class Supervisor:
    """Answers for the pair `NAME`; ``asked`` is what it was asked, with the arguments."""

    def __init__(self) -> None:
        self.view = PROTECTED.to_json()
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.answers: dict[str, Any] = {"query-pair": lambda: self.view}
        self.hang: set[str] = set()
        self.control: ControlServer | None = None

    def handler(self, name: str) -> Callable[[ControlCommand], Awaitable[Any]]:
        async def handle(asked: ControlCommand) -> Any:
            arguments = given(asked)
            self.asked.append((name, arguments))
            if name in self.hang:
                await asyncio.sleep(60)
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer() if callable(answer) else answer

        return handle

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Pair]:
        folder = paths.pair_dir(NAME)
        paths.make_private(folder)
        names = ("query-pair", "query-history", "pair-start", "pair-protect", "pair-set",
                 "pair-failover", "pair-checkpoint", "node-qmp", "pair-pause")  # fmt: skip
        handlers = {COMMANDS[name]: self.handler(name) for name in names}
        self.control = ControlServer(listen(paths.control_socket(NAME)), handlers, version="1.2.3")
        task = asyncio.create_task(self.control.serve())
        try:
            async with asyncio.timeout(20), coloctl.pair.attach(NAME) as pair:
                yield pair
        finally:
            await self.control.aclose()
            await task
            paths.control_socket(NAME).unlink(missing_ok=True)
            folder.rmdir()


TIMELINE = Timeline("b", "a", Role.SECONDARY, {"fenced": 4.0}, fault_ms=-3.0).to_json()


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    return Supervisor()


def tell(supervisor: Supervisor, story: Callable[[Pair], Awaitable[None]]) -> None:
    async def main() -> None:
        async with supervisor.serving() as pair:
            await story(pair)

    asyncio.run(main())


def test_the_package_is_light_until_a_pair_is_asked_for() -> None:
    script = "import sys, coloctl; print([m for m in sys.modules if m.startswith('coloctl')])"
    script += "; coloctl.pair; print('pydantic' in sys.modules)"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "['coloctl']\nTrue\n"
    assert not hasattr(coloctl, "no_such_name")


def test_acts_ask_with_their_arguments_and_answer_values(supervisor: Supervisor) -> None:
    supervisor.answers |= {
        "pair-set": {"changed": []}, "pair-failover": TIMELINE,
        "pair-checkpoint": {"count": 8, "pause-ms": 3},
        "node-qmp": {"status": "running"}, "query-history": {"failovers": [{"cause": "x"}]},
    }  # fmt: skip

    async def story(pair: Pair) -> None:
        assert (await pair.status()).protection == "colo"
        await pair.set(checkpoint_delay=500, max_queue_size=9)
        assert await pair.failover("b") == TIMELINE
        assert await pair.checkpoint() == 8
        assert await pair.qmp("secondary", "query-status") == {"status": "running"}
        assert await pair.history() == [{"cause": "x"}]
        with pytest.raises(UsageError):
            await pair.set()

    tell(supervisor, story)
    asked = [one for one in supervisor.asked if one[0] != "query-pair"]
    assert asked == [
        ("pair-set", {"settings": {"checkpoint-delay": 500, "max-queue-size": 9}}),
        ("pair-failover", {"to": "b"}),
        ("pair-checkpoint", {}),
        ("node-qmp", {"node": "b", "execute": "query-status"}),
        ("query-history", {}),
    ]


@pytest.mark.parametrize(
    ("state", "command"), [("down", "pair-start"), ("unprotected", "pair-protect")]
)
def test_protecting_starts_what_does_not_run(
    supervisor: Supervisor, state: str, command: str
) -> None:
    supervisor.view["protection"] = state
    supervisor.answers[command] = PROTECTED.to_json()

    async def story(pair: Pair) -> None:
        assert (await pair.protect()).protection == "colo"

    tell(supervisor, story)
    assert supervisor.asked[-1][0] == command


def test_a_refusal_is_the_supervisors_own_error(supervisor: Supervisor) -> None:
    supervisor.answers["pair-failover"] = FailoverRefused("No.", hint="fence it")

    async def story(pair: Pair) -> None:
        with pytest.raises(FailoverRefused, match="No") as refused:
            await pair.failover()
        assert refused.value.hint == "fence it"

    tell(supervisor, story)


def test_a_cancelled_act_is_let_go_at_once(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coloctl.control.server.FINISH_WAIT_S", 0.1)  # the act never ends by itself
    supervisor.hang.add("pair-failover")

    async def story(pair: Pair) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pair.failover(timeout=50)
        assert (await pair.status()).name == NAME

    tell(supervisor, story)


def test_waiting_for_a_generation_passes_over_the_state_before_it(supervisor: Supervisor) -> None:
    async def story(pair: Pair) -> None:
        assert (await pair.wait_for("colo")).generation == 2
        waiting = asyncio.create_task(pair.wait_for("colo", generation=3, timeout=10))
        while len(supervisor.asked) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert supervisor.control is not None
        supervisor.view["generation"] = 3
        before, fact, after = Protection.MIGRATING, Fact.CHECKPOINT_COMPLETED, Protection.COLO
        supervisor.control.emit(
            StateChanged(before=before, fact=fact, after=after, reason="It is.")
        )
        assert (await waiting).generation == 3
        with pytest.raises(DeadlineMissed, match="earlier generation and not colo"):
            await pair.wait_for("colo", generation=4, timeout=0.05)
        with pytest.raises(ValueError, match="dancing"):
            await pair.wait_for("dancing")

    tell(supervisor, story)


def test_events_come_until_nobody_reads_them(supervisor: Supervisor) -> None:
    async def story(pair: Pair) -> None:
        stream = pair.events()
        first = asyncio.ensure_future(anext(stream))
        assert supervisor.control is not None
        while not first.done():
            supervisor.control.emit(PauseChanged(paused=True))
            await asyncio.sleep(0.01)
        assert (await first).name == "PAUSE_CHANGED"
        await stream.aclose()  # type: ignore[attr-defined]

    tell(supervisor, story)


async def test_there_must_be_a_pair_to_attach_to(supervisor: Supervisor) -> None:
    with pytest.raises(NoSuchPair):
        async with coloctl.pair.attach("nobody"):
            pass


# -- faults


@pytest.fixture
def done(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was dealt and healed by a fault called ``poke``."""
    told: list[str] = []

    class Poke(Fault[Any]):
        """It is poked."""

        kind, targets = "poke", ("a", "b", "primary")

        def begin(self) -> Injected:
            told.append(f"hit {self.target}")
            if self.target == "b":
                raise NothingToHit("there was no b to hit")
            return Injected(0.0, ("a",))

        def heal(self) -> None:
            told.append(f"healed {self.target}")

    monkeypatch.setattr(faults, "FAULTS", {**FAULTS, "poke": Poke})
    monkeypatch.setattr(faults, "_pair", lambda _name: None)
    return told


def test_what_is_not_healed_by_hand_is_healed_with_the_block(
    supervisor: Supervisor, done: list[str]
) -> None:
    async def story(pair: Pair) -> None:
        async with await pair.inflict("poke", "a") as fault:
            assert fault.nodes == ("a",) and not fault.healed
        assert done == ["hit a", "healed a"]
        await pair.heal()
        await pair.inflict("poke", "primary")
        assert done == ["hit a", "healed a", "hit primary"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tell(supervisor, story)
    assert done == ["hit a", "healed a", "hit primary", "healed primary"]


def test_a_fault_that_cannot_be_is_refused_with_what_can(
    supervisor: Supervisor, done: list[str]
) -> None:
    async def story(pair: Pair) -> None:
        for words, params, hint in (
            (("tickle", "a"), {}, "kill"),
            (("poke", "secondary"), {}, "primary"),
            (("poke", "a"), {"softly": True}, None),
        ):
            with pytest.raises(UsageError) as refused:
                await pair.inflict(*words, **params)  # type: ignore[arg-type]
            assert hint is None or hint in str(refused.value.hint)
        with pytest.raises(NotProtected, match="there was no b to hit"):
            await pair.inflict("poke", "b")

    tell(supervisor, story)
    assert done == ["hit b", "healed b"]


def test_the_lab_of_a_pair_is_known_by_its_hosts() -> None:
    spec = make_spec()
    for host, name in (("netns:host-a", "lab"), ("netns:mine-host-a", "mine")):
        nodes = {**spec.nodes, "a": _on(spec.nodes["a"], host)}
        assert faults.lab_of(_with(spec, nodes)).name == name
    nowhere = faults.lab_of(_with(spec, {**spec.nodes, "a": _on(spec.nodes["a"], "local")}))
    for touch in (lambda: nowhere.link("replication"), lambda: nowhere.run(["true"]),
                  lambda: nowhere.client):  # fmt: skip
        with pytest.raises(LabError, match="does not run in a lab"):
            touch()


def test_the_site_of_a_pair_on_machines_is_their_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec()
    nodes = {name: _on(node, f"ssh://{name}") for name, node in spec.nodes.items()}
    # A system without control groups has no machine.
    monkeypatch.setattr(machines, "LabMachine", lambda lab, name: SimpleNamespace(name=name))
    lab = machines.Machines("mine")
    monkeypatch.setattr(machines, "labs", lambda: ["other", "mine"])
    variables = {"COLOCTL_SSH": f"/usr/bin/ssh -F {lab.ssh_config}"}
    site = faults.place_of(_with(spec, nodes), variables)
    assert (site.lab.name, dict(site.machines)) == ("mine", {"a": "hv1", "b": "hv2"})


def test_a_process_of_a_machine_that_is_none_of_a_lab_is_not_taken_for_one_of_this_system() -> None:
    spec = make_spec()
    nodes = {**spec.nodes, "b": _on(spec.nodes["b"], "ssh://hv2")}
    for variables in ({}, {"COLOCTL_SSH": "ssh -F /root/config"}):
        site = faults.place_of(_with(spec, nodes), variables)
        assert site.outer("a", 7) == 7
        with pytest.raises(LabError, match="Node b runs on ssh://hv2"):
            site.outer("b", 7)
        with pytest.raises(LabError, match="does not run in a lab"):
            site.lab.link("replication")


def _on(node: Any, host: str) -> Any:
    return replace(node, host=host)


def _with(spec: Any, nodes: Any) -> Any:
    return replace(spec, nodes=nodes)


# -- threads


async def test_work_goes_to_its_end_before_a_cancellation_is_told() -> None:
    told: list[str] = []
    hurry = threading.Event()

    def work() -> None:
        hurry.wait(20)
        told.append("done")

    with ThreadPoolExecutor() as threads:
        task = asyncio.create_task(awaited(threads, work, hurry.set))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        told.append("cancelled")
    assert told == ["done", "cancelled"]


OWN = """
import asyncio, os, signal, sys
from coloctl.api.pair import Pair
from coloctl import paths

async def main():
    pair = Pair("web", None)
    pair._end_own = lambda: print("ended", flush=True)
    async with pair:
        print("in", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

Pair._begin = lambda self: None
asyncio.run(main())
"""


def test_ctrl_c_leaves_through_the_end_of_the_block() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "in\nended\n"
    assert done.returncode == -signal.SIGINT or "KeyboardInterrupt" in done.stderr
