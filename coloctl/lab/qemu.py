"""Provide QEMU builds with COLO, side by side: the system's own and those of Debian's releases.

Called by `check.choose`, `cli.host_qemu`, `cli.verbs.lab_goods` and `cli.verbs.probe`, and by
`lab.compiler` for its libraries; downloads with `lab.apt`. A build is a package with its whole
dependency closure in a private folder. Its programs start through the C library of that folder, so
nothing has to fit the machine underneath.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from coloctl.errors import ProvisionError, UnsupportedQEMU, UsageError
from coloctl.lab import apt
from coloctl.lab.lock import exclusive
from coloctl.lab.progress import Progress, Report, silent
from coloctl.paths import cache_dir
from coloctl.reading import read_json

NAMES = ("system", "7.2", "10.0", "11.1")

#: Which Debian suite carries which build. A suite moves on: `Build.version` says what really runs.
SUITES = {"7.2": "bookworm", "10.0": "trixie", "11.1": "trixie-backports"}

#: The newest build comes to help where the system's cannot hold COLO.
FALLBACK = "11.1"

#: quorum, replication and nbd are built into these; firmware and option ROMs come as dependencies.
PACKAGES = ("qemu-system-x86", "qemu-utils")

SYSTEM_EMULATOR = "qemu-system-x86_64"
PROGRAMS = (SYSTEM_EMULATOR, "qemu-img", "qemu-io")

#: Relative to a build's root. Debian 12 still has libraries outside /usr.
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
MODULES = "usr/lib/x86_64-linux-gnu/qemu"
FIRMWARE = ("usr/share/seabios", "usr/share/qemu", "usr/lib/ipxe/qemu")

#: Grows when builds of an older coloctl have to be made again.
RECIPE = 1

#: A program that only prints its version; a cold disk is the slow case.
_VERSION_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Build:
    """A QEMU that runs here: ``binary`` behaves as qemu-system-x86_64, ``img`` as qemu-img."""

    name: str
    suite: str
    binary: Path
    img: Path
    version: str


def find(name: str) -> Build | None:
    """Find the build of that name; None unless it is here and whole. Nothing is downloaded.

    Raises `UsageError` for a name that is not one of `NAMES`.
    """
    return _find_system() if name == "system" else _find_stored(name)


def provide(name: str, *, report: Report = silent) -> Build:
    """Provide the build of that name, downloaded and unpacked if need be.

    A stored build that lost a file is made again. Raises `ProvisionError`, and `UsageError` for a
    name that no build has.
    """
    if build := find(name):
        return build
    if name == "system":
        raise ProvisionError(
            "There is no qemu-system-x86_64 with its qemu-img on PATH.",
            hint="apt-get install qemu-system-x86 qemu-utils",
        )
    _check_machine(name)
    with exclusive(_home(name).with_suffix(f"{_home(name).suffix}.lock"), f"QEMU {name}", report):
        if build := find(name):
            return build
        _build(name, report)
    if build := find(name):
        return build
    raise ProvisionError(f"QEMU {name} vanished from {_home(name)} as soon as it was there.")


def pack(build: Build, home: Path, target: IO[bytes]) -> None:
    """Write a stored build as a compressed archive whose programs run below ``home`` elsewhere."""
    own = _home(build.name)
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as archive:
        archive.add(own / "root", "root")
        for program in PROGRAMS:
            script = _wrapper(own, home, program).encode()
            entry = tarfile.TarInfo(f"bin/{program}")
            entry.mode, entry.size = 0o755, len(script)
            archive.addfile(entry, io.BytesIO(script))


def choose(
    works: Callable[[Build, str], bool], accels: Sequence[str], *, report: Report = silent
) -> tuple[Build, str]:
    """Choose the first build and accelerator that hold COLO by ``works``: the system's first.

    Raises `UnsupportedQEMU` when none does, `ProvisionError` when a build cannot be fetched.
    """
    for name in ("system", FALLBACK):
        build = find(name) if name == "system" else provide(name, report=report)
        if build is None:
            continue
        for accel in accels:
            report(Progress(f"QEMU {build.version} ({name}), {accel}: does it hold COLO?"))
            if works(build, accel):
                return build, accel
    raise UnsupportedQEMU(
        f"Neither this machine's QEMU nor {FALLBACK} holds COLO here with {' or '.join(accels)}.",
        missing=tuple(accels),
        hint="coloctl probe --full says what fails",
    )


def _home(name: str) -> Path:
    if name not in SUITES:
        raise UsageError(
            f"There is no QEMU build named {name!r}.", hint=f"one of: {', '.join(NAMES)}"
        )
    return cache_dir().absolute() / "qemu" / name


def _check_machine(name: str) -> None:
    if platform.machine() != "x86_64":
        raise ProvisionError(
            f"QEMU {name} is fetched as a build for x86_64, and this machine is "
            f"{platform.machine()}.",
            hint="install a QEMU with COLO yourself",
        )
    if ":" in str(_home(name)):
        raise ProvisionError(
            f"{_home(name)} has a colon in it, which the library path of a program cannot hold.",
            hint="set COLOCTL_CACHE_DIR to a folder without one",
        )


def _find_system() -> Build | None:
    binary, img = shutil.which(SYSTEM_EMULATOR), shutil.which("qemu-img")
    if binary is None or img is None:
        return None
    try:
        version = _version(Path(binary))
    except ProvisionError:
        return None
    return Build("system", "system", Path(binary), Path(img), version)


def _find_stored(name: str) -> Build | None:
    home = _home(name)
    try:
        record: dict[str, Any] = read_json((home / "build.json").read_text())
    except (OSError, ValueError):
        return None
    # Everything is compared by size, since running the program costs far more than looking.
    if record.get("recipe") != RECIPE or record.get("home") != str(home):
        return None
    for file, size in record["files"].items():
        try:
            if os.lstat(f"{home}/{file}").st_size != size:
                return None
        except OSError:
            return None
    programs = home / "bin"
    return Build(
        name, SUITES[name], programs / SYSTEM_EMULATOR, programs / "qemu-img", record["version"]
    )


def _build(name: str, report: Report) -> None:
    """Make the build's folder appear whole, or not at all."""
    home, suite = _home(name), SUITES[name]
    debs = apt.fetch(suite, PACKAGES, report=report)
    staging = home.with_name(f"{name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        apt.unpack(debs, staging / "root", report=report)
        report(Progress(f"QEMU {name}: trying it out"))
        _write_programs(staging, staging)
        version = _version(staging / "bin" / SYSTEM_EMULATOR)
        _version(staging / "bin" / "qemu-img")
        _write_programs(staging, home)
        record = {
            "recipe": RECIPE,
            "home": str(home),
            "version": version,
            "packages": [deb.name for deb in debs],
            "files": dict(_sizes(staging)),
        }
        (staging / "build.json").write_text(json.dumps(record, indent=1))
        shutil.rmtree(home, ignore_errors=True)
        staging.rename(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    apt.discard(debs)


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for where, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(where, file)  # noqa: PTH118  # thousands of them
            yield os.path.relpath(path, folder), os.lstat(path).st_size


def _write_programs(folder: Path, home: Path) -> None:
    """Write ``folder``/bin, which starts the programs of the build that is, or will be, at
    ``home``.
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for program in PROGRAMS:
        script = programs / program
        script.write_text(_wrapper(folder, home, program))
        script.chmod(0o755)


def _wrapper(folder: Path, home: Path, program: str) -> str:
    """Build a shell script that becomes ``program``: the process keeps the id that was started."""
    root = home / "root"
    loader = next(
        (
            root / where / "ld-linux-x86-64.so.2"
            for where in LIBRARIES
            if (folder / "root" / where / "ld-linux-x86-64.so.2").is_file()
        ),
        None,
    )
    if loader is None:
        raise ProvisionError("The C library is missing among the packages that were fetched.")
    command = [str(loader), "--argv0", program]
    # The machine's own library cache would mix its libraries with ours.
    command += ["--inhibit-cache", "--library-path"]
    command += [":".join(str(root / where) for where in LIBRARIES), str(root / "usr/bin" / program)]
    if program == SYSTEM_EMULATOR:
        for where in FIRMWARE:
            command += ["-L", str(root / where)]
    return (
        "#!/bin/sh\n"
        f"export QEMU_MODULE_DIR={shlex.quote(str(root / MODULES))}\n"
        f'exec {shlex.join(command)} "$@"\n'
    )


def _version(program: Path) -> str:
    """Ask ``program`` for its version; raises `ProvisionError` when it does not run."""
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSION_DEADLINE_S,
            check=False,
        )
        said, complaint = done.stdout, done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said, complaint = "", str(error)
    match = re.search(r"version (\d+(?:\.\d+)+)", said)
    if match is None:
        reason = (complaint.splitlines() or ["it prints no version"])[-1]
        raise ProvisionError(f"{program} does not run here: {reason}")
    return match[1]
