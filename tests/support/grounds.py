"""Firmware pairs with a supervisor of their own, as faults see them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from support.smallpair import qemu_io, write_small_pair

from coloctl import pairfile
from coloctl.chaos.faults import FAULTS
from coloctl.chaos.faults.fault import Ask, Blow, Ground, Staging
from coloctl.chaos.scenario.values import Planned
from coloctl.control.daemon.spawn import spawned_supervisor
from coloctl.lab import qemu
from coloctl.lab.network import Lab

#: What a test waits for at most, seconds; nothing measures against it.
PATIENCE_S = 60.0


@dataclass
class Scene:
    """A pair that runs, and what tests ask of it."""

    ground: Ground
    ask: Ask

    def strike(self, kind: str, target: str, **params: Any) -> Blow:
        """The fault has been dealt, as the runner would: its parameters complete."""
        complete = FAULTS[kind].params(**params).model_dump()
        fault = Planned(kind, kind, target, 0.0, params=complete)
        return FAULTS[kind].strike(self.ground, fault, self.ask)

    def view(self) -> Mapping[str, Any]:
        return self.ground.view()

    def node(self, role: str) -> dict[str, Any]:
        found: dict[str, Any] = next(n for n in self.view()["nodes"] if n["role"] == role)
        return found

    def qmp(self, node: str, command: str, **arguments: Any) -> Any:
        return self.ask("node-qmp", 30, node=node, execute=command, arguments=arguments)

    def qemu_io(self, node: str, words: str) -> str:
        """What qemu-io says of a command on the guest's own disk; it writes to QEMU's log."""
        return qemu_io(self.qmp, self.ground.name, node, words)

    def told(self) -> Iterator[str]:
        """The failovers so far, and what each QEMU wrote."""
        yield f"HISTORY {self.ask('query-history', 10)}"
        folder = Path(os.environ["COLOCTL_STATE_DIR"]) / self.ground.name
        for log in sorted(folder.glob("?/qemu.log")):
            yield f"LOG {log.parent.name} {log.read_text(errors='replace')}"

    def until(self, true: Callable[[], object]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < give_up, self.view()
            time.sleep(0.05)


def staging(folder: Path, build: qemu.Build, name: str = "fault") -> Staging:
    """What a preparation may change before the pair's file is written."""
    return Staging(name, folder, cast("Lab", None), build.binary)


@contextlib.contextmanager
def playing(stage: Staging, *, protect: bool = True) -> Iterator[Scene]:
    """The pair of ``stage`` runs inside the block; behind it nothing of it is left."""
    with contextlib.ExitStack() as stack:
        for name, value in stage.environment.items():
            before = os.environ.get(name)
            os.environ[name] = value
            stack.callback(_put_back, name, before)
        file = stage.home / f"{stage.name}.toml"
        write_small_pair(file, qemu.provide("11.1"), stage.qemu)
        born = stack.enter_context(spawned_supervisor(pairfile.load(file)))

        def ask(name: str, timeout_s: float, /, **arguments: Any) -> Any:
            with born.connect() as client:
                return client.execute(name, timeout_s, **arguments)

        ask("pair-start", PATIENCE_S, protect=False)
        if protect:
            _until_quiet(ask("query-pair", 10)["nodes"][0]["pid"])
            ask("pair-protect", PATIENCE_S)
        scene = Scene(Ground(stage.name, stage.lab, stage.home, lambda: ask("query-pair", 10)), ask)
        yield scene
        for text in scene.told():
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
