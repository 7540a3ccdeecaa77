"""Determine the state of a pair that failed: which QEMU died or hangs, how the migration ended.

Called by `check.trial_run` before it kills the QEMUs; asks through `vm`; the signs are read by
`colo.known_bugs`.
"""

from __future__ import annotations

import asyncio
import signal

from coloctl.colo.known_bugs import Signs
from coloctl.errors import MonitorError
from coloctl.model.qapi import MigrationStatus
from coloctl.qmp import command as qmp
from coloctl.vm import VM

#: From a lost monitor to the end of its process; the kernel may write a core dump first.
DEATH_WAIT_S = 1.0
#: A main loop that works answers within milliseconds, 76 ms at worst during a checkpoint.
ANSWER_WAIT_S = 2.0
#: Lines of each side's stderr worth reading.
LINES = 3
#: What a QEMU that aborts says of itself.
TELLING = ("Assertion", "internal error")


async def examine(primary: VM | None, secondary: VM | None) -> Signs:
    """Collect the signs of a pair whose QEMUs still run or died by themselves; never raises."""
    first, second = await asyncio.gather(_condition(primary), _condition(secondary))
    return Signs(
        primary_hangs=first == "hangs",
        secondary_hangs=second == "hangs",
        primary_aborted=first == "aborted",
        secondary_aborted=second == "aborted",
        migration_completed=first == "answers" and await _completed(primary),
        words=await words(primary, secondary),
    )


async def words(*vms: VM | None) -> str:
    """Return the last lines that they wrote to stderr; an assertion alone where there is one.

    Warnings are left out: QEMU has some for every CPU model under KVM.
    """
    said = [
        [line for line in (await vm.last_words(20)).splitlines() if ": warning: " not in line]
        for vm in vms
        if vm
    ]
    telling = [line for lines in said for line in lines if any(map(line.__contains__, TELLING))]
    return "\n".join(telling or (line for lines in said for line in lines[-LINES:]))


async def _condition(vm: VM | None) -> str:
    """Return ``answers``, ``hangs``, ``silent``, ``aborted`` or ``gone``.

    ``hangs``: only the monitor thread answers. ``gone`` is a QEMU that was never there, ended by
    itself, or was killed.
    """
    if vm is None:
        return "gone"
    try:
        await vm.execute(qmp.query_status(), ANSWER_WAIT_S)
    except MonitorError:
        return await _silence(vm)
    return "answers"


async def _silence(vm: VM) -> str:
    """Return why the main loop does not answer."""
    try:
        async with asyncio.timeout(DEATH_WAIT_S if vm.monitor.gone else 0):
            death = await vm.process.wait()
    except TimeoutError:
        pass
    else:
        sent = death.exit_code is not None and death.exit_code < 0
        return "aborted" if sent and death.exit_code != -signal.SIGKILL else "gone"
    try:
        await vm.monitor.rescue(qmp.query_yank(), ANSWER_WAIT_S)
    except MonitorError:
        return "silent"
    return "hangs"


async def _completed(primary: VM | None) -> bool:
    """Return whether the primary's migration ended as an ordinary one does."""
    if primary is None:
        return False
    try:
        answer = await primary.execute(qmp.query_migrate(), ANSWER_WAIT_S)
    except MonitorError:
        return False
    return MigrationStatus(answer.get("status", "none")) is MigrationStatus.COMPLETED
