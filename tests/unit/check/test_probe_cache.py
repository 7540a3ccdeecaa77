"""A remembered verdict is found again until something that it depends on changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coloctl import probe_cache
from coloctl.check import trial
from coloctl.check.verdict import ColoSupport, Direction, FullVerdict
from coloctl.model.pair import Role

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "qemu-system-x86_64"
    path.write_bytes(b"\x7fELF" + b"x" * 100)
    return path


def verdict(binary: Path, outcome: ColoSupport = ColoSupport.WORKS) -> FullVerdict:
    direction = Direction(Role.PRIMARY, outcome, "verified", "It lived on.", 5, 4.5, 12.0)
    return FullVerdict(
        str(binary), "11.1.3", "tcg", "pc", outcome, "It works.", directions=(direction,)
    )


def test_a_verdict_survives_json(binary: Path) -> None:
    probe_cache.remember("key", verdict(binary).to_json())
    known = probe_cache.recall("key")
    assert known is not None
    assert FullVerdict.from_json(known) == verdict(binary)


def test_nothing_is_recalled_of_the_unknown_and_the_torn(cache: Path) -> None:
    assert probe_cache.recall("absent") is None
    probe_cache.remember("torn", {"a": 1})
    (cache / "probe" / "torn.json").write_text('{"binary":')
    assert probe_cache.recall("torn") is None


def test_accelerator_machine_and_boot_have_verdicts_of_their_own(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {
        probe_cache.key(binary, accel, machine)
        for accel in ("kvm", "tcg")
        for machine in ("pc", "q35")
    }
    assert len(keys) == 4
    assert probe_cache.key(binary, "tcg", "pc") in keys
    other_boot = tmp_path / "boot_id"
    other_boot.write_text("another\n")
    monkeypatch.setattr(probe_cache, "BOOT_ID", other_boot)
    assert probe_cache.key(binary, "tcg", "pc") not in keys


def test_a_changed_binary_has_no_verdict_yet(binary: Path) -> None:
    before = probe_cache.key(binary, "tcg", "pc")
    status = binary.stat()
    os.utime(binary, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert probe_cache.key(binary, "tcg", "pc") != before


def test_a_script_changes_with_what_it_wraps(binary: Path, tmp_path: Path) -> None:
    script = tmp_path / "wrapper"
    script.write_text(f"#!/bin/sh\nexport X='{tmp_path}/absent'\nexec {binary} \"$@\"\n")
    before = probe_cache.key(script, "tcg", "pc")
    assert probe_cache.key(script, "tcg", "pc") == before
    binary.write_bytes(b"\x7fELF" + b"y" * 101)
    assert probe_cache.key(script, "tcg", "pc") != before


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "file"))
    probe_cache.remember("key", {})
    assert probe_cache.recall("key") is None


class Trials:
    """Stands for `try_out`: answers with the outcomes given, and counts."""

    def __init__(self, *outcomes: ColoSupport) -> None:
        self.outcomes = list(outcomes)

    async def __call__(self, binary: Path, *_: object, **__: object) -> FullVerdict:
        return verdict(binary, self.outcomes.pop(0))


def test_the_second_answer_is_remembered(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "try_out", Trials(ColoSupport.WORKS, ColoSupport.FAILS))
    first, second = trial.holds_colo(binary, "tcg"), trial.holds_colo(binary, "tcg")
    assert first == second
    assert (first.remembered, second.remembered) == (False, True)
    assert trial.holds_colo(binary, "tcg", fresh=True).outcome is ColoSupport.FAILS
    assert trial.holds_colo(binary, "tcg").outcome is ColoSupport.FAILS


def test_what_could_not_be_found_out_is_tried_again(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "try_out", Trials(ColoSupport.UNKNOWN, ColoSupport.WORKS))
    assert trial.holds_colo(binary, "tcg").outcome is ColoSupport.UNKNOWN
    assert trial.holds_colo(binary, "tcg").works


def test_a_verdict_of_another_form_is_tried_again(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_cache.remember(probe_cache.key(binary, "tcg", "pc"), {"outcome": "works"})
    monkeypatch.setattr(trial, "try_out", Trials(ColoSupport.FAILS))
    assert trial.holds_colo(binary, "tcg").outcome is ColoSupport.FAILS
