"""A real pair, watched as Prometheus and a load balancer would watch it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser
from support.smallpair import own_net, write_small_pair

from coloctl import paths
from coloctl.control.daemon.http import Address
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu

NAME = "seen"
#: What a test waits for at most, seconds; nothing measures against it.
PATIENCE_S = 60.0


class Watched:
    """A pair whose supervisor serves its metrics at ``address``."""

    def __init__(self, file: Path, address: Address) -> None:
        self.file = file
        self.address = address

    def type(self, *words: str, code: int = 0) -> str:
        argv = [sys.executable, "-P", "-m", "coloctl.cli.main", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert done.returncode == code, (words, done)
        return done.stderr if code else done.stdout

    def start(self, code: int = 0) -> str:
        return self.type("start", str(self.file), "--metrics", str(self.address), code=code)

    def view(self) -> dict[str, Any]:
        argv = [sys.executable, "-P", "-m", "coloctl.cli.main", "status", NAME, "-f", "json"]
        looked = subprocess.run(argv, capture_output=True, text=True, check=False)
        view: dict[str, Any] = json.loads(looked.stdout)
        return view

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(
                "GET", path, headers={"Accept": "application/openmetrics-text; version=1.0.0"}
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample, by name and labels without ``pair``."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (sample.name, frozenset({**sample.labels, "pair": NAME}.items())): sample.value
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
        }

    def number(self, name: str, **labels: str) -> float:
        return self.scrape()[name, frozenset({**labels, "pair": NAME}.items())]

    def until(self, true: Callable[[], object]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < give_up
            time.sleep(0.05)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A pair file without a network; behind the test nothing of the pair runs."""
    build = qemu.provide("11.1")
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    file = write_small_pair(tmp_path / f"{NAME}.toml", build)
    # An address that nobody else's tests have, below the ports that the kernel gives away.
    pair = Watched(file, Address(f"{own_net()}.213", 9101))
    try:
        yield pair
    finally:
        if paths.pair_dir(NAME).exists():
            pair.type("stop", NAME, "--force", "--yes")


def test_a_pair_is_seen_through_its_life(watched: Watched) -> None:
    watched.start()
    assert watched.get("/protected") == (200, f"{NAME} is protected.\n")
    assert watched.get("/healthz")[0] == 200
    assert watched.number("coloctl_protection", coloctl_protection="colo") == 1
    assert watched.number("coloctl_exposure_seconds") == 0
    before = watched.number("coloctl_checkpoints_total")
    watched.until(lambda: watched.number("coloctl_checkpoints_total") >= before + 3)
    taken = watched.number("coloctl_checkpoint_pause_seconds_count")
    assert taken >= 3
    assert 0 < watched.number("coloctl_checkpoint_pause_seconds_sum") < taken * PATIENCE_S
    assert watched.number("coloctl_checkpoint_delay_seconds") == pytest.approx(0.2)
    exposed = watched.number("coloctl_unprotected_seconds_total")

    (dead,) = (node["pid"] for node in watched.view()["nodes"] if node["role"] == "primary")
    os.kill(dead, signal.SIGKILL)
    watched.until(lambda: watched.get("/protected")[0] == 503)
    watched.until(lambda: watched.number("coloctl_failovers_total", cause="primary-dead") == 1)
    assert "unprotected" in watched.get("/protected")[1]
    assert watched.number("coloctl_node_role", node="b", coloctl_node_role="primary") == 1
    assert watched.number("coloctl_generation") == 1
    assert watched.number("coloctl_protection_losses_total") == 1
    assert watched.number("coloctl_node_deaths_total", node="a") == 1
    assert watched.number("coloctl_failover_seconds_count") == 1
    assert watched.number("coloctl_failover_phase_seconds_count", phase="fenced") == 1
    watched.until(lambda: watched.number("coloctl_unprotected_seconds_total") > exposed)
    watched.until(lambda: watched.number("coloctl_exposure_seconds") > 0)
    assert watched.get("/healthz")[0] == 200


def test_the_next_supervisor_answers_at_the_same_address(watched: Watched) -> None:
    watched.start()
    killed = watched.view()["supervisor_pid"]
    os.kill(killed, signal.SIGKILL)

    def protected_again() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return (
                watched.get("/protected")[0] == 200 and watched.view()["supervisor_pid"] != killed
            )
        return False

    watched.until(protected_again)


def test_an_address_that_is_taken_starts_nothing(watched: Watched) -> None:
    with socket.create_server(tuple(watched.address)):
        refused = watched.start(code=1)
    assert "Another program already listens at" in refused
    assert not paths.pair_dir(NAME).exists()
