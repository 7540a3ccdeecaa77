"""Faults fall in their moments, are healed in time, and at the end in any case."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from support.views import PROTECTED

from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.chaos.faults.fault import Fault, Injected, PairUnderTest
from coloctl.chaos.run import engine as module
from coloctl.chaos.run.engine import Engine
from coloctl.chaos.run.site import LabSite
from coloctl.chaos.scenario.tables import Params
from coloctl.chaos.scenario.values import ScheduledFault, When, Workload
from coloctl.errors import DeadlineMissed, LabError
from coloctl.model.view import PairView


class Deaf:
    """A listener that receives what a test sends, in that order."""

    def __init__(self) -> None:
        self.heard: list[ObservedEvent] = []
        self.coming: deque[Callable[[], ObservedEvent | None]] = deque()

    def next(self, timeout_s: float) -> ObservedEvent | None:
        if not self.coming:
            time.sleep(min(timeout_s, 0.002))
            return None
        if (said := self.coming.popleft()()) is not None:
            self.heard.append(said)
        return said

    def view(self) -> PairView:
        return PROTECTED

    def ask(self, name: str, timeout_s: float, /, **arguments: Any) -> Any:
        raise NotImplementedError


class NoteParams(Params):
    name: str = ""


class Recorded:
    """Faults that only write down that they were dealt and healed."""

    def __init__(self) -> None:
        self.deeds: list[str] = []
        self.fails_to_heal: set[str] = set()

    def kind(self) -> type[Fault[Any]]:
        class Note(Fault[NoteParams]):
            """It is written down."""

            kind, targets, params, lasting = "note", ("primary",), NoteParams, True

            def begin(note) -> Injected:  # noqa: N805
                self.deeds.append(note.given.name)
                return Injected(time.monotonic(), ("a",), "primary")

            def heal(note) -> None:  # noqa: N805
                self.deeds.append(f"-{note.given.name}")
                if note.given.name in self.fails_to_heal:
                    raise LabError("The link is gone.")

        return Note


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(module, "FAULTS", {"note": recorded.kind()})
    return recorded


@pytest.fixture
def listener() -> Deaf:
    return Deaf()


@pytest.fixture
def engine(listener: Deaf, faults: Recorded) -> Iterator[Engine]:
    site = LabSite(cast(Any, None))
    pair = PairUnderTest("p", site, Path(), lambda: PROTECTED, cast(Any, None))
    with Engine(pair, listener, lambda _sentence: None) as made:  # type: ignore[arg-type]
        yield made


def planned(name: str, **more: Any) -> ScheduledFault:
    return ScheduledFault(
        name, "note", "primary", more.pop("at_s", 0.0), params=NoteParams(name=name), **more
    )


def begin() -> ObservedEvent:
    return ObservedEvent(
        time.monotonic(), "CHECKPOINT", {"phase": "begin", "node": "a", "count": 1}
    )


def end() -> ObservedEvent:
    return ObservedEvent(time.monotonic(), "CHECKPOINT", {"phase": "end", "node": "a", "count": 1})


def colo() -> ObservedEvent:
    return ObservedEvent(
        time.monotonic(), "STATE_CHANGED", {"before": "migrating", "after": "colo"}
    )


STEADY = (begin, end, begin, end)


def test_each_waits_for_its_moment_and_for_the_one_before(
    engine: Engine, listener: Deaf, faults: Recorded
) -> None:
    between = lambda: faults.deeds.append("|")  # noqa: E731
    listener.coming.extend([colo, *STEADY, begin, end, between, *STEADY, begin])
    plan = (planned("two", when=When.CHECKPOINT, after="one"), planned("one", when=When.CHECKPOINT))
    engine.interpret(plan, time.monotonic())
    assert faults.deeds == ["one", "|", "two"]


def test_what_lasts_for_a_time_is_healed_then_and_the_rest_at_the_end(
    engine: Engine, faults: Recorded
) -> None:
    engine.interpret((planned("short", duration_s=0.01), planned("long")), time.monotonic())
    assert sorted(faults.deeds) == ["-short", "long", "short"]
    engine.heal_all()
    engine.heal_all()
    assert faults.deeds[3:] == ["-long"]
    assert all(one.healed_s is not None for one in engine.records())


def test_everything_is_healed_when_the_run_is_broken_off(listener: Deaf, faults: Recorded) -> None:
    faults.fails_to_heal = {"one"}
    site = LabSite(cast(Any, None))
    pair = PairUnderTest("p", site, Path(), lambda: PROTECTED, cast(Any, None))
    with (
        pytest.raises(KeyboardInterrupt),
        Engine(pair, listener, lambda _sentence: None) as engine,  # type: ignore[arg-type]
    ):
        engine.interpret((planned("one"), planned("two")), time.monotonic())
        raise KeyboardInterrupt
    assert faults.deeds == ["one", "two", "-two", "-one"]


def test_a_moment_that_never_comes(
    engine: Engine, faults: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOMENT_WAIT_S", 0.02)
    with pytest.raises(DeadlineMissed, match="late never fell: no resync came"):
        engine.interpret((planned("late", when=When.RESYNC),), time.monotonic())
    assert not faults.deeds


def test_a_fault_after_its_moment_is_recorded_so(
    engine: Engine, listener: Deaf, faults: Recorded
) -> None:
    """The end of the checkpoint was stamped before the blow, and heard after it."""

    def ended_already() -> ObservedEvent:
        (at_s,) = (one.at_s for one in engine.records())
        return ObservedEvent(at_s, "CHECKPOINT", {"phase": "end", "node": "a", "count": 1})

    listener.coming.extend([colo, *STEADY, begin])
    engine.interpret((planned("one", when=When.CHECKPOINT),), time.monotonic())
    listener.coming.append(ended_already)
    engine.hear_all()
    (one,) = engine.records()
    assert one.missed.endswith("after the checkpoint was over")


def test_in_a_short_moment_nothing_has_to_be_looked_for(
    engine: Engine, listener: Deaf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find the number of a QEMU of another machine takes as long as the moment may last."""
    looked: list[str] = []
    found: list[int] = []

    class Killed(Fault[Params]):
        """It finds its target."""

        kind, targets = "note", ("primary",)

        def begin(self) -> Injected:
            before = len(looked)
            found.extend(node.pid for node in self.pair.some("primary"))
            assert len(looked) == before
            return Injected(time.monotonic())

    def outer(node: str, pid: int) -> int:
        looked.append(node)
        return pid + 1000

    monkeypatch.setattr(module, "FAULTS", {"note": Killed})
    monkeypatch.setattr(engine.pair.site, "outer", outer)
    listener.coming.extend([colo, *STEADY, begin])
    kill = ScheduledFault("one", "note", "primary", 0.0, params=Params(), when=When.CHECKPOINT)
    engine.interpret((kill,), time.monotonic())
    primary = next(node for node in PROTECTED.nodes.values() if node.role == "primary")
    assert primary.pid and found == [primary.pid + 1000] and looked


def test_nothing_falls_before_its_time(engine: Engine, listener: Deaf, faults: Recorded) -> None:
    steady_s = time.monotonic()
    engine.interpret((planned("one", at_s=0.03),), steady_s)
    (one,) = engine.records()
    assert one.at_s >= steady_s + 0.03


def unprotected() -> ObservedEvent:
    return ObservedEvent(
        time.monotonic(), "STATE_CHANGED", {"before": "failover", "after": "unprotected"}
    )


def test_a_fault_comes_so_long_after_its_moment(engine: Engine, listener: Deaf) -> None:
    """It counts from the moment, and the moment is its begin although it came between events."""
    listener.coming.extend([colo, *STEADY])
    engine.interpret((planned("one", when=When.STEADY, then_s=0.05),), time.monotonic())
    (one,) = engine.records()
    assert one.at_s >= listener.heard[-1].at_s + 0.05 and not one.missed


def test_a_moment_that_is_over_before_that_is_recorded_so(engine: Engine, listener: Deaf) -> None:
    listener.coming.extend([colo, *STEADY, unprotected])
    engine.interpret((planned("one", when=When.STEADY, then_s=0.05),), time.monotonic())
    (one,) = engine.records()
    assert one.missed.endswith("after the steady was over")


def clients(name: str, begins: Any, after: str = "") -> Workload:
    return Workload(name=name, kind="redis-appends", begins=begins, after=after)


def test_clients_come_at_their_moment_and_change_none(listener: Deaf, faults: Recorded) -> None:
    """They come before the fault that waits for the same moment; early ones are there already."""
    works = (clients("late", "unprotected", "one"), clients("early", "protected"))
    plan = (planned("one"), planned("two", when=When.ALONE, after="one"))
    site = LabSite(cast(Any, None))
    pair = PairUnderTest("p", site, Path(), lambda: PROTECTED, cast(Any, None))
    listener.coming.extend([unprotected, lambda: faults.deeds.append("|"), unprotected])
    start = lambda work: faults.deeds.append(f"{work.name} come")  # noqa: E731
    with Engine(pair, listener, lambda _sentence: None, start) as engine:  # type: ignore[arg-type]
        engine.interpret(plan, time.monotonic(), works)
    assert faults.deeds[:3] == ["one", "late come", "two"]


def test_clients_whose_moment_never_comes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOMENT_WAIT_S", 0.02)
    with pytest.raises(DeadlineMissed, match="The clients late never came: no resync came"):
        engine.interpret((), time.monotonic(), (clients("late", "resync"),))
