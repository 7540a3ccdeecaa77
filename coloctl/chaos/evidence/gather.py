"""The evidence of a run, taken from the stage while it stands and from what is left of it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coloctl import paths
from coloctl.chaos.evidence.audit import audit as ask_guest
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import Audit, Takeover, WorkloadRecord
from coloctl.chaos.evidence.remains import Trail
from coloctl.chaos.evidence.remains import remains as left_behind
from coloctl.chaos.run.stage import Stage
from coloctl.chaos.run.testbed import Setting
from coloctl.errors import ColoctlError
from coloctl.journal import replay
from coloctl.machine import image
from coloctl.model.event import Record
from coloctl.pairfile import load

#: Comparing two images of half a gigabyte that are mostly holes.
COMPARE_S = 60.0
CHECKPOINT_S = 30.0
_BOOT_ID = re.compile(r"coloctl-guest: boot-id=(\S+)")
_MISMATCH = re.compile(r"offset (\d+)")


def boot_audit(where: Setting) -> tuple[Audit, ...]:
    """The boot id that the guest wrote to its console when it began."""
    console = paths.pair_dir(where.name) / "a" / "console.log"
    found = _BOOT_ID.search(console.read_text(errors="replace"))
    return (Audit(time.monotonic(), found[1]),) if found else ()


def evidence(played: Stage, steady_s: float, first: Sequence[Audit]) -> Evidence:
    """The clients have ended, and everything that they, the guest and the supervisor can tell."""
    ended_s = time.monotonic()
    view = played.ear.view()
    # Where no QEMU lives there is no guest to ask, and nobody waits for its answers.
    lives = any(node["presence"] == "alive" for node in view.get("nodes", ()))
    works = {name: _work(*entry, lives=lives) for name, entry in played.works.items()}
    audits = (*first, *(audit(played) if lives else ()))
    return Evidence(
        steady_s=steady_s,
        ended_s=ended_s,
        faults=(),
        works=works,
        events=tuple(played.ear.heard),
        takeovers=takeovers(played),
        frames=tuple(played.lan.frames),
        journal=journal(played.where.name),
        audits=audits,
        differences=differences(played) if view["protection"] == "colo" else None,
        bad_checksums=played.lab.bad_checksums(),
        view=view,
    )


def _work(spec: Any, running: Any, *, lives: bool) -> WorkloadRecord:
    """The history as far as there is one; what the guest holds, where it still answers."""
    if not lives:  # its clients wait for ever, too
        running.kill()
        return WorkloadRecord(spec, tuple(running.history), None)
    with contextlib.suppress(ColoctlError):
        running.finish()
    kept = None
    with contextlib.suppress(ColoctlError):
        kept = running.read_back()
    return WorkloadRecord(spec, tuple(running.history), kept)


def audit(played: Stage) -> tuple[Audit, ...]:
    """What the guest says of itself now; nothing, where it does not answer."""
    with contextlib.suppress(ColoctlError):
        return (ask_guest(played.lab),)
    return ()


def takeovers(played: Stage) -> tuple[Takeover, ...]:
    """Every failover that the supervisor has written down, whoever it was."""
    with contextlib.suppress(ColoctlError):
        told: Mapping[str, Any] = played.ear.ask("query-history", CHECKPOINT_S)
        # One that failed before a survivor was found says so, and is no takeover.
        return tuple(Takeover.of(one) for one in told["failovers"] if "role_before" in one)
    return ()


def journal(pair: str) -> tuple[Record, ...]:
    """What the supervisors of the pair wrote down."""
    with contextlib.suppress(ColoctlError):
        return replay(paths.pair_dir(pair) / "journal.jsonl").records
    return ()


def differences(played: Stage) -> dict[str, tuple[int, ...]] | None:
    """Where the nodes' disks differ while the guest is idle; None when that cannot be told."""
    try:
        played.ear.ask("pair-checkpoint", CHECKPOINT_S)
        disk = load(played.pair_file).disks[0].image
        tool = image.tool(played.where.qemu)
        argv = [str(tool), "compare", "-U", str(disk["a"]), str(disk["b"])]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMPARE_S, check=False)
    except (ColoctlError, OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode not in (0, 1):
        return None
    found = _MISMATCH.search(done.stdout) if done.returncode else None
    return {"disk0": (int(found[1]),) if found else ()}


def remains(where: Setting, home: Path) -> tuple[str, ...]:
    """What is there that should be gone."""
    return tuple(left_behind(Trail(where.name, home)))
