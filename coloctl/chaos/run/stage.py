"""Where a scenario plays: a lab of its own, a pair file that is the lab's and the scenario's, a
guest that serves, and clients that come when they should. Whatever ends the block takes it away.
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
class Stage:
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
        """The clients that begin then are at work."""
        for work in self.scenario.workloads:
            if work.begins == begins:
                self.works[work.name] = (work, WORKLOADS[work.kind].start(self.lab, work))

    def boot(self) -> None:
        """The guest serves, unprotected."""
        testbed.boot(self.where, self.client)

    def protect(self) -> None:
        """The pair is in COLO."""
        Acts(self.client).start(wait_s=testbed.PROTECT_DEADLINE_S)

    def kill_clients(self) -> None:
        for _, work in self.works.values():
            work.kill()


@contextlib.contextmanager
def stage(where: Testbed, scenario: Scenario, plan: tuple[ScheduledFault, ...]) -> Iterator[Stage]:
    """Everything stands and nothing has begun; behind the block it is gone, unless it is kept."""
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
        played = Stage(where, scenario, lab, home, pair_file, client, ear, lan, {})
        stack.callback(played.kill_clients)
        yield played


@contextlib.contextmanager
def _with(environment: Mapping[str, str]) -> Iterator[None]:
    """Whatever is started in the block has that in its environment."""
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
    """The lab's pair file with the scenario's tables laid over it."""
    options = {**scenario.guest, "services": True}
    cast = replace(where, qemu=setup.qemu, append_options=options)
    path = testbed.sample_pair(cast, setup.lab, setup.home)
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
    """The document with each key of ``tables`` in the place of its own."""
    return {**document, **{name: {**document.get(name, {}), **t} for name, t in tables.items()}}
