"""Plays a scenario: steady state, faults, healing, settling, evidence, verdicts; in this order.

Invariants: whatever was broken is healed before anything is judged; a run that did not come as far
as its faults is unknown; nothing of it is left unless it was to be kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coloctl.chaos.checks import CHECKS, verdict
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence import gather
from coloctl.chaos.evidence.capture import Capture
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.inventory import InventoryTaker
from coloctl.chaos.evidence.records import Inventory
from coloctl.chaos.run.artifacts import Artifacts
from coloctl.chaos.run.engine import Engine
from coloctl.chaos.run.result import QEMU, RunResult
from coloctl.chaos.run.stage import Stage, stage
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.file import load
from coloctl.chaos.scenario.schedule import schedule
from coloctl.chaos.scenario.values import Scenario, ScheduledFault
from coloctl.check.choose import engage
from coloctl.errors import ColoctlError, DeadlineMissed, NotProtected

#: From the end of the faults to a pair that is as it was, or has said that it never will, seconds.
SETTLE_DEADLINE_S = 180.0
_LOOK_S = 0.2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One run to be played. ``plan`` is what the seed makes of the scenario, or less."""

    scenario: Scenario
    seed: int
    where: Testbed
    plan: tuple[ScheduledFault, ...]
    replay: str = ""

    @classmethod
    def of(cls, scenario: Scenario, seed: int, where: Testbed, replay: str = "") -> Run:
        return cls(scenario, seed, where, schedule(scenario, seed), replay)


@dataclass
class _Course:
    """How far a run has come; what is not known yet has its least value."""

    evidence: Evidence
    reason: str = ""
    pair_file: str = ""
    version: str = ""
    more: list[Verdict] = field(default_factory=list)


def play(
    run: Run,
    tell: Tell = lambda _sentence: None,
    kept: Artifacts | None = None,
    *,
    capture: bool = False,
) -> RunResult:
    """The run, judged. An error that says something about the pair makes it unknown.

    ``kept`` gets what is gone with the pair, and the packets where ``capture`` asks for them.
    Raises what kept the stage from being set at all.
    """
    began_s, began = time.monotonic(), datetime.now(UTC)
    course = _Course(Evidence(began_s, began_s, (), {}))
    with stage(run.where, run.scenario, run.plan) as played:
        course.pair_file = played.pair_file.read_text(encoding="utf-8")
        with contextlib.ExitStack() as watched:
            if kept is not None:
                watched.callback(kept.keep_pair, run.where.name, played.ear.ask)
                if capture:
                    watched.enter_context(Capture(played.lab, kept.folder / "lan.pcap"))
            try:
                _act(run, played, course, tell)
            except ColoctlError as error:
                course.reason = error.message
    if not run.where.keep:
        course.evidence = replace(course.evidence, remains=gather.remains(run.where, played.home))
    tell("judging")
    verdicts = [*fallen(course.evidence, run.plan), *judge(run.scenario, course.evidence)]
    return RunResult(
        scenario=run.scenario,
        seed=run.seed,
        validity=_validity(verdicts, course.reason),
        verdicts=verdicts,
        evidence=course.evidence,
        replay=run.replay,
        reason=course.reason,
        started_at=began.isoformat(timespec="seconds"),
        duration_s=time.monotonic() - began_s,
        qemu=QEMU(str(run.where.qemu), course.version, run.where.accel),
        pair_file=course.pair_file,
    )


def never_played(run: Run, error: Exception) -> RunResult:
    """The outcome of a run that an error ended before there was anything to judge."""
    now_s = time.monotonic()
    said = error.message if isinstance(error, ColoctlError) else f"{type(error).__name__}: {error}"
    return RunResult(
        scenario=run.scenario,
        seed=run.seed,
        validity=Validity.UNKNOWN,
        verdicts=(),
        evidence=Evidence(now_s, now_s, (), {}),
        replay=run.replay,
        reason=said,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        qemu=QEMU(str(run.where.qemu), "", run.where.accel),
    )


def run(path: Path, *, seed: int | None = None, name: str = "chaos") -> RunResult:
    """The scenario of that file, played with the QEMU and the guest that are best here, and judged.

    It needs root, or the root of a user namespace. Raises `ScenarioError`, and what keeps a lab
    from standing.
    """
    scenario = load(path)
    players = engage()
    where = Testbed(qemu=players.qemu, accel=players.accel, guest=players.guest, name=name)
    number = scenario.seed if seed is None else seed
    return play(Run.of(scenario, number, where, f"coloctl chaos run {path} --seed {number}"))


def judge(scenario: Scenario, evidence: Evidence) -> list[Verdict]:
    """What each check that the scenario asks for says."""
    return [
        CHECKS[name].run(evidence, CHECKS[name].params.model_validate(dict(given)))
        for name, given in scenario.expect.items()
    ]


def fallen(evidence: Evidence, plan: tuple[ScheduledFault, ...]) -> list[Verdict]:
    """Every fault fell, and in the phase it was meant for; otherwise the run proves nothing."""
    if not plan:
        return []
    wrong = [f"{one.fault.name}: {one.missed}" for one in evidence.faults if one.missed]
    names = {one.fault.name for one in evidence.faults}
    wrong += [f"{fault.name} never fell" for fault in plan if fault.name not in names]
    if wrong:
        return [
            Verdict("faults_fell", Validity.UNKNOWN, f"{len(wrong)} did not", tuple(wrong[:10]))
        ]
    many = "1 fault, in its" if len(plan) == 1 else f"{len(plan)} faults, each in its"
    return [Verdict("faults_fell", Validity.VALID, f"{many} moment")]


def _validity(verdicts: list[Verdict], reason: str) -> Validity:
    worst = verdict.worst(verdicts)
    return Validity.UNKNOWN if reason and worst is Validity.VALID else worst


def _act(run: Run, played: Stage, course: _Course, tell: Tell) -> None:
    """Everything between the empty stage and the evidence."""
    tell("the guest boots")
    played.boot()
    first = gather.boot_audit(run.where)
    played.come("booted")
    _working(played, run.scenario.steady_state.acknowledged_min)
    if run.scenario.steady_state.protection == "colo":
        tell("the guest is protected")
        played.protect()
    played.come("protected")
    _steady(run, played)
    steady_s = time.monotonic()
    course.evidence = Evidence(steady_s, steady_s, (), {}, audits=first)
    needs = frozenset().union(*(CHECKS[name].needs for name in run.scenario.expect))
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine(played.pair, played.ear, tell))
        inventory: Sequence[Inventory] = ()
        if "inventory" in needs:
            inventory = stack.enter_context(InventoryTaker(run.where.name, played.ear)).taken
        engine.hear_all()
        try:
            tell("steady")
            engine.interpret(run.plan, steady_s)
            engine.heal_all()
            tell("healed")
            _settle(run, played)
        except ColoctlError as error:
            course.reason = error.message
        finally:
            engine.heal_all()
            tell("gathering")
            gathered = gather.evidence(played, steady_s, first, needs, inventory)
            course.evidence = replace(gathered, faults=engine.records())
            course.version = _version(course.evidence.view)


def _version(view: Mapping[str, Any]) -> str:
    nodes = view.get("nodes", ())
    return next((str(node["qemu_version"]) for node in nodes if node.get("qemu_version")), "")


def _working(played: Stage, each: int) -> None:
    """Every client that has come is served."""
    _until(
        120.0,
        "The clients were not served before anything was broken",
        lambda: all(work.acknowledged() >= each for _, work in played.works.values()),
    )


def _steady(run: Run, played: Stage) -> None:
    """The steady state holds; raises `DeadlineMissed`, or `NotProtected` when it went by."""
    wanted = run.scenario.steady_state

    def steady() -> bool:
        view = played.ear.view()
        if view["protection"] != wanted.protection:
            raise NotProtected(f"The pair is {view['protection']}: {view['reason']}")
        enough = view["checkpoints"]["count"] >= wanted.checkpoints_min
        served = all(w.acknowledged() >= wanted.acknowledged_min for _, w in played.works.values())
        return served and (enough or wanted.protection != "colo")

    _until(wanted.within_s, "The steady state did not come", steady)


def _settle(run: Run, played: Stage) -> None:
    """Load went on after the last fault, and the pair is as it was, or will never be by itself."""
    wanted = run.scenario.pair.get("policy", {}).get("auto_reprotect", True)
    final = ("colo", "down", "failed") if wanted else ("colo", "unprotected", "down", "failed")

    def still() -> bool:
        view = played.ear.view()
        return view["protection"] in final and view["progress"] is None

    give_up = time.monotonic() + SETTLE_DEADLINE_S
    # What fell last may not have been noticed yet: the pair is looked at again after the load.
    settled = False
    while not settled and time.monotonic() < give_up:
        with contextlib.suppress(DeadlineMissed):
            _until(give_up - time.monotonic(), "The pair did not settle", still)
        time.sleep(run.scenario.settle_s)
        settled = still()


def _until(deadline_s: float, otherwise: str, true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > give_up:
            raise DeadlineMissed(f"{otherwise} within {deadline_s:.0f} s.")
        time.sleep(_LOOK_S)
