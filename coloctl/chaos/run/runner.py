"""Make one run of a scenario: steady state, faults, healing, settling, evidence, verdicts.

Called by `chaos.run.batch`, `chaos.run.shrink` and `pytest_plugin`; asks `check.choose` for the
QEMU. The parts happen in this order.

Invariants: what was broken is healed before any check. A run that did not come as far as its faults
is unknown. Nothing of it is left unless it was to be kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from coloctl.chaos.checks import CHECKS, verdict
from coloctl.chaos.checks.verdict import Validity, Verdict
from coloctl.chaos.evidence import gather
from coloctl.chaos.evidence.capture import Capture
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.inventory import InventoryTaker
from coloctl.chaos.evidence.records import FaultRecord, Inventory
from coloctl.chaos.evidence.remains import remains
from coloctl.chaos.run import testbed
from coloctl.chaos.run.artifacts import Artifacts
from coloctl.chaos.run.engine import Engine
from coloctl.chaos.run.environment import Environment, environment
from coloctl.chaos.run.result import QEMU, RunResult
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.file import load
from coloctl.chaos.scenario.schedule import schedule, workloads
from coloctl.chaos.scenario.values import Scenario, ScheduledFault
from coloctl.check.choose import engage
from coloctl.errors import ColoctlError, DeadlineMissed, NotProtected
from coloctl.model.view import PairView

#: From the end of the faults until the pair is as it was, or never will be by itself, seconds.
SETTLE_WAIT_S = 180.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One run to be made. ``plan`` is what the seed makes of the scenario, or less."""

    scenario: Scenario
    seed: int
    where: Testbed
    plan: tuple[ScheduledFault, ...]
    replay: str = ""

    @classmethod
    def of(cls, scenario: Scenario, seed: int, where: Testbed, replay: str = "") -> Run:
        """Build the run of a scenario with that seed."""
        return cls(scenario, seed, where, schedule(scenario, seed), replay)


class RunMeasurement:
    """Work of a bench during a run. A subclass overrides a hook; each one does nothing by default.

    A hook may raise `ColoctlError`, which ends the run like any error of the pair.
    """

    metrics: str = ""  #: the address at which the supervisor serves its metrics, if any

    def during(self, environment: Environment) -> AbstractContextManager[None]:
        """Return a context that lasts from the steady state until the load is ended."""
        return contextlib.nullcontext()

    def act(self, environment: Environment) -> None:
        """Measure once the last fault was injected, before the pair settles."""


NO_MEASUREMENT = RunMeasurement()


class _Progress:
    """The progress of a run: its evidence and the error that ended it, as far as they are known."""

    def __init__(self, run: Run, error: Exception | None = None) -> None:
        self.began_s, self.began = time.monotonic(), datetime.now(UTC)
        self.evidence = Evidence(self.began_s, self.began_s, (), {})
        self.error = error
        self.pair_file = ""
        self.machines: Mapping[str, str] = {}
        self._run = run

    def result(self, verdicts: Sequence[Verdict]) -> RunResult:
        """Return the result; a run that an error ended is not valid."""
        run, error, view = self._run, self.error, self.evidence.view
        said = f"{type(error).__name__}: {error}" if error else ""
        validity = verdict.worst(verdicts)
        if error and validity is Validity.VALID:
            validity = Validity.UNKNOWN
        nodes = view.nodes.values() if view else ()
        version = next((node.qemu_version for node in nodes if node.qemu_version), "")
        return RunResult(
            scenario=run.scenario,
            seed=run.seed,
            validity=validity,
            verdicts=verdicts,
            evidence=self.evidence,
            replay=run.replay,
            reason=error.message if isinstance(error, ColoctlError) else said,
            started_at=self.began.isoformat(timespec="seconds"),
            duration_s=time.monotonic() - self.began_s,
            qemu=QEMU(str(run.where.qemu), version, run.where.accel),
            pair_file=self.pair_file,
            machines=self.machines,
        )


def make(
    run: Run,
    tell: Tell = lambda _sentence: None,
    kept: Artifacts | None = None,
    *,
    capture: bool = False,
    measure: RunMeasurement = NO_MEASUREMENT,
    forgiving: bool = True,
) -> RunResult:
    """Make the run and return its result. An error that concerns the pair makes it unknown.

    ``kept`` gets what is gone with the pair, and the packets where ``capture`` asks for them.
    Raises the error that kept the environment from being set up at all, and unless ``forgiving``
    each other one as well.
    """
    course = _Progress(run)
    with environment(run.where, run.scenario, run.plan, measure.metrics) as around:
        course.pair_file = around.pair_file.read_text(encoding="utf-8")
        course.machines = around.site.machines
        with contextlib.ExitStack() as watched:
            if kept is not None:
                name, ask = run.where.name, around.listener.ask
                watched.callback(kept.keep_pair, name, around.site, ask)
                if capture:
                    watched.enter_context(Capture(around.lab, kept.folder / "lan.pcap"))
            try:
                _steps(run, around, course, tell, measure)
            except ColoctlError as error:
                course.error = error
        if course.error is not None and not forgiving:
            raise course.error
    if not run.where.keep:
        left = [*around.left, *remains(run.where.name, around.home, around.lab.plan)]
        course.evidence = replace(course.evidence, remains=left)
    tell("checking")
    return course.result([
        *all_injected(course.evidence, run.plan), *check(run.scenario, course.evidence)
    ])  # fmt: skip


def never_begun(run: Run, error: Exception) -> RunResult:
    """Build the result of a run that an error ended before there was anything to check."""
    return _Progress(run, error).result(())


def run(path: Path, *, seed: int | None = None, name: str = "chaos") -> RunResult:
    """Run the scenario of that file with the QEMU and the guest that are best here.

    It needs root, or the root of a user namespace. Raises `ScenarioError`, and what keeps a lab
    from standing.
    """
    scenario = load(path)
    parts = engage()
    where = Testbed(qemu=parts.qemu, accel=parts.accel, guest=parts.guest, name=name)
    number = scenario.seed if seed is None else seed
    return make(Run.of(scenario, number, where, f"coloctl chaos run {path} --seed {number}"))


def check(scenario: Scenario, evidence: Evidence) -> list[Verdict]:
    """Run each check that the scenario asks for and return the verdicts."""
    return [
        CHECKS[name].run(evidence, CHECKS[name].params.of(given))
        for name, given in scenario.expect.items()
    ]


def all_injected(evidence: Evidence, plan: tuple[ScheduledFault, ...]) -> list[Verdict]:
    """Check that every fault happened, in the phase it was meant for; else nothing is proven."""
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


def _steps(
    run: Run, around: Environment, course: _Progress, tell: Tell, measure: RunMeasurement
) -> None:
    """Take every step from the empty environment to the evidence."""
    tell("the guest boots")
    around.boot()
    first = gather.boot_audit(around)
    tell("the clients come")
    around.come("booted")
    _working(around, run.scenario.steady_state.acknowledged_min)
    if run.scenario.steady_state.protection == "colo":
        tell("the guest is protected")
        around.protect()
        tell("protected")
    around.come("protected")
    _steady(run, around)
    steady_s = time.monotonic()
    course.evidence = Evidence(steady_s, steady_s, (), {}, audits=first)
    needs = frozenset().union(*(CHECKS[name].needs for name in run.scenario.expect))
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine(around.pair, around.listener, tell, around.start))
        around.faults = engine.records
        inventory: Sequence[Inventory] = ()
        if "inventory" in needs:
            inventory = stack.enter_context(InventoryTaker(run.where.name, around.listener)).taken
        engine.hear_all()
        try:
            with measure.during(around):
                tell("steady")
                engine.interpret(run.plan, steady_s, workloads(run.scenario, run.plan))
                measure.act(around)
                _noticed(around, engine.records())
                engine.heal_all()
                tell("healed")
                _settle(run, around)
        except ColoctlError as error:
            course.error = error
        finally:
            engine.heal_all()
            tell("gathering")
            gathered = gather.evidence(around, steady_s, first, needs, inventory)
            course.evidence = replace(gathered, faults=engine.records())


def _working(around: Environment, each: int) -> None:
    """Wait until every client that has come is served."""
    around.until(
        lambda _: all(work.acknowledged() >= each for _, work in around.works.values()),
        120.0,
        "The clients were not served before anything was broken",
    )


def _steady(run: Run, around: Environment) -> None:
    """Wait for the steady state; raises `DeadlineMissed`, or `NotProtected` when it went by."""
    wanted = run.scenario.steady_state

    def steady(view: PairView) -> bool:
        if view.protection != wanted.protection:
            raise NotProtected(f"The pair is {view.protection}: {view.reason}")
        enough = view.checkpoints.count >= wanted.checkpoints_min
        served = all(w.acknowledged() >= wanted.acknowledged_min for _, w in around.works.values())
        return served and (enough or wanted.protection != "colo")

    around.until(steady, wanted.within_s, "The steady state did not come")


def _noticed(around: Environment, faults: Sequence[FaultRecord]) -> None:
    """Wait until the supervisor has acted on the last fault, for as long as the scenario allows."""
    if not faults or not around.scenario.notice_s:
        return

    def acted() -> bool:
        heard = [one for one in around.listener.heard if one.name == "STATE_CHANGED"]
        after = [one.data["after"] for one in heard if one.at_s >= faults[-1].at_s]
        return bool(after) and after[-1] != "failover"

    # The supervisor is not asked anything meanwhile: an answer would delay its failover.
    with contextlib.suppress(DeadlineMissed):
        testbed.until(acted, around.scenario.notice_s, "The fault was not noticed")
        around.until(lambda view: view.progress is None)


def _settle(run: Run, around: Environment) -> None:
    """Wait until load went on after the last fault and the pair is as it was.

    A pair that will never be so by itself counts as settled too.
    """
    wanted = run.scenario.pair.get("policy", {}).get("auto_reprotect", True)
    final = ("colo", "down", "failed") if wanted else ("colo", "unprotected", "down", "failed")

    def still(view: PairView) -> bool:
        return view.protection in final and view.progress is None

    give_up = time.monotonic() + SETTLE_WAIT_S
    # The last fault may not have been noticed yet: the pair is looked at again after the load.
    settled = False
    while not settled and time.monotonic() < give_up:
        with contextlib.suppress(DeadlineMissed):
            around.until(still, give_up - time.monotonic())
        time.sleep(run.scenario.settle_s)
        settled = still(around.listener.view())
