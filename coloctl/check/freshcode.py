"""Build the fresh-code plugin for one QEMU, and try it in that very QEMU before it counts.

Called by `check.choose` when a lab is set up and by `cli.verbs.lab_goods`; compiles with
`lab.compiler`.

Invariant: a file has the name under which `machine.freshcode` looks for it only once a QEMU has
loaded it and called it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any, cast

from coloctl.errors import ProvisionError
from coloctl.lab import compiler
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import Progress, Report, silent
from coloctl.machine import freshcode

#: Loading QEMU from a cold disk and some hundred milliseconds of firmware, seconds.
TRIAL_DEADLINE_S = 60.0
#: Between two looks at what the firmware has translated so far, seconds.
LOOK_S = 0.1


def provide(binary: Path, *, report: Report = silent) -> Path:
    """Return the plugin for ``binary``, built and tried if it was not there.

    Raises `ProvisionError`: no compiler, a QEMU without what the plugin needs, a cache that others
    can write to.
    """
    if (found := freshcode.find(binary)) is not None:
        return found
    file = freshcode.place(binary)
    with exclusive(file.parent / "lock", "the fresh-code plugin", report):
        if (found := freshcode.find(binary)) is not None:
            return found
        try:
            _build(binary, file, report)
        except OSError as error:
            raise ProvisionError(
                f"The fresh-code plugin cannot be kept in {file.parent}: {error.strerror}.",
                hint="make room there, or set COLOCTL_CACHE_DIR to a folder of your own",
            ) from error
    if why := freshcode.distrust(file):
        raise ProvisionError(
            f"The fresh-code plugin is built and not trusted: {why}",
            hint="chmod go-w that folder, or set COLOCTL_CACHE_DIR to one of yours",
        )
    return file


def _build(binary: Path, file: Path, report: Report) -> None:
    """Compile the plugin, try it in ``binary``, and give it its name."""
    report(Progress("the fresh-code plugin: building it"))
    file.parent.chmod(0o755)  # with any umask
    with tempfile.TemporaryDirectory(prefix="building-", dir=file.parent) as folder:
        source, built = Path(folder) / "fresh-code.c", Path(folder) / file.name
        source.write_text(freshcode.source(), encoding="utf-8")
        compiler.shared_object(source, built, report=report)
        built.chmod(0o644)
        report(Progress("the fresh-code plugin: trying it in QEMU"))
        try_out(binary, built)
        with built.open("rb+") as written:
            os.fsync(written.fileno())  # half a plugin would keep every later pair from starting
        built.replace(file)


def try_out(binary: Path, plugin: Path) -> None:
    """Run firmware in ``binary`` with ``plugin`` loaded; raises `ProvisionError`.

    The firmware is stopped and continued until the plugin has reported pages it translated from:
    QEMU calls it at both places, and with the arguments that it expects.
    """
    with tempfile.TemporaryFile("w+") as errors:
        try:
            with _firmware(binary, plugin, errors) as qemu:
                try:
                    told = _stop_and_go(qemu, errors)
                finally:
                    # Also what stands behind a wrapper that did not become QEMU.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(qemu.pid, signal.SIGKILL)
                    # What was not read by a QEMU that has ended is no fault of this side.
                    with contextlib.suppress(BrokenPipeError):
                        cast(IO[str], qemu.stdin).close()
        except OSError as error:
            raise ProvisionError(f"{binary} cannot be executed: {error.strerror}.") from error
        if not told:
            raise ProvisionError(f"{binary} does not take the fresh-code plugin: {_last(errors)}")


def _firmware(binary: Path, plugin: Path, errors: IO[str]) -> subprocess.Popen[str]:
    """Run a QEMU with firmware alone, with its monitor on its standard input and output."""
    return subprocess.Popen(
        [
            str(binary),
            *("-no-user-config", "-nodefaults", "-display", "none", "-vga", "none"),
            *("-machine", "pc", "-accel", "tcg", "-m", "16M", "-net", "none"),
            *freshcode.arguments(plugin, always=True, log=True),
            *("-qmp", "stdio"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def _stop_and_go(qemu: subprocess.Popen[str], errors: IO[str]) -> bool:
    deadline = time.monotonic() + TRIAL_DEADLINE_S
    if not _say(qemu, "qmp_capabilities"):
        return False
    while time.monotonic() < deadline:
        if not (_say(qemu, "stop") and _say(qemu, "cont")):
            return False
        if any(pages for pages in _told(errors)):
            return True
        time.sleep(LOOK_S)
    return False


def _say(qemu: subprocess.Popen[str], command: str) -> bool:
    """Return whether QEMU answered; it has ended otherwise."""
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    try:
        qemu.stdin.write(json.dumps({"execute": command}) + "\n")
        qemu.stdin.flush()
    except OSError:
        return False
    for line in qemu.stdout:
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            return False
        if "return" in answer:
            return True
        if "error" in answer:
            return False
    return False


def _told(errors: IO[str]) -> list[int]:
    """Return the number of pages in each line of the plugin."""
    size = os.fstat(errors.fileno()).st_size
    text = os.pread(errors.fileno(), size, 0).decode(errors="replace")
    lines = [line for line in text.splitlines() if line.startswith("fresh-code: pages=")]
    return [int(line.split("=")[1].split()[0]) for line in lines]


def _last(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line for line in errors.read().splitlines() if not line.startswith("fresh-code:")]
    return lines[-1] if lines else "QEMU never called it."
