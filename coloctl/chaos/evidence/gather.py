"""Collect the evidence of a run while the pair still runs.

Called by `chaos.run.runner` when the load has ended; asks the supervisor through
`chaos.evidence.listener`, the guest through `chaos.evidence.audit`, and reads the `journal`.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from coloctl import paths
from coloctl.chaos.evidence.audit import audit as ask_guest
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import Audit, Inventory, WorkloadRecord, takeovers_in
from coloctl.chaos.run.environment import Environment
from coloctl.errors import ColoctlError
from coloctl.journal import replay
from coloctl.lab import guest
from coloctl.machine import image
from coloctl.model.event import Record
from coloctl.model.pair import NODES
from coloctl.model.timeline import Timeline
from coloctl.model.view import Presence
from coloctl.pairfile import load

#: Comparing two images of half a gigabyte that are mostly holes.
COMPARE_DEADLINE_S = 60.0
CHECKPOINT_WAIT_S = 30.0
_BOOT_ID = re.compile(re.escape(guest.BOOT_ID_PREFIX) + r"(\S+)")
_MISMATCH = re.compile(r"offset (\d+)")


def boot_audit(around: Environment) -> tuple[Audit, ...]:
    """Read the boot id that the guest wrote to its console when it booted."""
    console = around.site.folder(around.where.name, "a") / "console.log"
    found = _BOOT_ID.search(console.read_text(errors="replace"))
    return (Audit(time.monotonic(), found[1]),) if found else ()


def evidence(
    around: Environment,
    steady_s: float,
    first: Sequence[Audit],
    needs: Collection[str],
    inventories: Sequence[Inventory],
) -> Evidence:
    """End the clients, and collect what they, the guest and the supervisor have recorded.

    ``needs`` are those of the checks that the scenario names (`Check.needs`): the guest is asked,
    and disks are compared, only for a check that reads it.
    """
    ended_s = time.monotonic()
    view = around.listener.view()
    # Where no QEMU lives there is no guest to ask, and no answer to wait for.
    lives = any(node.presence is Presence.ALIVE for node in view.nodes.values())
    works = {name: _work(*entry, lives=lives) for name, entry in around.works.items()}
    audits = (*first, *(audit(around) if lives and "audit" in needs else ()))
    compares = view.protected and "disks" in needs
    return Evidence(
        steady_s=steady_s,
        ended_s=ended_s,
        faults=(),
        works=works,
        events=tuple(around.listener.heard),
        takeovers=takeovers(around),
        frames=tuple(around.lan.frames),
        journal=journal(around.where.name),
        audits=audits,
        inventories=tuple(inventories),
        differences=differences(around) if compares else None,
        bad_checksums=around.lab.bad_checksums(),
        view=view,
    )


def _work(spec: Any, running: Any, *, lives: bool) -> WorkloadRecord:
    """Return the history as far as there is one, and what the guest holds, where it answers."""
    if not lives:  # its clients wait for ever, too
        running.kill()
        return WorkloadRecord(spec, tuple(running.history), None)
    with contextlib.suppress(ColoctlError):
        running.finish()
    kept = None
    with contextlib.suppress(ColoctlError):
        kept = running.read_back()
    return WorkloadRecord(spec, tuple(running.history), kept)


def audit(around: Environment) -> tuple[Audit, ...]:
    """Ask the guest about itself now; return nothing where it does not answer."""
    with contextlib.suppress(ColoctlError):
        return (ask_guest(around.lab),)
    return ()


def takeovers(around: Environment) -> tuple[Timeline, ...]:
    """Return each failover that any supervisor of the pair has written to the history."""
    with contextlib.suppress(ColoctlError):
        history: Mapping[str, Any] = around.listener.ask("query-history", CHECKPOINT_WAIT_S)
        return tuple(takeovers_in(history["failovers"]))
    return ()


def journal(pair: str) -> tuple[Record, ...]:
    """Read what the supervisors of the pair wrote to their journal."""
    with contextlib.suppress(ColoctlError):
        return replay(paths.pair_dir(pair) / "journal.jsonl").records
    return ()


def differences(around: Environment) -> dict[str, tuple[int, ...]] | None:
    """Compare the nodes' disks while the guest is idle; None if they could not be compared."""
    try:
        around.listener.ask("pair-checkpoint", CHECKPOINT_WAIT_S)
        disk = load(around.pair_file).disks[0].image
        tool = image.tool(around.where.qemu)
        files = [str(around.site.file(node, disk[node])) for node in NODES]
        argv = [str(tool), "compare", "-U", *files]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=COMPARE_DEADLINE_S, check=False
        )
    except (ColoctlError, OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode not in (0, 1):
        return None
    found = _MISMATCH.search(done.stdout) if done.returncode else None
    return {"disk0": (int(found[1]),) if found else ()}
