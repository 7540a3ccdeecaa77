"""Set up the environment of a run: lab, pair file, supervisor, guest and clients.

Called by `chaos.run.runner`; `chaos.evidence.gather` reads from it. It starts the supervisor with
`control.daemon.spawn` in a lab of `lab.network`. The pair file is the lab's with the scenario's
tables. Everything is removed at the end of the block.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from coloctl import pairfile
from coloctl.chaos.evidence.lan import LanWatch
from coloctl.chaos.evidence.listener import EventListener
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import PairUnderTest, Setup
from coloctl.chaos.run import testbed
from coloctl.chaos.run.testbed import Testbed
from coloctl.chaos.scenario.values import Scenario, ScheduledFault, Workload
from coloctl.chaos.workloads import WORKLOADS, Running
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient
from coloctl.control.daemon.spawn import spawned_supervisor
from coloctl.lab import sample
from coloctl.lab.network import Lab


@dataclass
class Environment:
    """One pair with everything around it; `works` are the clients that have come."""

    where: Testbed
    scenario: Scenario
    lab: Lab
    home: Path
    pair_file: Path
    client: ControlClient
    ear: EventListener
    lan: LanWatch
    works: dict[str, tuple[Workload, Running]]

    @property
    def pair(self) -> PairUnderTest:
        """The pair as faults may touch it."""
        return PairUnderTest(self.where.name, self.lab, self.home, self.ear.view, self.ear.ask)

    def come(self, begins: str) -> None:
        """Start the clients that begin then."""
        for work in self.scenario.workloads:
            if work.begins == begins:
                self.works[work.name] = (work, WORKLOADS[work.kind].start(self.lab, work))

    def boot(self) -> None:
        """Start the guest, unprotected, and wait until it serves."""
        testbed.boot(self.where, self.client)

    def protect(self) -> None:
        """Bring the pair into COLO."""
        Acts(self.client).start(wait_s=testbed.PROTECT_DEADLINE_S)

    def kill_clients(self) -> None:
        """End the processes of all clients."""
        for _, work in self.works.values():
            work.kill()


@contextlib.contextmanager
def environment(
    where: Testbed, scenario: Scenario, plan: tuple[ScheduledFault, ...]
) -> Iterator[Environment]:
    """Set up everything and begin nothing; it is gone after the block, unless it is to be kept."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(testbed.lab(where))
        home = stack.enter_context(testbed.folder(where))
        setup = Setup(where.name, home, lab, where.qemu)
        kinds = (FAULTS[fault.kind].prepare for fault in plan)
        for prepare in dict.fromkeys(one for one in kinds if one is not None):
            stack.enter_context(prepare(setup))
        pair_file = write_pair(where, setup, scenario)
        supervisor = spawned_supervisor(pairfile.load(pair_file))
        with _with(setup.environment):
            born = stack.enter_context(testbed.ending(where, supervisor))
        client = stack.enter_context(born.connect())
        ear = stack.enter_context(EventListener(where.name))
        lan = stack.enter_context(LanWatch(lab, sample.guest_mac()))
        around = Environment(where, scenario, lab, home, pair_file, client, ear, lan, {})
        stack.callback(around.kill_clients)
        yield around


@contextlib.contextmanager
def _with(environment: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started in the block."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def write_pair(where: Testbed, setup: Setup, scenario: Scenario) -> Path:
    """Write the lab's pair file with the scenario's tables laid over it."""
    options = {**scenario.guest, "services": True}
    changed = replace(where, qemu=setup.qemu, append_options=options)
    path = testbed.sample_pair(changed, setup.lab, setup.home)
    if scenario.pair or setup.images:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        document = overlaid(document, scenario.pair)
        for disk in document["disk"]:
            disk["image"] |= _moved(disk["image"], path.parent, setup.images)
        path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return path


def _moved(images: Mapping[str, str], home: Path, to: Mapping[str, Path]) -> dict[str, str]:
    """Move the images of a disk to the folders of their nodes; answers where they lie now."""
    return {
        node: str(shutil.move(home / images[node], folder / Path(images[node]).name))
        for node, folder in to.items()
    }


def overlaid(document: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with each key of ``tables`` in the place of its own."""
    return {**document, **{name: {**document.get(name, {}), **t} for name, t in tables.items()}}
