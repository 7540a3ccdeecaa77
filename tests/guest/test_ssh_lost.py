"""A pair whose other machine is lost: its agent dies, or all of it falls silent, and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import sshhost
from support.clients import booted, clients, guest_spec
from support.pairs import PATIENCE_S, Stage, supervised

from coloctl import paths
from coloctl.chaos.checks.verdict import Validity, worst
from coloctl.host import tail
from coloctl.host.records import Contact
from coloctl.lab import guest, netns, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.model.protection import Protection
from coloctl.model.tls import TlsMode, TlsSpec
from coloctl.supervisor import acts

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(sshhost.refused() is not None, reason=str(sshhost.refused())),
]

#: An ssh that finds no way to the machine while the file FLAG is there.
SSH = """#!/bin/sh
if [ -e {flag} ]; then
  echo "ssh: connect to host host-b port 22: No route to host" >&2
  exit 255
fi
exec {words} "$@"
"""


class OtherMachine:
    """The lab's second host: what runs there, and whether ssh finds a way to it."""

    def __init__(self, lab: Lab, flag: Path) -> None:
        self.lab, self.flag = lab, flag

    def processes(self, but: str = "-") -> set[int]:
        """All that runs there, without those whose name begins so."""
        listed = netns.processes(self.lab.host_b).items()
        return {pid for pid, name in listed if not name.startswith(but)}

    def send(self, number: signal.Signals, *spare: int) -> None:
        for pid in self.processes() - {*spare}:
            with contextlib.suppress(ProcessLookupError):  # it has ended since it was listed
                os.kill(pid, number)

    def falls_silent(self, qemu: int) -> None:
        """As if its power failed: nothing is sent, and no connection is ended.

        Its agent first: one that still ran when the link was cut could be asked to end ``qemu``.
        """
        self.flag.touch()
        self.send(signal.SIGSTOP, qemu)
        self.lab.link("replication").cut()
        self.send(signal.SIGSTOP)

    def boots(self) -> None:
        """It is back, and nothing of before runs there."""
        self.send(signal.SIGKILL)
        end = time.monotonic() + PATIENCE_S
        while self.processes():
            assert time.monotonic() < end
            time.sleep(0.02)
        self.lab.link("replication").heal()
        self.flag.unlink()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-lost") as lab:
        yield lab


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l")


@pytest.fixture
def there(lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch) -> OtherMachine:
    hosts = sshhost.serve(folder / "ssh", {"host-b": lab.host_b})
    flag, ssh = folder / "unreachable", folder / "ssh-or-not"
    ssh.write_text(SSH.format(flag=shlex.quote(str(flag)), words=shlex.join(hosts.command)))
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("COLOCTL_SSH", str(ssh))
    return OtherMachine(lab, flag)


@pytest.fixture
def spec(
    lab: Lab,
    guest_image: guest.GuestImage,
    folder: Path,
    qemu_builds: Callable[[str], qemu.Build],
    there: OtherMachine,
) -> PairSpec:
    spec = guest_spec(lab, guest_image, folder, qemu_builds("11.1"))
    nodes = {**spec.nodes, "b": replace(spec.nodes["b"], host="ssh://host-b")}
    policy = replace(spec.policy, auto_failover=True, auto_reprotect=True)
    return replace(spec, nodes=nodes, policy=policy, tls=TlsSpec(mode=TlsMode.OFF))


async def in_colo(stage: Stage) -> None:
    await stage.start(protected=False)
    await booted(stage)
    await stage.start()


def timeline_of(stage: Stage) -> Mapping[str, Any]:
    (timeline,) = (data["timeline"] for name, data in stage.events if name == "FAILED_OVER")
    return dict(timeline)


async def out_of_reach(stage: Stage, lasts_s: float) -> None:
    """No ssh finds a way for so long: status says why, and both nodes go on in COLO."""
    state, host = stage.state, stage.state.ground.hosts["b"]
    await stage.until(lambda: "route" in state.view().nodes["b"].reach)
    since_s = time.monotonic()
    while time.monotonic() - since_s < lasts_s:
        await stage.checkpoints(2)
        assert state.protection is Protection.COLO and host.reach.contact is Contact.LOST
    assert "No route to host" in state.view().nodes["b"].reach


async def test_a_connection_lost_for_seconds_or_for_good_costs_neither_the_protection_nor_a_write(
    spec: PairSpec, lab: Lab, folder: Path, there: OtherMachine
) -> None:
    """After 5 s the session goes on. Without its agent the machine's QEMU runs on all the same.

    That is what is left of a connection that is lost for good: an agent ends an hour after it. A
    new agent finds the QEMU, and its monitors are opened again.
    """
    async with supervised(spec) as stage:
        await in_colo(stage)
        vm, host = stage.vm("b"), stage.state.ground.hosts["b"]
        session, monitor = host.reach.session, vm.monitor
        with clients(lab, folder / "history") as at_work:
            await at_work.acknowledged(10)
            at_s = time.monotonic()
            there.flag.touch()
            there.send(signal.SIGKILL, *there.processes("sshd"))
            await out_of_reach(stage, 5.0)
            there.flag.unlink()
            await stage.until(lambda: not stage.state.view().nodes["b"].reach)
            assert host.reach.session == session and vm.monitor is monitor
            there.flag.touch()
            there.send(signal.SIGKILL, vm.process.identity.pid)
            await out_of_reach(stage, 5.0)
            there.flag.unlink()
            await stage.until(
                lambda: (
                    host.reach.session > session
                    and vm.monitor is not monitor
                    and not vm.monitor.gone
                )
            )
            assert stage.state.protection is Protection.COLO and stage.vm("b") is vm
            await stage.checkpoints(5)
            await acts.checkpoint(stage.state)
            await at_work.acknowledged(5)
            verdicts = at_work.verdicts(at_s)
        assert stage.state.generation == 0
        assert worst(verdicts) is Validity.VALID, verdicts
        assert await acts.stop(stage.state, force=False) == "guest shut down"


async def test_a_machine_that_falls_silent_is_given_up_by_the_claim_and_taken_back(
    spec: PairSpec, lab: Lab, folder: Path, there: OtherMachine
) -> None:
    """Its guest's peer goes on at once; what was left there is proven gone before it has a part."""
    async with supervised(spec) as stage:
        await in_colo(stage)
        host = stage.state.ground.hosts["b"]
        with clients(lab, folder / "history") as at_work:
            await at_work.acknowledged(10)
            at_s = time.monotonic()
            there.falls_silent(stage.vm("b").process.identity.pid)
            await stage.until_protection(Protection.UNPROTECTED)
            alone_s = time.monotonic() - at_s
            await at_work.acknowledged(10)
            assert "b" in stage.state.left and stage.state.generation == 1
            timeline = timeline_of(stage)
            assert timeline["fence"]["how"] == "out-of-reach"
            await stage.until(lambda: "route" in stage.state.view().nodes["b"].reach)
            assert host.reach.contact is Contact.LOST
            there.boots()
            await stage.until_protection(Protection.COLO)
            assert not stage.state.left
            await stage.checkpoints(2)
            await at_work.acknowledged(5)
            verdicts = at_work.verdicts(at_s)
        assert worst(verdicts) is Validity.VALID, verdicts
        assert alone_s < PATIENCE_S
        print(f"from the silence to the guest that runs alone: {alone_s:.3f} s")
        print(timeline)
        assert await acts.stop(stage.state, force=False) == "guest shut down"


@pytest.fixture
def file(
    lab: Lab,
    guest_image: guest.GuestImage,
    folder: Path,
    qemu_builds: Callable[[str], qemu.Build],
    there: OtherMachine,
) -> Path:
    return sshhost.write_pair(folder, lab, guest_image, qemu_builds("11.1"))


def coloctl(*words: str | Path) -> str:
    argv = [sys.executable, "-m", "coloctl.cli.main", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def view() -> dict[str, Any]:
    """What `status` shows; empty while no supervisor answers."""
    with contextlib.suppress(AssertionError):
        return dict(json.loads(coloctl("status", "web", "-f", "json")))
    return {}


def until(true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE_S
    while not (seen := view()) or not true(seen):
        assert time.monotonic() < end, (seen, tail(paths.pair_dir("web") / "supervisor.log"))
        time.sleep(0.1)
    return seen


def test_a_supervisor_that_finds_a_machine_out_of_reach_takes_it_up_when_it_is_back(
    file: Path, there: OtherMachine
) -> None:
    """Both guests run in COLO all the time: it neither ends one nor promotes the other."""
    coloctl("start", file)
    try:
        before = view()
        assert before["protection"] == "colo"
        b = next(node for node in before["nodes"] if node["name"] == "b")
        there.flag.touch()
        there.send(signal.SIGKILL, b["pid"])
        os.kill(before["supervisor_pid"], signal.SIGKILL)
        alone = until(lambda seen: seen["supervisor_pid"] != before["supervisor_pid"])
        lost = until(lambda seen: seen["nodes"][1]["reach"])
        assert "No route to host" in lost["nodes"][1]["reach"]
        assert (alone["protection"], lost["protection"]) == ("colo", "colo"), (alone, lost)
        count = lost["checkpoints"]["count"]
        until(lambda seen: seen["checkpoints"]["count"] > count + 3)
        there.flag.unlink()
        back = until(lambda seen: not seen["nodes"][1]["reach"] and seen["nodes"][1]["colo_mode"])
        assert back["protection"] == "colo" and back["generation"] == before["generation"]
        assert [n["pid"] for n in back["nodes"]] == [n["pid"] for n in before["nodes"]]
        coloctl("checkpoint", "web")
        coloctl("switchover", "web", "--yes")
        assert view()["protection"] == "colo"
    finally:
        there.flag.unlink(missing_ok=True)
        coloctl("stop", "web", "--yes")
