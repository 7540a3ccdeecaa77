"""Entering a world of one's own: when it is needed, and how a refusal reads."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from coloctl.errors import LabError, UsageError
from coloctl.lab import rootless, userns

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOSPC])
def test_a_system_without_user_namespaces_is_explained(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(userns, "call", refuse)
    monkeypatch.setattr(userns, "_check_single_thread", lambda: None)
    with pytest.raises(LabError, match="user namespace") as refused:
        userns.found()
    assert refused.value.hint is not None
    assert "user.max_user_namespaces" in refused.value.hint


def test_a_second_thread_is_refused_before_anything_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(userns, "call", pytest.fail)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(LabError, match="thread"):
            userns.found()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("euid", "mark", "needed"), [(0, "", False), (1000, "", True), (1000, "1", False)]
)
def test_only_an_ordinary_user_outside_needs_a_world(
    monkeypatch: pytest.MonkeyPatch, euid: int, mark: str, needed: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setenv(rootless.MARK, mark)
    assert rootless.needed() is needed


def test_where_nothing_is_needed_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv(rootless.MARK, raising=False)
    monkeypatch.setattr(userns, "found", pytest.fail)
    monkeypatch.setattr(userns, "move_into", pytest.fail)
    rootless.enter()
    assert rootless.join("lab")
    rootless.hold("lab")
    rootless.release("lab")
    assert rootless.held() == []
    assert list(tmp_path.iterdir()) == []


def test_a_bad_lab_name_never_becomes_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="name of a lab"):
        rootless.release("../../etc/passwd")
