"""Set up the environment of a run: lab, pair file, supervisor, guest and clients.

Called by `chaos.run.runner`; `chaos.evidence.gather` reads from it. It starts the supervisor with
`control.daemon.spawn` in a lab of `lab.network`. The pair file is the lab's with the scenario's
tables. Everything is removed at the end of the block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coloctl import pairfile
from coloctl.chaos.checks import CHECKS
from coloctl.chaos.evidence.lan import LanWatch
from coloctl.chaos.evidence.listener import EventListener
from coloctl.chaos.evidence.records import FaultRecord
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import PairUnderTest, Setup, environment_set
from coloctl.chaos.run import testbed
from coloctl.chaos.run.site import Site, site_of
from coloctl.chaos.run.testbed import STEADY_WAIT_S, Testbed
from coloctl.chaos.scenario.values import Scenario, ScheduledFault, Workload
from coloctl.chaos.workloads import WORKLOADS, start_workload
from coloctl.chaos.workloads.program import ClientProgram
from coloctl.control.acts import Acts
from coloctl.control.daemon.spawn import SpawnedSupervisor, spawned_supervisor
from coloctl.lab import sample
from coloctl.lab.network import Lab
from coloctl.model.view import PairView


@dataclass
class Environment:
    """One pair with everything around it; `works` are the clients that have come."""

    where: Testbed
    scenario: Scenario
    site: Site
    home: Path
    pair_file: Path
    born: SpawnedSupervisor
    listener: EventListener
    lan: LanWatch
    works: dict[str, tuple[Workload, ClientProgram]]
    left: list[str]  #: what the pair left on its machines, known after the end of the block
    faults: Callable[[], Sequence[FaultRecord]] = tuple  #: those that were injected so far

    @property
    def lab(self) -> Lab:
        """The lab of the site."""
        return self.site.lab

    @property
    def pair(self) -> PairUnderTest:
        """The pair as faults may touch it."""
        return PairUnderTest(
            self.where.name, self.site, self.home, self.listener.view, self.listener.ask
        )

    def come(self, begins: str) -> None:
        """Start the clients that begin then."""
        for work in self.scenario.workloads:
            if work.begins == begins:
                self.start(work)

    def start(self, work: Workload) -> None:
        """Start the clients of one workload."""
        self.works[work.name] = (work, start_workload(self.lab, work))

    def boot(self) -> None:
        """Start the guest, unprotected, and wait until it serves."""
        with self.born.connect() as client:
            testbed.boot(self.where.name, self.site, client)

    def protect(self) -> None:
        """Bring the pair into COLO."""
        with self.born.connect() as client:
            Acts(client).start(wait_s=testbed.PROTECT_WAIT_S)

    def until(
        self,
        enough: Callable[[PairView], bool],
        deadline_s: float = STEADY_WAIT_S,
        otherwise: str = "The run did not go on",
    ) -> None:
        """Wait until ``enough`` accepts a view of the pair; raises `DeadlineMissed` otherwise."""
        testbed.until(lambda: enough(self.listener.view()), deadline_s, otherwise)

    def kill_clients(self) -> None:
        """End the processes of all clients."""
        for _, work in self.works.values():
            work.kill()


@contextlib.contextmanager
def environment(
    where: Testbed,
    scenario: Scenario,
    plan: tuple[ScheduledFault, ...] = (),
    metrics: str = "",
) -> Iterator[Environment]:
    """Set up everything and begin nothing; it is gone after the block, unless it is to be kept.

    ``metrics`` is the address at which the supervisor serves its metrics, if any.
    """
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(testbed.lab(where))
        home = stack.enter_context(testbed.folder(where))
        site, left = site_of(lab), list[str]()
        stack.enter_context(environment_set(site.environment))
        setup = Setup(where.name, home, site, where.qemu)
        kinds = (FAULTS[fault.kind].prepare for fault in plan)
        for prepare in dict.fromkeys(one for one in kinds if one is not None):
            stack.enter_context(prepare(setup))
        guest = {"services": needs_services(scenario), **scenario.guest.model_dump()}
        pair_file = testbed.write_pair(where, setup, guest, scenario.pair)
        site.share(home)
        if not where.keep:
            stack.callback(lambda: left.extend(site.left(where.name)))
        with environment_set(setup.environment):
            born = stack.enter_context(_supervised(where, pair_file, metrics))
        listener = stack.enter_context(EventListener(where.name))
        lan = stack.enter_context(LanWatch(lab, sample.guest_mac()))
        around = Environment(where, scenario, site, home, pair_file, born, listener, lan, {}, left)
        stack.callback(around.kill_clients)
        yield around


@contextlib.contextmanager
def _supervised(where: Testbed, pair_file: Path, metrics: str) -> Iterator[SpawnedSupervisor]:
    """Start the supervisor; it ends with the block, unless the testbed is to be kept."""
    with spawned_supervisor(pairfile.load(pair_file), metrics) as born:
        yield born
        if where.keep:
            born.keep()
        else:
            born.end()


def needs_services(scenario: Scenario) -> bool:
    """Return whether the guest must serve more than redis: to a workload, or for its audit."""
    return any(WORKLOADS[work.kind].services for work in scenario.workloads) or any(
        "audit" in CHECKS[name].needs for name in scenario.expect
    )
