"""`coloctl bench supervisors` with two real pairs: what it counts, and that nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from coloctl import paths
from coloctl.bench.document import BENCH_SCHEMA
from coloctl.chaos.evidence.remains import processes
from coloctl.lab.qemu import Build

pytestmark = pytest.mark.qemu

NAME = f"s{os.getpid()}"
BENCH = [sys.executable, "-m", "coloctl.cli.main", "bench", "supervisors", "--name", NAME]


def test_two_pairs_are_protected_watched_and_removed(qemu_builds: Callable[[str], Build]) -> None:
    binary = qemu_builds("11.1").binary
    asked = ["--pairs", "2", "--seconds", "5", "--accel", "tcg", "--qemu", str(binary)]
    done = subprocess.run(
        [*BENCH, *asked, "-f", "json"], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    document = json.loads(done.stdout)
    assert (document["schema"], document["bench"]) == (BENCH_SCHEMA, "supervisors")
    assert document["setting"] == {
        "qemu": {"binary": str(binary), "accel": "tcg"},
        "pairs": 2,
        "seconds": 5.0,
        "delay_ms": 1000,
    }
    assert (document["protected"], document["false_failovers"]) == (2, [])
    pauses = document["checkpoint_pause_ms"]
    assert document["checkpoints"] == pauses["n"] >= 2
    assert 0 < pauses["p50"] <= pauses["max"]
    assert document["supervisor_cpu_percent"]["n"] == document["supervisor_rss_mib"]["n"] == 2
    assert document["supervisor_rss_mib"]["p50"] > 10
    assert done.stderr.count("is in COLO after") == 2
    folders = [paths.pair_dir(f"{NAME}-{number}") for number in (1, 2)]
    assert not any(folder.exists() for folder in folders)
    assert not processes(folders)
