"""`coloctl bench`, as a user starts it: judged by its document, and by what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coloctl import paths
from coloctl.bench.document import BENCH_SCHEMA
from coloctl.errors import LabError
from coloctl.lab import netns
from coloctl.lab.network import Lab, labs

pytestmark = pytest.mark.guest

NAME = f"m{os.getpid()}"
COLOCTL = [sys.executable, "-m", "coloctl.cli.main"]
BENCH = [*COLOCTL, "bench", "failover", "--name", NAME]

#: One run takes 15 s; a busy machine has been seen to need three times that.
PATIENCE_S = 240


def test_a_run_is_timed_and_judged(tmp_path: Path) -> None:
    """The primary is frozen and woken: a kill leaves less to be wrong."""
    saved = tmp_path / "bench.json"
    done = subprocess.run(
        [*BENCH, "--cause", "freeze", "--runs", "1", "-f", "json", "-o", str(saved)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    document = json.loads(done.stdout)
    assert document["schema"] == BENCH_SCHEMA
    assert document["bench"] == "failover"
    (run,) = document["runs"]
    assert run["verdict"] == "valid", run["because"]
    assert run["survivor"] == "b"
    assert run["acknowledged"] > 0
    assert (run["lost"], run["broken"], run["stray_frames"]) == (0, 0, 0)
    assert not run["double_primary"]
    phases = run["phases_ms"]
    assert 0 <= phases["detected"] <= phases["fenced"]
    for step in ("arbitrated", "promoted", "running", "first-frame"):
        assert phases[step] > phases["fenced"]
    assert document["summary"]["valid"] == 1
    assert document["summary"]["phases_ms"]["running"]["p50"] == pytest.approx(
        phases["running"], abs=0.1
    )
    assert json.loads(saved.read_text())["runs"] == document["runs"]
    assert nothing_is_left()


def guest_runs() -> bool:
    """Return whether something runs on the first host of the bench's lab."""
    with contextlib.suppress(LabError, OSError):  # the lab is being built
        return NAME in labs() and bool(netns.processes(Lab(NAME).host_a))
    return False


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_everything_away(signum: signal.Signals) -> None:
    """In the middle of a run: the guest boots. A CI that cancels a job sends SIGTERM."""
    with subprocess.Popen([*BENCH, "--runs", "5"], stdout=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + PATIENCE_S
            while not guest_runs():
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
        finally:
            process.send_signal(signum)
            process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert nothing_is_left()


def test_both_ways_to_pace_are_measured_on_the_same_clients() -> None:
    pace = [*COLOCTL, "bench", "pace", "--name", NAME, "-f", "json"]
    done = subprocess.run(
        [*pace, "--seconds", "6", "--burst-s", "1", "--idle-s", "1", "--delay-ms", "500"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    fixed, adaptive = json.loads(done.stdout)["rows"]
    assert (fixed["mode"], adaptive["mode"]) == ("fixed", "adaptive")
    for row in (fixed, adaptive):
        assert row["checkpoints"] > 0 and row["latency_ms"]["n"] > 0
    assert {one["delay_ms"] for one in fixed["trace"]} == {500}
    assert fixed["changes"] == []
    assert nothing_is_left()


def test_a_pair_is_attacked_twice_and_closes_each_circle() -> None:
    circles = [*COLOCTL, "bench", "circles", "--name", NAME, "-f", "json"]
    done = subprocess.run(
        [*circles, "--circles", "2", "--clients", "2"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    told = " ".join(done.stderr.split())
    assert "circle 1/2 primary" in told and "circle 2/2 secondary" in told
    document = json.loads(done.stdout)
    assert (document["verdict"], document["circles"]) == ("valid", 2), document["checks"]
    # Two from the beginning, and one in each of three phases of two circles.
    assert (document["connections"], document["lost"], document["broken"]) == (8, 0, 0)
    first, second = document["turns"]
    assert (first["survivor"], second["survivor"]) == ("b", "b")
    assert first["counts"] == second["counts"] != {}
    for turn in (first, second):
        assert turn["running_ms"] > 0 and turn["exposed_s"] > 0
        assert turn["outage_ms"] is not None and turn["join_gap_ms"] is not None
    assert document["first_join_gap_ms"] > 0
    assert nothing_is_left()


def nothing_is_left() -> bool:
    return NAME not in labs() and not paths.pair_dir(NAME).exists()
