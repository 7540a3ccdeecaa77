"""Try COLO out: a small real pair checkpoints and fails over, both ways, under a deadline.

Called by `check.choose` and `cli.verbs.probe`; runs each direction with `check.trial_run`, on the
hosts of `host`.

Invariant: on return, and on every way out, no process and no file of the trial is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from coloctl import probe_cache
from coloctl.check.trial_run import run_direction
from coloctl.check.verdict import ColoSupport, Direction, FullVerdict
from coloctl.clock import Deadline
from coloctl.colo.ground import Ground, same_on_both
from coloctl.colo.known_bugs import named
from coloctl.errors import ColoctlError, LaunchError, UnsupportedQEMU
from coloctl.host import open_host
from coloctl.host.base import Host
from coloctl.model.pair import Role
from coloctl.vm import Binary, inspect

#: Both directions, with everything that may hang.
DEADLINE_S = 45.0
#: Of that, what one stage may take. An idle machine needs well under a second for each.
STAGE_SHARE = 6.0 / 45.0

#: Called when a stage begins: the role that will be killed, the stage.
TrialReport = Callable[[Role, str], None]


def holds_colo(
    binary: Path,
    accel: str,
    machine: str = "pc",
    *,
    fresh: bool = False,
    deadline_s: float = DEADLINE_S,
) -> FullVerdict:
    """Return whether COLO works with these on this machine: tried out, or remembered since its
    boot.

    Blocks for about ``deadline_s`` at most, so never in an event loop; a remembered answer takes
    milliseconds. ``accel`` is ``kvm`` or ``tcg``. Any behaviour of QEMU is a verdict, never an
    exception.
    """
    key = probe_cache.key(binary, accel, machine)
    if not fresh and (known := probe_cache.recall(key)) is not None:
        with contextlib.suppress(ValueError):
            return replace(FullVerdict.from_json(known), remembered=True)
    verdict = asyncio.run(try_out(binary, accel, machine, deadline_s=deadline_s))
    if verdict.outcome in (ColoSupport.WORKS, ColoSupport.FAILS):
        probe_cache.remember(key, verdict.to_json())
    return verdict


async def try_out(
    binary: Path,
    accel: str,
    machine: str = "pc",
    *,
    deadline_s: float = DEADLINE_S,
    report: TrialReport = lambda _role, _stage: None,
) -> FullVerdict:
    """Try both directions like `holds_colo`, without the cache. Cancelled, it still cleans up."""
    began = time.monotonic()
    blank = FullVerdict(str(binary), "", accel, machine, ColoSupport.UNKNOWN, "")
    host = open_host("local")
    try:
        known = await inspect(binary, host)
        blank = replace(blank, version=known.version)
        verdict = _sum_up(blank, await _both_ways(blank, host, known, deadline_s, report))
    except (UnsupportedQEMU, LaunchError) as error:
        verdict = _from_error(replace(blank, outcome=ColoSupport.FAILS), error)
    except ColoctlError as error:
        verdict = _from_error(blank, error)
    finally:
        await host.aclose()
    return replace(verdict, took_s=round(time.monotonic() - began, 2))


async def _both_ways(
    blank: FullVerdict, host: Host, binary: Binary, deadline_s: float, report: TrialReport
) -> tuple[Direction, ...]:
    """Run the directions; the second only where the first went well."""
    deadline = Deadline(deadline_s)
    directions: list[Direction] = []
    for killed in (Role.PRIMARY, Role.SECONDARY):
        with tempfile.TemporaryDirectory(prefix="coloctl-probe-") as folder:
            facts = same_on_both(binary, blank.accel)
            ground = Ground({"a": host, "b": host}, facts, Path(folder))
            direction = await run_direction(
                ground,
                blank.machine,
                killed,
                deadline=deadline,
                stage_s=deadline_s * STAGE_SHARE,
                report=partial(report, killed),
            )
        directions.append(direction)
        if direction.outcome is not ColoSupport.WORKS:
            break
    return tuple(directions)


def _sum_up(blank: FullVerdict, directions: tuple[Direction, ...]) -> FullVerdict:
    """Return the verdict of the whole trial: that of its last direction."""
    last = directions[-1]
    verdict = replace(blank, outcome=last.outcome, directions=directions, sentence=last.sentence)
    if last.outcome is ColoSupport.WORKS:
        return replace(
            verdict, sentence="A small pair took checkpoints and failed over in both directions."
        )
    if bug := named(last.known_bug):
        return replace(verdict, known_bug=bug.name, sentence=bug.verdict(), hint=bug.hint)
    if last.outcome is ColoSupport.UNKNOWN:
        return replace(verdict, hint="this machine may be busy: try again with a longer --deadline")
    return verdict


def _from_error(blank: FullVerdict, error: ColoctlError) -> FullVerdict:
    return replace(blank, sentence=error.message, hint=error.hint or "")
