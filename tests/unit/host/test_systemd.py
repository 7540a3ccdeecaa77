"""A unit that cannot be had has a reason; `tests/guest/test_systemd_units.py` has a systemd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloctl.host import systemd
from coloctl.model.launch import Unit

WEB = Unit.of_node("web", "a", 1024)


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``busctl`` that fails with the text of a file, and writes down what it was asked."""
    script = tmp_path / "busctl"
    script.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ncat {tmp_path}/says >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(systemd, "BOOTED", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


@pytest.fixture
def pid() -> Iterator[int]:
    """A process without children."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def test_a_limit_without_systemd_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "BOOTED", tmp_path / "none")
    assert systemd.place(os.getpid(), Unit.of_node("web", "a", None)) == ""
    limited = "systemd does not run here, so guest.memory_max limits nothing"
    assert systemd.place(os.getpid(), WEB) == limited


def test_a_refusal_is_returned(bus: Path, pid: int) -> None:
    (bus / "says").write_text("Call failed: Access denied\n")
    assert systemd.place(pid, WEB) == "Call failed: Access denied"
    (asked,) = (bus / "asked").read_text().splitlines()
    assert f"coloctl-web-a.scope fail 8 PIDs au 1 {pid}" in asked
    assert asked.endswith(" 0") and f"MemoryMax t {1 << 30}" in asked


def test_a_name_that_is_taken_gets_the_number_of_the_process(bus: Path, pid: int) -> None:
    (bus / "says").write_text("Call failed: Unit coloctl-web-a.scope was already loaded.\n")
    systemd.place(pid, WEB)
    first, second = (bus / "asked").read_text().splitlines()
    assert " coloctl-web-a.scope " in first
    assert f" coloctl-web-a-{pid}.scope " in second
