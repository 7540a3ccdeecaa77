"""Choose a QEMU that holds COLO here, its accelerator, and the lab's guest; fetch what is missing.

Called by `chaos.run.runner`, `cli.verbs.bench` and `cli.verbs.probe`; tries binaries with
`check.trial` and fetches them with `lab.qemu`.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from coloctl import probe_cache
from coloctl.check import freshcode
from coloctl.check.trial import holds_colo
from coloctl.colo.known_bugs import Combination
from coloctl.errors import ProvisionError, UnsupportedQEMU, UsageError
from coloctl.host import open_host
from coloctl.lab import guest as guests
from coloctl.lab import qemu as qemus
from coloctl.lab.guest import GuestImage
from coloctl.lab.progress import Progress, Report, silent
from coloctl.lab.qemu import Build
from coloctl.machine import accel as accelerators
from coloctl.vm import inspect


class RunParts(NamedTuple):
    """A binary, an accelerator under which it holds COLO, and a guest."""

    qemu: Path
    accel: str
    guest: GuestImage


def engage(qemu: str | None = None, report: Report = silent) -> RunParts:
    """Provide binary, accelerator and guest; what is missing is fetched or built.

    Raises `UnsupportedQEMU` when the QEMU that was asked for does not hold COLO.
    """
    binary, accel = choose(qemu, report)
    return RunParts(binary, accel, lab_guest(report))


def choose(qemu: str | None, report: Report = silent) -> tuple[Path, str]:
    """Choose a QEMU by name or path, or else the best one here, and its accelerator.

    Raises `UnsupportedQEMU` when the named one cannot hold a COLO pair here.
    """
    if qemu is None:
        choice = choose_qemu(report)
        return choice.build.binary, choice.accel
    binary = named_qemu(qemu)
    accel = usable_accelerators(report)[0][0]
    trial = holds_colo(binary, accel)
    if not trial.works:
        raise UnsupportedQEMU(trial.sentence, hint="`coloctl probe --full` shows more")
    fresh_code(binary, accel, report)
    return binary, accel


@dataclass(frozen=True)
class WorkingQemu:
    """A QEMU with an accelerator that holds COLO on this machine."""

    build: Build
    accel: str
    why: str
    passed_over: tuple[str, ...] = field(default=())  #: a sentence for each that was tried before
    accelerators: str = ""  #: a sentence on what KVM is worth here
    fresh_code: str = ""  #: the sentence on the plugin that TCG needs; empty under KVM


def choose_qemu(report: Report = silent) -> WorkingQemu:
    """Choose the system's QEMU where a trial shows that it holds COLO, or else the newest build.

    The result is remembered until the machine boots again. Raises `UnsupportedQEMU` when no QEMU
    holds COLO, `ProvisionError` when the build cannot be fetched.
    """
    verdict: dict[str, str] = {}
    passed_over: list[str] = []

    def works(build: Build, accel: str) -> bool:
        trial = holds_colo(build.binary, accel)
        verdict["why"] = trial.sentence
        if not trial.works:
            passed_over.append(f"{called(build)} under {accel}: {trial.sentence}")
        return trial.works

    accels, sentence = usable_accelerators(report)
    build, accel = qemus.choose(works, accels, report=report)
    fresh = fresh_code(build.binary, accel, report)
    return WorkingQemu(build, accel, verdict["why"], tuple(passed_over), sentence, fresh)


def fresh_code(binary: Path, accel: str, report: Report = silent) -> str:
    """Build the fresh-code plugin where ``accel`` needs it; return a sentence on the result.

    A pair runs without it too, and then reports what that means.
    """
    if accel != "tcg":
        return ""
    try:
        return f"The fresh-code plugin is in force: {freshcode.provide(binary, report=report)}."
    except ProvisionError as error:
        return f"The fresh-code plugin is not in force: {error.message}"


def fresh_code_of(build: Build, report: Report = silent) -> None:
    """Build the plugin for ``build`` where its pairs would run under TCG on this machine."""
    accels, _ = usable_accelerators(report)
    # A program that does not answer as QEMU is reported when a pair starts in it.
    with contextlib.suppress(UnsupportedQEMU):
        if accels[0] == "tcg" and asyncio.run(_holds_colo_under_tcg(build.binary)):
            fresh_code(build.binary, "tcg", report)


async def _holds_colo_under_tcg(binary: Path) -> bool:
    """Return whether no known bug refuses TCG before stale code could matter; no trial is made."""
    host = open_host("local")
    try:
        dialect = (await inspect(binary, host)).dialect
    finally:
        await host.aclose()
    return not Combination(dialect, "tcg").before_11


def usable_accelerators(report: Report = silent) -> tuple[Sequence[str], str]:
    """Return the accelerators worth trying here, the better first, and a sentence on the reason."""
    build = qemus.find("system") or qemus.provide(qemus.FALLBACK, report=report)
    key = probe_cache.key(build.binary, "auto", "loop")
    known = probe_cache.recall(key)
    if known is None:
        report(Progress("measuring what KVM and TCG are worth here"))
        verdict = accelerators.prove(build.binary)
        known = {"real": verdict.real, "sentence": verdict.sentence}
        probe_cache.remember(key, known)
    return (("kvm", "tcg") if known.get("real") else ("tcg",)), str(known.get("sentence", ""))


def named_qemu(name: str) -> Path:
    """Find the binary that a build's name, a path, or a program's name on PATH means.

    Nothing is downloaded. Raises `ProvisionError` for a build that is not here, `UsageError` for a
    file or a program that is not.
    """
    if name in qemus.NAMES:
        if (build := qemus.find(name)) is not None:
            return build.binary
        if name == "system":
            raise ProvisionError(
                "There is no qemu-system-x86_64 with its qemu-img on PATH.",
                hint="install qemu-system-x86, or name another QEMU with --qemu",
            )
        raise ProvisionError(f"QEMU {name} is not here.", hint=f"coloctl lab qemu {name}")
    if found := shutil.which(name) or shutil.which(Path.cwd() / name):
        return Path(found).absolute()
    what = "cannot be executed" if Path(name).exists() else "is not there"
    raise UsageError(
        f"The QEMU {name} {what}.", hint=f"give a path, or one of: {', '.join(qemus.NAMES)}"
    )


def lab_guest(report: Report = silent) -> GuestImage:
    """Provide the lab's guest, built if it was not there; any qemu-img at hand makes its disk.

    Raises `ProvisionError`.
    """
    if (built := guests.find()) is not None:
        return built
    if (at_hand := shutil.which("qemu-img")) is not None:
        return guests.provide(qemu_img=Path(at_hand), report=report)
    stored = (qemus.find(name) for name in reversed(tuple(qemus.SUITES)))
    build = next(filter(None, stored), None) or qemus.provide(qemus.FALLBACK, report=report)
    return guests.provide(qemu_img=build.img, report=report)


def called(build: Build) -> str:
    """Name a build for people."""
    return f"QEMU {build.version} ({build.name})"
