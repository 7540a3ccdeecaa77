"""Measure what an accelerator is worth: ``/dev/kvm`` may open and still emulate all that it runs.

Run as a program by `colo.inspect` on the machine that it measures; called by `check.choose` for
this one. It runs the guest of `machine.probe_guest`. On hosts without vmx and svm KVM was seen to
take 24 s for a loop that TCG finishes in 0.1 s; an ordinary guest seems to hang there.

Invariant: KVM counts as real only when that guest runs at hardware speed, and faster than under TCG
at the same time on the same machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from coloctl import procfs
from coloctl.machine import probe_guest

#: Hardware takes 0.01 s; a host busy with other work has been seen to double and treble that.
REAL_KVM_S = 0.5
#: By then KVM is not real, and how long it would take does not matter.
KVM_LOOP_DEADLINE_S = 1.0
LOOP_DEADLINE_S = 5.0
#: Loading QEMU's libraries from a cold disk was seen to take seconds.
START_DEADLINE_S = 15.0

#: Of the program: TCG measured twice and KVM three times, each QEMU at its deadlines and ended.
PROVE_DEADLINE_S = 5 * (START_DEADLINE_S + LOOP_DEADLINE_S) + 10

#: From the end of QEMU's output to the end of its process.
EXIT_GRACE_S = 1.0

KVM_DEVICE = Path("/dev/kvm")

_NOT_STARTED = "no 64-bit mode within"


@dataclass(frozen=True)
class Measurement:
    """One run of the loop. ``loop_s`` is None when it did not finish, and ``why_not`` says why."""

    accel: str
    long_mode: bool  #: the guest reached 64-bit mode
    loop_s: float | None  #: seconds from the first instruction in 64-bit mode to the last turn
    why_not: str = ""
    turns: int = probe_guest.TURNS


@dataclass(frozen=True)
class KvmTrial:
    """Both measurements: whether KVM runs code on this machine, with the sentence for it."""

    kvm: Measurement
    tcg: Measurement
    real: bool
    sentence: str

    @property
    def accel(self) -> str:
        """The accelerator that ``auto`` stands for."""
        return "kvm" if self.real else "tcg"


#: Runs in a child before it becomes QEMU.
Before = Callable[[], None]


def prove(binary: Path, before: Before | None = None) -> KvmTrial:
    """Measure KVM and TCG one after the other, which blocks for a second or two.

    When KVM finishes but TCG seems to be faster, another process had the CPU: both are measured
    once more, and the shorter time of each counts. A KVM that was late to start is measured again:
    seen once in a busy machine under TCG, in which KVM is real (AMD-V, emulated).
    """
    tcg = measure(binary, "tcg", before=before)
    kvm = measure(binary, "kvm", loop_deadline_s=KVM_LOOP_DEADLINE_S, before=before)
    if kvm.why_not.startswith(_NOT_STARTED):
        kvm = measure(binary, "kvm", loop_deadline_s=KVM_LOOP_DEADLINE_S, before=before)
    first = judge(kvm, tcg)
    if first.real or kvm.loop_s is None:
        return first
    again = measure(binary, "kvm", loop_deadline_s=KVM_LOOP_DEADLINE_S, before=before)
    return judge(_shorter(kvm, again), _shorter(tcg, measure(binary, "tcg", before=before)))


def judge(kvm: Measurement, tcg: Measurement) -> KvmTrial:
    """Compare two measurements, and conclude whether KVM is real; pure."""
    if not kvm.long_mode:
        return KvmTrial(kvm, tcg, False, f"KVM does not run guests here: {kvm.why_not}.")
    beside = "" if tcg.loop_s is None else f", {tcg.loop_s:.3f} s under TCG"
    if kvm.loop_s is None:
        sentence = f"KVM opens here but does not run at hardware speed: {kvm.why_not}{beside}."
        return KvmTrial(kvm, tcg, False, sentence)
    times = f"{kvm.turns} loop turns took {kvm.loop_s:.3f} s under KVM{beside}"
    if kvm.loop_s >= REAL_KVM_S or (tcg.loop_s is not None and kvm.loop_s >= tcg.loop_s):
        sentence = f"KVM opens here but does not run at hardware speed: {times}."
        return KvmTrial(kvm, tcg, False, sentence)
    return KvmTrial(kvm, tcg, True, f"KVM runs guests at hardware speed: {times}.")


def measure(
    binary: Path,
    accel: str,
    *,
    start_deadline_s: float = START_DEADLINE_S,
    loop_deadline_s: float = LOOP_DEADLINE_S,
    before: Before | None = None,
) -> Measurement:
    """Measure how long the counted loop takes; its QEMU has ended on return, also after an error.

    Blocks for at most the two deadlines: until 64-bit mode, and from there to the last turn.
    """
    if accel == "kvm" and (why_not := kvm_closed()):
        return Measurement(accel, long_mode=False, loop_s=None, why_not=why_not)
    with tempfile.TemporaryDirectory(prefix="coloctl-loop-") as folder, _errors(folder) as errors:
        image = Path(folder) / "loop.rom"
        image.write_bytes(probe_guest.rom())
        try:
            qemu = subprocess.Popen(
                arguments(binary, accel, image),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                preexec_fn=before,  # noqa: PLW1509 - None, or in a program with one thread
            )
        except OSError as error:
            why_not = f"{binary} cannot be executed: {error.strerror}"
            return Measurement(accel, long_mode=False, loop_s=None, why_not=why_not)
        with qemu:
            try:
                return _time(qemu, accel, errors, start_deadline_s, loop_deadline_s)
            finally:
                _end(qemu)


def _end(qemu: subprocess.Popen[bytes]) -> None:
    """Kill the QEMU, also where ``qemu`` is a wrapper and QEMU another process.

    QEMU is not reaped yet, so that it still has its session, and a process that writes to our pipe
    belongs to it.
    """
    assert qemu.stdout is not None
    qemu.kill()
    procfs.end(qemu.pid, [f"pipe:[{os.fstat(qemu.stdout.fileno()).st_ino}]"])


def arguments(binary: Path, accel: str, image: Path) -> list[str]:
    """Build the command line of a QEMU that runs ``image`` in place of its firmware."""
    return [
        str(binary),
        *("-no-user-config", "-nodefaults", "-display", "none", "-vga", "none", "-net", "none"),
        *("-machine", "pc", "-accel", accel, "-cpu", "qemu64", "-m", "16M"),
        *("-bios", str(image)),
        *("-chardev", "stdio,id=console0,signal=off"),
        *("-device", f"isa-debugcon,iobase={probe_guest.CONSOLE_PORT:#x},chardev=console0"),
        *("-device", f"isa-debug-exit,iobase={probe_guest.EXIT_PORT:#x},iosize=4"),
        # A guest that faults ends its QEMU instead of starting over for ever.
        "-no-reboot",
    ]


def kvm_closed() -> str:
    """Explain why this user cannot open ``/dev/kvm``; return "" when it opens.

    That it opens proves no speed yet.
    """
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{KVM_DEVICE} does not open ({error.strerror})"
    return ""


def _shorter(one: Measurement, two: Measurement) -> Measurement:
    finished = [each for each in (one, two) if each.loop_s is not None]
    return min(finished, key=lambda each: each.loop_s or 0.0, default=one)


def _errors(folder: str) -> IO[bytes]:
    return (Path(folder) / "stderr").open("w+b")


def _time(
    qemu: subprocess.Popen[bytes],
    accel: str,
    errors: IO[bytes],
    start_deadline_s: float,
    loop_deadline_s: float,
) -> Measurement:
    entered = _read_byte(qemu, start_deadline_s)
    if entered != probe_guest.ENTERED:
        late = f"{_NOT_STARTED} {start_deadline_s:g} s"
        why_not = late if entered is None else _last_words(qemu, errors)
        return Measurement(accel, long_mode=False, loop_s=None, why_not=why_not)
    began = time.monotonic()
    finished = _read_byte(qemu, loop_deadline_s)
    if finished != probe_guest.FINISHED:
        late = f"{probe_guest.TURNS} loop turns need more than {loop_deadline_s:g} s"
        why_not = late if finished is None else _last_words(qemu, errors)
        return Measurement(accel, long_mode=True, loop_s=None, why_not=why_not)
    return Measurement(accel, long_mode=True, loop_s=time.monotonic() - began)


def _read_byte(qemu: subprocess.Popen[bytes], deadline_s: float) -> bytes | None:
    """Read the next byte of the debug console: None at the deadline, empty when QEMU has ended."""
    assert qemu.stdout is not None
    with selectors.DefaultSelector() as ready:
        ready.register(qemu.stdout, selectors.EVENT_READ)
        if not ready.select(deadline_s):
            return None
    return os.read(qemu.stdout.fileno(), 1)


def _last_words(qemu: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """Return the last line of QEMU's output, which ended before that of its guest."""
    try:
        ended = f"QEMU ended with exit code {qemu.wait(EXIT_GRACE_S)}"
    except subprocess.TimeoutExpired:
        ended = "QEMU closed its console"
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1].rstrip(".") if lines else ended


def _die_with_parent() -> None:
    """Let the kernel kill this child when the program that measures is killed (prctl(2))."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main(binary: Path, wanted: str, folder: str) -> None:
    """Print one line of JSON: the `Measurement` of TCG, or for ``auto`` the `KvmTrial`.

    Files are made in ``folder``, which the caller removes also where it kills this program.
    """
    tempfile.tempdir = folder
    found = (
        measure(binary, wanted, before=_die_with_parent)
        if wanted == "tcg"
        else prove(binary, _die_with_parent)
    )
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
