"""Firmware pairs with a supervisor of their own, as faults see them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from support.smallpair import qemu_io, write_small_pair

from coloctl import pairfile
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import Ask, Fault, Injected, PairUnderTest, Setup, TargetNode, build
from coloctl.chaos.run.site import LabSite
from coloctl.control.daemon.spawn import spawned_supervisor
from coloctl.lab import qemu
from coloctl.lab.network import Lab
from coloctl.model.view import PairView

#: What a test waits for at most, seconds; nothing measures against it.
PATIENCE_S = 60.0


class InjectedFault:
    """A fault that was injected, as a test looks at it."""

    def __init__(self, pair: PairUnderTest, kind: str, target: str, params: dict[str, Any]) -> None:
        given = FAULTS[kind].params.model_validate(params)
        self.fault: Fault[Any] = build(FAULTS, pair, kind, target, given)
        self.injected: Injected = self.fault.inject()
        self.nodes, self.note = self.injected.nodes, self.injected.note
        self.role, self.heal, self.result = self.injected.role, self.fault.heal, self.fault.result


@dataclass
class RunningPair:
    """A pair that runs, and the questions that tests ask it."""

    pair: PairUnderTest

    def inject(self, kind: str, target: str, **params: Any) -> InjectedFault:
        """Inject a fault as the engine would."""
        return InjectedFault(self.pair, kind, target, params)

    @property
    def ask(self) -> Ask:
        return self.pair.ask

    def view(self) -> PairView:
        return self.pair.view()

    def node(self, role: str) -> TargetNode:
        return self.pair.node(role)

    def qmp(self, node: str, command: str, **arguments: Any) -> Any:
        return self.ask("node-qmp", 30, node=node, execute=command, arguments=arguments)

    def qemu_io(self, node: str, words: str) -> str:
        """What qemu-io says of a command on the guest's own disk; it writes to QEMU's log."""
        return qemu_io(self.qmp, self.pair.name, node, words)

    def told(self) -> Iterator[str]:
        """The failovers so far, and what each QEMU wrote."""
        yield f"HISTORY {self.ask('query-history', 10)}"
        folder = Path(os.environ["COLOCTL_STATE_DIR"]) / self.pair.name
        for log in sorted(folder.glob("?/qemu.log")):
            yield f"LOG {log.parent.name} {log.read_text(errors='replace')}"

    def until(self, true: Callable[[], object]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < give_up, self.view()
            time.sleep(0.05)


def setup_of(folder: Path, build: qemu.Build, name: str = "fault") -> Setup:
    """Return what a preparation may change before the pair's file is written."""
    return Setup(name, folder, LabSite(cast("Lab", None)), build.binary)


@contextlib.contextmanager
def running(setup: Setup, *, protect: bool = True) -> Iterator[RunningPair]:
    """Run the pair of ``setup`` inside the block; after it nothing of the pair is left."""
    with contextlib.ExitStack() as stack:
        for name, value in setup.environment.items():
            before = os.environ.get(name)
            os.environ[name] = value
            stack.callback(_put_back, name, before)
        file = setup.home / f"{setup.name}.toml"
        write_small_pair(file, qemu.provide("11.1"), setup.qemu)
        born = stack.enter_context(spawned_supervisor(pairfile.load(file)))

        def ask(name: str, timeout_s: float, /, **arguments: Any) -> Any:
            with born.connect() as client:
                return client.execute(name, timeout_s, **arguments)

        def view() -> PairView:
            return PairView.from_json(ask("query-pair", 10))

        ask("pair-start", PATIENCE_S, protect=False)
        if protect:
            _until_quiet(view().nodes["a"].pid)
            ask("pair-protect", PATIENCE_S)
        pair = PairUnderTest(setup.name, setup.site, setup.home, view, ask)
        yield (one := RunningPair(pair))
        for text in one.told():
            print(text)  # shown where a test has failed
        born.end()


def _until_quiet(pid: int) -> None:
    """The firmware has found nothing to boot; under TCG a secondary may not survive what is before
    that (docs/qemu.md, "Stale translations").
    """
    used, calm = -1, 0
    while calm < 3:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        now = int(fields[11]) + int(fields[12])
        calm = calm + 1 if now - used <= 1 else 0
        used = now
        time.sleep(0.15)


def _put_back(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
