"""The demo, as a user starts it: judged by its own document, and by what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from coloctl.cli.demo_run import DEMO_SCHEMA
from coloctl.lab.network import labs

pytestmark = pytest.mark.guest

NAME = f"d{os.getpid()}"
DEMO = [sys.executable, "-m", "coloctl.cli.main", "demo", "--name", NAME, "-f", "json"]

#: The demo takes 15 s; a busy machine has been seen to need three times that.
PATIENCE_S = 240
#: A checkpoint lasts for some ten milliseconds: on a busy machine a kill may come after its end.
#: The document says so then, and all else must be as it is.
TRIES = 3


def played(kill: str) -> dict[str, Any]:
    done = subprocess.run(
        [*DEMO, "--kill", kill], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    well_ended(document, kill)
    return document


@pytest.mark.parametrize("kill", ["primary", "secondary"])
def test_the_demo_ends_well_in_a_checkpoint(kill: str) -> None:
    assert any(played(kill)["in_checkpoint"] for _ in range(TRIES)), "each kill missed it"


def well_ended(document: dict[str, Any], kill: str) -> None:
    assert document["schema"] == DEMO_SCHEMA
    assert document["verdict"] == "valid"
    assert document["killed"] == kill
    assert document["failover"]["by"] == "supervisor"
    assert document["failover"]["survivor"] == {"primary": "b", "secondary": "a"}[kill]
    acks = document["acks"]
    assert acks["sent"] >= acks["acknowledged"] > 0
    assert acks["lost"] == 0
    assert document["connections"] == {"opened": 4, "broken": 0}
    moments = document["timeline"]
    assert moments["fault"] == 0
    order = [moments[name] for name in ("fault", "detected_ms", "fenced_ms", "running_ms")]
    assert order == sorted(order)
    assert moments["promoted_ms"] > moments["fenced_ms"]
    assert document["checkpoints"]["count"] >= 4
    assert document["left_behind"] == []


def test_two_demos_of_one_name_do_not_meet() -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        try:
            assert first.stderr is not None
            while "boots" not in first.stderr.readline():
                assert first.poll() is None
            time.sleep(1)
            second = subprocess.run(
                DEMO, capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
            assert second.returncode == 5
            assert "in use" in json.loads(second.stderr.splitlines()[-1])["error"]["message"]
            assert first.poll() is None, "the second demo ended the first"
        finally:
            first.send_signal(signal.SIGINT)
            first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130
    assert NAME not in labs()
