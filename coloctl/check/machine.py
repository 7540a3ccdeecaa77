"""Examine this machine as a place for any pair.

Called by `check.doctor`, `check.machine_there` and `cli.verbs.doctor`; asks the kernel through
`host.base` and `host.tap`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from coloctl import paths
from coloctl.check.finding import Precondition, Severity, guarded, of_check
from coloctl.check.probe import probe
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.host.tap import TUN_NODE
from coloctl.model.units import MIB

#: Builds of QEMU and the guest of the lab take about this much, bytes.
CACHE_BYTES = 2048 * MIB
#: One command that a check runs on a host, seconds.
COMMAND_DEADLINE_S = 10.0

SELF_STATUS = Path("/proc/self/status")
#: CAP_NET_ADMIN and CAP_SYS_ADMIN, bits 12 and 21 of linux/capability.h.
LAB_CAPABILITIES = 1 << 12 | 1 << 21
#: What a kernel may have that forbids user namespaces, and which value does not.
USER_NAMESPACES: Mapping[str, Callable[[str], bool]] = {
    "user/max_user_namespaces": lambda value: value != "0",
    "kernel/unprivileged_userns_clone": lambda value: value != "0",
    "kernel/apparmor_restrict_unprivileged_userns": lambda value: value != "1",
}


async def examine_machine(host: Host, qemu: Path | None) -> list[Precondition]:
    """Find all that is to report about this machine; ``qemu`` is the one on PATH, or None."""
    return [
        *await guarded("qemu", _qemu(host, qemu)),
        tun(),
        namespaces(),
        *await guarded("memory", _memory(host)),
        state_dir(),
        _cache(),
    ]


async def _qemu(host: Host, qemu: Path | None) -> list[Precondition]:
    """Check the machine's own QEMU, with the accelerator that ``auto`` would choose."""
    if qemu is None:
        sentence = "There is no qemu-system-x86_64 on PATH."
        hint = "apt-get install qemu-system-x86 qemu-utils, or `coloctl lab qemu`"
        return [Precondition("qemu", Severity.WARNING, sentence, hint)]
    report = await probe(qemu, "auto", "pc", host)
    # What is missing here can be fetched: nothing of it is an error before a pair asks for it.
    return [_softened(of_check(check)) for check in report.checks]


def _softened(finding: Precondition) -> Precondition:
    if finding.severity is not Severity.ERROR:
        return finding
    return Precondition(finding.name, Severity.WARNING, finding.sentence, finding.hint)


def tun(node: Path = Path(TUN_NODE)) -> Precondition:
    """Check whether QEMU could open taps."""
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hint = f"`modprobe tun`, and read and write access to {node}; a container must be given it"
        return Precondition(
            "tun", Severity.WARNING, f"{node} does not open: {error.strerror}.", hint
        )
    return Precondition("tun", Severity.OK, f"{node} opens.")


def namespaces(sysctl: Path = Path("/proc/sys"), status: Path = SELF_STATUS) -> Precondition:
    """Check whether the lab could be built: with root's capabilities, or in a user namespace."""
    if _capabilities(status) & LAB_CAPABILITIES == LAB_CAPABILITIES:
        return Precondition("namespaces", Severity.OK, "Network namespaces can be made as root.")
    for knob, wanted in USER_NAMESPACES.items():
        value = _read(sysctl / knob)
        if value is not None and not wanted(value):
            return Precondition(
                "namespaces",
                Severity.WARNING,
                f"User namespaces are not allowed: {knob.replace('/', '.')} is {value}.",
                "the lab and the demo need them, or root",
            )
    sentence = "Network namespaces can be made in a user namespace, without root."
    return Precondition("namespaces", Severity.OK, sentence)


def _capabilities(status: Path) -> int:
    """Return the effective capabilities of this process, as the kernel's bit mask."""
    for line in (_read(status) or "").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


async def available_mib(host: Host) -> int:
    """Return the memory that could be used now without swapping, MiB, by ``host``'s kernel.

    Raises `PreconditionFailed` when /proc/meminfo does not have it.
    """
    done = await host.run(["cat", "/proc/meminfo"], deadline_s=COMMAND_DEADLINE_S)
    for line in done.stdout.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise PreconditionFailed(f"{host.name} does not say how much memory is available.")


async def _memory(host: Host) -> list[Precondition]:
    sentence = (
        f"{await available_mib(host)} MiB are available; "
        "a pair on one machine may need three times its guest's memory."
    )
    return [Precondition("memory", Severity.INFO, sentence)]


def state_dir() -> Precondition:
    """Check whether pairs can keep their state here."""
    try:
        folder = paths.state_dir()
    except PreconditionFailed as error:
        return Precondition("state", Severity.ERROR, error.message, error.hint or "")
    if (problem := unusable(folder)) is not None:
        return Precondition(
            "state", Severity.ERROR, problem, "set COLOCTL_STATE_DIR to a folder of yours"
        )
    return Precondition("state", Severity.OK, f"Pairs keep their state in {folder}.")


def _cache() -> Precondition:
    try:
        folder = paths.cache_dir()
    except PreconditionFailed as error:
        return Precondition("cache", Severity.ERROR, error.message, error.hint or "")
    if (problem := unusable(folder)) is not None:
        hint = "set COLOCTL_CACHE_DIR to a folder of yours"
        return Precondition("cache", Severity.WARNING, problem, hint)
    free = shutil.disk_usage(_existing(folder)).free
    if free < CACHE_BYTES:
        sentence = f"{folder} has {free // MIB} MiB left; builds of QEMU need {CACHE_BYTES // MIB}."
        return Precondition(
            "cache", Severity.WARNING, sentence, "make room, or set COLOCTL_CACHE_DIR"
        )
    return Precondition("cache", Severity.OK, f"Downloads and verdicts go to {folder}.")


def unusable(folder: Path) -> str | None:
    """Return why this user cannot keep files in ``folder``, which need not exist yet; or None."""
    there = _existing(folder)
    if not there.is_dir():
        return f"{there} is not a folder."
    if folder.exists() and folder.stat().st_uid != os.geteuid():
        return f"{folder} belongs to user id {folder.stat().st_uid}, not to you."
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written to."
    return None


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.exists())
