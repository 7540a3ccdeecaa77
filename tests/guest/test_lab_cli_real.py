"""`coloctl lab` as people type it: a lab comes, is cut, healed, used, and goes without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from labtools import NEEDS_ROOT, leftovers

from coloctl.lab import netns
from coloctl.lab.network import Lab

pytestmark = pytest.mark.guest

#: Not the lab of the other modules: they may stand at the same time.
NAME = f"c{os.getpid()}"


@pytest.fixture(scope="module", autouse=True)
def _rights() -> None:
    if os.geteuid() != 0:
        pytest.skip(NEEDS_ROOT)


@pytest.fixture
def _up() -> Iterator[None]:
    """A lab stands, built by the command."""
    try:
        done = coloctl("up")
        assert done.returncode == 0, done.stderr
        yield
    finally:
        Lab(NAME).down()


def command(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "coloctl.cli.main", "lab", verb, "--name", NAME, *arguments]


def coloctl(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(verb, *arguments), capture_output=True, text=True, timeout=60, check=False
    )


def link_states() -> dict[str, str]:
    links = json.loads(coloctl("show", "-f", "json").stdout)["links"]
    return {name: link["state"] for name, link in links.items()}


@pytest.mark.usefixtures("_up")
def test_up_again_mends_and_down_leaves_nothing() -> None:
    netns.remove(f"{NAME}-client")
    half = coloctl("show")
    assert half.returncode == 1 and "hint: build it with `coloctl lab up`" in half.stderr
    up = coloctl("up")
    assert up.returncode == 0
    assert "10.77.0.10" in up.stdout and "Next:" in up.stdout
    down = coloctl("down")
    assert (down.returncode, down.stdout) == (0, f"The lab {NAME} is gone.\n")
    assert not leftovers(NAME)
    again = coloctl("down")
    assert (again.returncode, again.stdout) == (0, f"There was no lab {NAME}.\n")


@pytest.mark.usefixtures("_up")
def test_a_link_is_cut_and_healed() -> None:
    assert coloctl("cut", "replication").stdout == "replication is cut.\n"
    assert coloctl("cut", "--carrier", "lan-a").stdout == "lan-a is unplugged.\n"
    states = {"replication": "cut", "lan-a": "unplugged", "lan-b": "up", "client": "up"}
    assert link_states() == states
    assert "replication is cut." in coloctl("show").stdout
    for link in ("replication", "lan-a"):
        done = coloctl("heal", link, "-f", "json")
        assert json.loads(done.stdout) == {"schema": 1, "name": NAME, "link": link, "state": "up"}
    assert set(link_states().values()) == {"up"}


@pytest.mark.usefixtures("_up")
def test_a_command_runs_on_a_machine_and_its_exit_code_comes_back() -> None:
    reads = "import sys; sys.stdout.write(open('/proc/net/dev').read()); sys.exit(7)"
    done = coloctl("exec", "client", "--", sys.executable, "-c", reads)
    assert done.returncode == 7
    assert "lan0" in done.stdout and "tap-a" not in done.stdout
    missing = coloctl("exec", "client", "no-such-program")
    assert missing.returncode == 1 and "no-such-program cannot be run" in missing.stderr
    killed = coloctl("exec", "client", "sh", "-c", "kill -KILL $$")
    assert killed.returncode == 128 + signal.SIGKILL


@pytest.mark.usefixtures("_up")
def test_a_lab_in_use_is_not_taken_down_by_mistake() -> None:
    sleep = shutil.which("sleep") or "sleep"
    with Lab.open(NAME).popen([sleep, "60"], "host-a") as tenant:
        try:
            refused = coloctl("down")
            assert refused.returncode == 5
            assert f"sleep ({tenant.pid}) on host-a" in refused.stderr
            assert tenant.poll() is None
            forced = coloctl("down", "--force")
            assert forced.returncode == 0, forced.stderr
            assert f"sleep ({tenant.pid})" in forced.stdout
        finally:
            tenant.kill()
    assert not leftovers(NAME)


@pytest.mark.usefixtures("_up")
def test_labs_are_listed_with_what_is_wrong_with_them() -> None:
    def listed() -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "coloctl.cli.main", "lab", "list", "-f", "json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found = [one for one in json.loads(done.stdout)["labs"] if one["name"] == NAME]
        return dict(found[0]) if found else {}

    coloctl("cut", "client")
    whole = {"name": NAME, "state": "up", "impaired": ["client cut"], "processes": 0}
    assert listed() == whole
    netns.remove(f"{NAME}-host-b")
    assert listed()["state"] == "half built"
    coloctl("down")
    assert listed() == {}


def test_a_lab_that_never_was_is_one_sentence_and_a_hint() -> None:
    for verb in ("show", "heal", "exec"):
        arguments = {"heal": ["client"], "exec": ["client", "true"]}.get(verb, [])
        done = coloctl(verb, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error:") and "coloctl lab up" in done.stderr
    assert not Path("/run/netns").exists() or not leftovers(NAME)
