"""A pair under a supervisor process that is killed at a chosen moment, and what became of it.

A `Moment` is an act and the step at which SIGKILL comes, or a delay after its beginning. The pair
is real: firmware guests, one disk, no network. `survive` plays one moment and answers what the next
supervisor made of it, in values that a test compares.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.smallpair import qemu_io, write_small_pair

from coloctl import paths
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.errors import ColoctlError
from coloctl.lab import qemu

#: What a test waits for at most, seconds; nothing measures against it.
PATIENCE_S = 60.0

#: What the guest's disk holds before anything happens: byte, offset, length.
MARK = (0x5A, 1 << 20, 1 << 16)

#: States in which a pair stays by itself.
LASTING = ("colo", "unprotected", "down")

View = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """SIGKILL when ``step`` of ``act`` is announced, or ``delay_s`` after the act began."""

    act: str  #: "steady", or a key of `STEPS`; "start" from nothing, "protect" where a guest runs
    step: str = ""
    delay_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.act}-{self.step or f'{self.delay_s:.3f}'}"


#: Steps as the acts announce them.
STEPS = {
    "start": ("images", "primary", "secondary", "connect", "attach", "migrate", "first checkpoint"),
    "protect": ("secondary", "connect", "compare", "migrate", "first checkpoint"),
    "failover": ("fenced", "arbitrated", "yanked", "promoted", "running", "cleared"),
    "stop": ("guest", "let go"),
}


def schedule(seed: int, number: int) -> tuple[Moment, ...]:
    """That many moments, the same for the same seed: at steps, and between them."""
    dice = random.Random(seed)
    acts = ("steady", "start", "protect", "protect", "failover", "failover", "stop")
    moments = []
    for _ in range(number):
        act = dice.choice(acts)
        if act == "steady" or dice.random() < 0.5:
            moments.append(Moment(act, delay_s=round(dice.uniform(0.0, 0.6), 3)))
        else:
            moments.append(Moment(act, dice.choice(STEPS[act])))
    return tuple(moments)


@dataclass(frozen=True)
class Outcome:
    """The pair after the death of its supervisor."""

    protection: str  #: "" where no supervisor serves it any more
    guests: int  #: how many QEMUs run a guest of their own
    data_intact: bool
    supervised: bool  #: by another process than the one that was killed
    qemus_before: tuple[int, ...]
    qemus: tuple[int, ...]
    killed_in: str  #: the state in which the supervisor was killed


class Mortal:
    """A pair whose supervisor can be killed; verbs are typed as an operator types them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.name = file.stem

    def begin(self, *words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-P", "-m", "coloctl.cli.main", *words]
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def type(self, *words: str) -> str:
        said, _ = self.begin(*words).communicate(timeout=PATIENCE_S)
        return said

    def client(self, on_event: Callable[[ControlEvent], None] | None = None) -> ControlClient:
        return ControlClient.connect(paths.control_socket(self.name), PATIENCE_S, on_event)

    def ask(self, command: str, **arguments: Any) -> Any:
        with self.client() as client:
            return client.execute(command, PATIENCE_S, **arguments)

    def view(self) -> View:
        view: View = self.ask("query-pair")
        return view

    def qemus(self) -> tuple[int, ...]:
        return tuple(n["pid"] for n in self.view()["nodes"] if n["presence"] == "alive")

    def io(self, node: str, words: str) -> str:
        """What qemu-io says of a command on the guest's own disk device."""
        return qemu_io(self.qmp, self.name, node, words)

    def qmp(self, node: str, command: str, **arguments: Any) -> Any:
        return self.ask("node-qmp", node=node, execute=command, arguments=arguments)

    def primary(self) -> str:
        return str(next(n["name"] for n in self.view()["nodes"] if n["role"] == "primary"))

    def mark(self, what: tuple[int, int, int] = MARK) -> None:
        """Write as the guest could, flushed, and let a checkpoint follow: then both sides have it.

        No checkpoint is under way meanwhile: a guest never writes during one, and qemu-io must not.
        Flushed (`-f`), because a guest acknowledges nothing else: until the firmware has found the
        disk, QEMU keeps the image's metadata of a plain write in memory, and SIGKILL loses it.
        """
        byte, offset, length = what
        protected = self.view()["protection"] == "colo"
        with self._between_checkpoints() if protected else nullcontext():
            said = self.io(self.primary(), f"write -f -P {byte:#x} {offset} {length}")
        assert f"wrote {length}/{length} bytes" in said, said
        if protected:
            self.type("checkpoint", self.name)

    @contextmanager
    def _between_checkpoints(self) -> Iterator[None]:
        """Run the block when one has just been taken and the next is a minute away."""
        node, before = self.primary(), self._checkpoints()
        delay_ms = self.qmp(node, "query-migrate-parameters")["x-checkpoint-delay"]

        def begun() -> bool:  # asked again: QEMU forgets what comes during a checkpoint
            self.qmp(node, "migrate-set-parameters", **{"x-checkpoint-delay": 60_000})
            time.sleep(0.2)
            return self._checkpoints() > before

        def quiet() -> bool:  # one may have been due by the old period, or asked for twice
            seen = self._checkpoints()
            time.sleep(0.1)
            status = self.qmp(node, "query-status")["status"]
            return status == "running" and self._checkpoints() == seen

        self.until(begun)
        self.until(quiet)
        yield
        self.qmp(node, "migrate-set-parameters", **{"x-checkpoint-delay": delay_ms})

    def _checkpoints(self) -> int:
        return int(self.view()["checkpoints"]["count"])

    def marked(self, what: tuple[int, int, int] = MARK) -> bool:
        byte, offset, length = what
        said = self.io(self.primary(), f"read -P {byte:#x} {offset} {length}")
        return f"read {length}/{length} bytes" in said and "failed" not in said

    def settled(self) -> View | None:
        """The pair once no act is under way and it is in a state that lasts; None: not served."""
        give_up = time.monotonic() + PATIENCE_S
        quiet = 0
        while time.monotonic() < give_up:
            try:
                view = self.view()
            except ColoctlError:
                if not paths.pair_dir(self.name).exists():
                    return None
                time.sleep(0.05)
                continue
            lasts = view["progress"] is None and view["protection"] in (
                "colo",
                "unprotected",
                "down",
            )
            quiet = quiet + 1 if lasts else 0
            if quiet >= 4:  # an act that follows another begins at once
                return view
            time.sleep(0.05)
        raise AssertionError(f"{self.name} does not settle: {self.log()}")

    def until(self, true: Callable[[], object]) -> None:
        """Returns once ``true``; the test fails when that takes longer than its patience."""
        give_up = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < give_up, self.log()
            time.sleep(0.05)

    def log(self) -> str:
        path = paths.pair_dir(self.name) / "supervisor.log"
        return path.read_text() if path.exists() else "no log"

    def guests(self) -> int:
        """How many QEMUs run a guest that is not the copy of another."""
        count = 0
        for node in self.view()["nodes"]:
            if node["presence"] != "alive":
                continue
            said = {
                name: self.ask("node-qmp", node=node["name"], execute=name)
                for name in ("query-status", "query-colo-status")
            }
            runs = said["query-status"]["status"] in ("running", "colo", "finish-migrate")
            count += runs and said["query-colo-status"]["mode"] != "secondary"
        return count


def write_pair(folder: Path, build: qemu.Build, number: int = 0) -> Mortal:
    """A pair file in ``folder``."""
    return Mortal(write_small_pair(folder / f"m{number}.toml", build, number=number))


@contextmanager
def mortal(folder: Path, build: qemu.Build, number: int = 0) -> Iterator[Mortal]:
    """A pair file; behind the block nothing of the pair is left."""
    pair = write_pair(folder, build, number)
    try:
        yield pair
    except BaseException:
        print(pair.log())
        raise
    finally:
        if paths.pair_dir(pair.name).exists():
            pair.type("stop", pair.name, "--force", "--yes")
        assert not paths.pair_dir(pair.name).exists()


def survive(pair: Mortal, moment: Moment) -> Outcome:
    """The supervisor is killed at ``moment``; the pair has settled under the next."""
    _bring_about(pair, moment.act)
    verb: subprocess.Popen[str] | None = None
    with _Killer(pair, moment) as killer:
        words = _verb(pair, moment.act)
        if words:
            verb = pair.begin(*words)
        killer.strike()
    if verb is not None:
        verb.communicate(timeout=PATIENCE_S)
    view = pair.settled()
    if view is None or view["protection"] == "down":
        return Outcome("" if view is None else "down", 0, True, view is not None,
                       killer.qemus, (), killer.state)  # fmt: skip
    return Outcome(
        protection=view["protection"],
        guests=pair.guests(),
        data_intact=moment.act == "start" or pair.marked(),
        supervised=view["supervisor_pid"] != killer.victim,
        qemus_before=killer.qemus,
        qemus=pair.qemus(),
        killed_in=killer.state,
    )


def _bring_about(pair: Mortal, act: str) -> None:
    if act == "start":
        return
    pair.type("start", str(pair.file), *(("--no-protect",) if act == "protect" else ()))
    pair.mark()


def _verb(pair: Mortal, act: str) -> tuple[str, ...]:
    return {
        "steady": (),
        "start": ("start", str(pair.file)),
        "protect": ("start", str(pair.file)),
        "failover": ("failover", pair.name, "--yes"),
        "stop": ("stop", pair.name, "--yes", "--wait=1"),
    }[act]


class _Killer:
    """Kills the supervisor of a pair at a moment, and knows how it was then."""

    def __init__(self, pair: Mortal, moment: Moment) -> None:
        self.pair, self.moment = pair, moment
        self.victim = 0
        self.state = ""
        self.qemus: tuple[int, ...] = ()
        self._struck = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _Killer:
        if self.moment.act == "start":
            self._thread.start()
            return self
        view = self.pair.view()
        self.victim, self.state = view["supervisor_pid"], view["protection"]
        self.qemus = self.pair.qemus()
        if self.moment.step:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def strike(self) -> None:
        """The supervisor is dead."""
        if self._thread.is_alive() or self._thread.ident:
            assert self._struck.wait(PATIENCE_S), f"{self.moment} never came"
            return
        time.sleep(self.moment.delay_s)
        self._kill()

    def _kill(self) -> None:
        try:
            os.kill(self.victim, signal.SIGKILL)
        except ProcessLookupError:
            self.state += ", but had ended"
        self._struck.set()

    def _listen(self) -> None:
        """Strikes at the step, or at the end of the act where that step does not come."""
        client = self._connected()
        with client:
            if not self.victim:
                view = client.execute("query-pair", PATIENCE_S)
                self.victim, self.state = view["supervisor_pid"], view["protection"]
            if not self.moment.step:
                time.sleep(self.moment.delay_s)
                self._kill()
                return
            try:
                for event in client.events(PATIENCE_S):
                    if event.name == "STATE_CHANGED":
                        self.state = event.data["after"]
                    if event.name == "STEP" and event.data["step"] == self.moment.step:
                        break
                    if event.name == "STATE_CHANGED" and event.data["after"] == "colo":
                        break
            except ColoctlError:
                pass
        self._kill()

    def _connected(self) -> ControlClient:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.pair.client()
            except ColoctlError:
                assert time.monotonic() < give_up
                time.sleep(0.002)


def main() -> int:
    """``python moments.py SEED NUMBER``: plays a schedule and prints one line per moment."""
    seed, number = int(sys.argv[1]), int(sys.argv[2])
    build, bad = qemu.provide("11.1"), 0
    folder = paths.make_private(paths.state_dir()).parent / "moments"
    for index, moment in enumerate(schedule(seed, number)):
        began = time.monotonic()
        with mortal(folder / str(index), build, index) as pair:
            outcome = survive(pair, moment)
        lost = moment.act != "stop" and not (outcome.supervised and outcome.guests == 1)
        wrong = lost or not outcome.data_intact or outcome.guests > 1
        bad += wrong
        took = {"s": round(time.monotonic() - began, 1), "wrong": wrong}
        print(index, moment, json.dumps({**vars(outcome), **took}), flush=True)
    print(f"{number - bad} of {number} survived")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
