"""Sample the registers of both guests, to find processors that take no interrupt any more.

Held by `supervisor.compared`; called by `supervisor.contrast`, briefly once a second and closely
where something is suspected; asks QEMU by `qmp.command`; `ha.processors` decides what a sample
proves.

Invariants: no sample counts during which a checkpoint stopped the secondary, because QEMU may
report the state before it or the one after it. None counts without times of its threads that were
read since the sample before: only they show whether a processor ran or was starved in between.
"""

from __future__ import annotations

import logging
import math
import re

from coloctl.clock import Clock
from coloctl.errors import ColoctlError
from coloctl.ha.processors import Processor, Stuck
from coloctl.qmp import command as qmp
from coloctl.supervisor.seat import Seat
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: How many samples at most, how far apart in seconds, and how long QEMU may take to answer: it may
#: be in a checkpoint.
LOOKS, PERIOD_S, DEADLINE_S = 40, 0.02, 2.0
#: So many samples in a row at which every processor takes interrupts end a brief sampling, or a
#: close one: after a checkpoint a processor is well until its next interrupt.
BRIEFLY, CLOSELY = 1, 6

#: What ``info registers`` prints of each processor: where it is, its flags, whether it is halted.
_REGISTERS = re.compile(r"\b[ER]IP=([0-9a-f]+) [ER]FL=([0-9a-f]+) .*?\bHLT=([01])")
_INTERRUPTS, _PAGE = 0x200, 12


class CpuSampling:
    """Samples of the processors of one primary and one secondary."""

    def __init__(self, primary: Seat, secondary: Seat, clock: Clock) -> None:
        assert primary.vm is not None and secondary.vm is not None
        self._seats, self._vms = (primary, secondary), (primary.vm, secondary.vm)
        self._clock = clock
        self._seen = Stuck(), Stuck()

    async def deaf(self, patience: int) -> bool:
        """Return whether a processor of the secondary alone is proven to take no interrupt.

        Both QEMUs' processes are watched, each with the threads that are processors. Sampling ends
        after ``patience`` samples in a row at which each takes interrupts, or after `CLOSELY` where
        one did not before.
        """
        ours, theirs = self._seen
        well, before_s = 0, -math.inf
        try:
            for _ in range(LOOKS):
                stretch = self._stretch()
                look, read_s = await _look(self._vms[1])
                if stretch is not None and stretch == self._stretch() and read_s > before_s:
                    before_s = self._clock.now()
                    theirs.feed(stretch, look)
                    if theirs.suspicious:
                        ours.feed(stretch, (await _look(self._vms[0]))[0])
                    if theirs.proven() - ours.seen_so(stretch):
                        return True
                    well = well + 1 if all(one.interrupts for one in look) else 0
                if well >= (CLOSELY if theirs.suspected else patience):
                    break
                await self._clock.sleep(PERIOD_S)
        except ColoctlError as error:
            log.info("The registers could not be read: %s", error.message)
        return False

    def _stretch(self) -> int | None:
        """Return the number of the checkpoint after which the secondary runs.

        None while one holds it.
        """
        stats = self._seats[1].stats
        return None if stats.stopped_at else stats.count


async def _look(vm: VM) -> tuple[list[Processor], float]:
    """Return the position of each processor of the guest, and when its thread's time was read.

    Returns no processor where the times are not known. Raises `MonitorError`.
    """
    text = str(await vm.execute(qmp.info_registers(), DEADLINE_S))
    times = vm.process.worked()
    if times is None:
        return [], -math.inf
    seen = zip(_REGISTERS.findall(text), times.threads, strict=False)
    return [
        Processor(bool(int(flags, 16) & _INTERRUPTS), halt == "1", int(at, 16) >> _PAGE, ran_s)
        for (at, flags, halt), (ran_s, _) in seen
    ], times.at_s
