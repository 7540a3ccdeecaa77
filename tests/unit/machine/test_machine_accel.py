"""Two measurements make a verdict; an open /dev/kvm alone never does."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from coloctl.machine import accel, probe_guest
from coloctl.machine.accel import Measurement, judge

pytestmark = pytest.mark.unit


def took(name: str, seconds: float | None, *, long_mode: bool = True, why: str = "") -> Measurement:
    return Measurement(name, long_mode, seconds, why)


TCG = took("tcg", 0.09)


@pytest.mark.parametrize(
    ("kvm", "tcg", "real"),
    [
        (took("kvm", 0.01), TCG, True),
        (took("kvm", 0.08), TCG, True),
        (took("kvm", 0.09), TCG, False),
        (took("kvm", 24.0), TCG, False),
        (took("kvm", 0.6), took("tcg", 0.9), False),
        (took("kvm", None, why="too slow"), TCG, False),
        (took("kvm", None, long_mode=False, why="/dev/kvm does not open"), TCG, False),
        (took("kvm", 0.01), took("tcg", None, why="built without TCG"), True),
        (took("kvm", None, why="too slow"), took("tcg", None), False),
    ],
)
def test_kvm_is_real_when_fast_and_faster(kvm: Measurement, tcg: Measurement, real: bool) -> None:
    verdict = judge(kvm, tcg)
    assert verdict.real is real
    assert verdict.accel == ("kvm" if real else "tcg")
    assert verdict.sentence.endswith(".")
    assert kvm.why_not in verdict.sentence


def test_a_disturbed_measurement_is_made_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM that finished but looked slower than TCG gets a second chance, and only one."""
    times = {"kvm": iter([0.12, 0.01]), "tcg": iter([0.09, 0.2])}
    monkeypatch.setattr(accel, "measure", lambda _, name, **__: took(name, next(times[name])))
    verdict = accel.prove(Path("qemu"))
    assert (verdict.real, verdict.kvm.loop_s, verdict.tcg.loop_s) == (True, 0.01, 0.09)


def test_a_kvm_that_was_late_to_start_is_measured_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy machine may load QEMU's libraries for longer than its deadline; KVM itself is late."""
    late = took("kvm", None, long_mode=False, why="no 64-bit mode within 15 s")
    measured = {"kvm": iter([late, took("kvm", 0.04)]), "tcg": iter([took("tcg", 1.9)])}
    monkeypatch.setattr(accel, "measure", lambda _, name, **__: next(measured[name]))
    assert accel.prove(Path("qemu")).accel == "kvm"
    measured = {"kvm": iter([late, late]), "tcg": iter([took("tcg", 1.9)])}
    monkeypatch.setattr(accel, "measure", lambda _, name, **__: next(measured[name]))
    assert accel.prove(Path("qemu")).accel == "tcg"


def test_kvm_that_does_not_open_is_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "kvm")
    measured = accel.measure(tmp_path / "never-started", "kvm")
    assert measured.loop_s is None
    assert str(tmp_path / "kvm") in measured.why_not


@pytest.mark.parametrize("body", ["exit 3", "echo words >&2; exit 1", "exec sleep 60"])
def test_a_program_that_is_no_qemu_is_told_and_ended(tmp_path: Path, body: str) -> None:
    binary = tmp_path / "qemu"
    binary.write_text(f"#!/bin/sh\n{body}\n")
    binary.chmod(0o755)
    measured = accel.measure(binary, "tcg", start_deadline_s=0.5)
    assert (measured.loop_s, measured.long_mode) == (None, False)
    assert measured.why_not


def test_the_image_is_a_rom_with_a_reset_vector() -> None:
    rom = probe_guest.rom(1234)
    assert len(rom) == probe_guest.ROM_SIZE
    opcode, offset, segment = struct.unpack_from("<BHH", rom, probe_guest.RESET_VECTOR)
    assert (opcode, offset, segment) == (0xEA, 0, 0xF000)
    assert rom.count(b"\xb9" + struct.pack("<I", 1234)) == 1
