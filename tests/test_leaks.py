"""The check at the end of a run finds what was left, spares the neighbours, and tidies up."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.leaks import Run, begun

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    for name in ("netns", "devices"):
        (tmp_path / name).mkdir()
    (tmp_path / "netns/was-there").touch()
    # Processes are told apart by the folder's name, and another worker may be in this file as well.
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=tmp_path))
    run = Run(folder, tmp_path / "netns", tmp_path / "devices")
    yield run
    run.sweep()


def test_a_clean_run_has_no_leaks(run: Run) -> None:
    run.state.mkdir()
    assert run.leaks(0) == []


def test_a_process_is_found_and_ended(run: Run) -> None:
    environment = {**os.environ, **run.environment()}
    with subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True) as process:
        left = f"process {process.pid} still runs: sleep 60"
        while run.leaks(0) != [left]:  # a program that has just begun may not show its environment
            assert process.poll() is None
        run.sweep()
    assert process.returncode == -9
    assert not run.folder.exists()


def test_a_process_on_its_way_out_gets_its_time(run: Run) -> None:
    environment = {**os.environ, **run.environment()}
    with subprocess.Popen(["sleep", "0.2"], env=environment):
        assert run.leaks(30) == []


def test_a_neighbours_process_is_left_alone(run: Run) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert run.leaks(0) == []
        run.sweep()
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize("file", ["tmp/leftover", "state/pair"])
def test_a_file_is_found(run: Run, file: str) -> None:
    run.state.mkdir()
    (run.folder / file).touch()
    assert run.leaks(0) == [f"{run.folder / file} is still there"]


def test_what_is_left_is_blamed_on_the_test_that_made_it(run: Run) -> None:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")  # no finer is what the kernel tells
    environment = {**os.environ, **run.environment()}
    file = run.temporary / "leftover"
    run.tests.append(begun("test_guilty"))
    time.sleep(tick_s)
    file.touch()
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        time.sleep(2 * tick_s)
        run.tests.append(begun("test_innocent"))
        left = [
            f"process {process.pid} still runs: sleep 60 (began in test_guilty)",
            f"{file} is still there (last changed in test_guilty)",
        ]
        while run.leaks(0) != left:  # a program that has just begun may not show its environment
            assert process.poll() is None
        run.sweep()


def test_a_namespace_is_found_unless_somebody_else_made_it(run: Run) -> None:
    for name in ("host-a", f"t{os.getpid()}-lan", f"t{os.getppid()}-lan", "t999999999-lan"):
        (run.netns / name).touch()
    ours = (f"t{os.getpid()}-lan", "t999999999-lan")
    assert run.leaks(0) == [f"network namespace {name} is still there" for name in sorted(ours)]


def test_the_emptied_folder_of_namespaces_is_found(run: Run) -> None:
    (run.netns / "was-there").unlink()
    assert run.leaks(0) == [f"{run.netns} is still there, though empty"]


def test_a_tap_is_found_and_other_devices_are_not(run: Run) -> None:
    for name in ("eth0", "tap-a"):
        (run.devices / name).mkdir()
    (run.devices / "tap-a/tun_flags").touch()
    assert run.leaks(0) == ["tap tap-a is still there"]


def test_the_taps_of_others_are_theirs(run: Run) -> None:
    """A virtual machine manager or another run makes taps while tests run, and takes them away."""
    ours = (f"t{os.getpid()}-tap", "t999999999-tap")
    for name in ("tap0", "vnet3", "tun0", "tap-web", f"t{os.getppid()}-tap", *ours):
        (run.devices / name).mkdir()
        (run.devices / name / "tun_flags").touch()
    assert run.leaks(0) == [f"tap {name} is still there" for name in sorted(ours)]
