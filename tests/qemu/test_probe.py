"""The verdict of `coloctl probe --full` is right for every cell of the matrix that runs here.

And whatever becomes of a trial, nothing of it is left: no process, no file.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coloctl.check.probe import Report, probe
from coloctl.check.trial import holds_colo, try_out
from coloctl.check.trial_run import CHECKPOINTS
from coloctl.check.verdict import CheckResult, ColoSupport, FullVerdict
from coloctl.host import open_host
from coloctl.lab.qemu import Build
from coloctl.machine.accel import kvm_closed
from coloctl.model.pair import Role

pytestmark = pytest.mark.qemu

Builds = Callable[[str], Build]

ACCELS = (
    pytest.param("kvm", marks=pytest.mark.skipif(bool(kvm_closed()), reason=kvm_closed())),
    "tcg",
)

#: What is expected of 7.2 and 10.0; 11.1 works everywhere. A pair that meets two bugs shows either.
BROKEN = {
    ("tcg", "pc"): {"tcg-deadlock"},
    ("kvm", "q35"): {"q35-abort"},
    ("tcg", "q35"): {"tcg-deadlock", "q35-abort"},
}


def trial_of(build: Build, accel: str, machine: str) -> FullVerdict:
    return asyncio.run(try_out(build.binary, accel, machine))


def report_of(binary: Path, accel: str = "tcg", machine: str = "pc") -> Report:
    async def ask() -> Report:
        async with open_host("local") as host:
            return await probe(binary, accel, machine, host)

    return asyncio.run(ask())


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where trials put their files; its name is in the command line of their QEMUs."""
    # pytest's own folders have names too long for the sockets in them.
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def processes_of(folder: Path) -> Iterator[int]:
    """Processes whose command line names the folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in command:
                yield int(entry.name)


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("accel", ACCELS)
@pytest.mark.parametrize("name", ["7.2", "10.0", "11.1"])
def test_the_matrix(
    name: str, accel: str, machine: str, qemu_builds: Builds, temporary: Path
) -> None:
    verdict = trial_of(qemu_builds(name), accel, machine)
    bugs = BROKEN.get((accel, machine), set()) if name != "11.1" else set()
    if bugs:
        assert verdict.outcome is ColoSupport.FAILS, verdict
        assert verdict.known_bug in bugs
        assert verdict.hint
    else:
        assert verdict.outcome is ColoSupport.WORKS, verdict
        assert [one.killed for one in verdict.directions] == [Role.PRIMARY, Role.SECONDARY]
        for one in verdict.directions:
            assert one.checkpoints >= CHECKPOINTS >= 5
            assert one.stage == "verified"
            assert one.pause_p50_ms is not None
            assert one.failover_ms is not None
    assert list(temporary.iterdir()) == []
    assert list(processes_of(temporary)) == []


def test_an_abort_is_told_by_the_assertion_itself(qemu_builds: Builds) -> None:
    verdict = trial_of(qemu_builds("10.0"), "tcg", "q35")
    last = verdict.directions[-1]
    if verdict.known_bug == "q35-abort":
        assert "Assertion" in last.last_words
    assert last.stage in ("first checkpoint", "checkpoints")


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_asking_alone_suspects_what_a_trial_would_show(machine: str, qemu_build: Build) -> None:
    report = report_of(qemu_build.binary, machine=machine)
    expected = ColoSupport.WORKS if qemu_build.name == "11.1" else ColoSupport.SUSPECT
    assert report.outcome is expected, report
    assert not [one for one in report.checks if one.verdict is CheckResult.FAIL]
    assert report.version.startswith(qemu_build.version)


def test_a_machine_type_that_does_not_exist_fails(qemu_build: Build) -> None:
    report = report_of(qemu_build.binary, machine="pc-q36")
    assert report.outcome is ColoSupport.FAILS
    assert "pc-q36" in report.sentence


def test_auto_is_what_the_proof_says(qemu_builds: Builds) -> None:
    report = report_of(qemu_builds("11.1").binary, "auto")
    accelerator = next(one for one in report.checks if one.name == "accelerator")
    assert report.accel in ("kvm", "tcg")
    assert ("KVM runs guests" in accelerator.sentence) == (report.accel == "kvm")


@pytest.mark.parametrize("binary", ["/bin/true", "/bin/sleep", "/nonexistent/qemu", "/etc/passwd"])
def test_what_is_no_qemu_is_a_verdict_and_no_exception(binary: str) -> None:
    assert report_of(Path(binary)).outcome is ColoSupport.FAILS
    assert holds_colo(Path(binary), "tcg", fresh=True).outcome is ColoSupport.FAILS


async def test_a_deadline_that_is_too_short_proves_nothing(
    qemu_builds: Builds, temporary: Path
) -> None:
    verdict = await try_out(qemu_builds("11.1").binary, "tcg", deadline_s=1.5)
    assert verdict.outcome is ColoSupport.UNKNOWN, verdict
    assert "--deadline" in verdict.hint
    assert list(temporary.iterdir()) == []
    assert list(processes_of(temporary)) == []


def test_a_remembered_verdict_costs_nothing(
    qemu_builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path))
    binary = qemu_builds("11.1").binary
    first = holds_colo(binary, "tcg")
    second = holds_colo(binary, "tcg")
    assert first.works
    assert first == second
    assert second.remembered


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_trial_leaves_nothing(
    signum: signal.Signals, qemu_builds: Builds, temporary: Path
) -> None:
    binary = qemu_builds("11.1").binary
    # A run of tests in the background ignores Ctrl-C, and so would what it starts.
    argv = ["env", "--default-signal=INT", sys.executable, "-m", "coloctl.cli.main"]
    argv += ["probe", "--full", "--accel", "tcg"]
    command = subprocess.Popen(
        [*argv, "--qemu", str(binary)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        # The trial's own QEMUs: those that have a firmware console.
        while not list(temporary.glob("coloctl-probe-*/firmware.log")):
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        command.send_signal(signum)
        _, complaint = command.communicate(timeout=30)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 130
    assert "Traceback" not in complaint
    assert list(processes_of(temporary)) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "outcome"),
    [
        (["--qemu", "11.1", "--accel", "tcg"], 0, "works"),
        (["--qemu", "10.0", "--accel", "tcg"], 3, "suspect"),
        (["--qemu", "11.1", "--accel", "tcg", "--machine", "isapc-9"], 1, "fails"),
        (["--qemu", "11.1", "--accel", "tcg", "--machine", "q35", "--full"], 0, "works"),
    ],
)
def test_the_verb(arguments: list[str], code: int, outcome: str, qemu_builds: Builds) -> None:
    qemu_builds(arguments[1])
    argv = [sys.executable, "-m", "coloctl.cli.main", "probe", *arguments, "-f", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    told = json.loads(done.stdout)
    assert (told["schema"], told["outcome"]) == (1, outcome)
    assert (told["full"] is not None) == ("--full" in arguments)
