"""Report the events of two monitors of one QEMU once each, from the monitor that sends it first.

Called by `qmp.monitor`. QEMU makes one message of an event, timestamp and all, and sends it to
every monitor, in one order (``monitor_qapi_event_emit`` in monitor/monitor.c). So an event of one
monitor has come or will come on the other; one that hangs for a while sends known events again,
late.

Invariant: an event is never reported twice, and never after one that QEMU sent later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from coloctl.qmp.client import Event

#: Events by which one monitor may be ahead of the other before that is not waited for: more than
#: four minutes of checkpoints at four events a second.
AHEAD_MAX = 1000


class EventMerger:
    """Both monitors of one QEMU; ``report`` gets the events.

    The monitors were opened one after the other, so the first events may have come on one of them
    only. Until both have sent the same event, only the ``leading`` one is believed.
    """

    def __init__(
        self, report: Callable[[Event], None], leading: str, following: str, bound: int = AHEAD_MAX
    ) -> None:
        self._report, self._bound = report, bound
        self._leading, self._in_step = leading, False
        self._other = {leading: following, following: leading}
        self._ahead: dict[str, deque[Event]] = {leading: deque(), following: deque()}

    def hear(self, monitor: str, event: Event) -> None:
        """Receive ``event`` from ``monitor``; report it if it is not known yet."""
        mine, others = self._ahead[monitor], self._ahead[self._other[monitor]]
        if any(_same(event, one) for one in others):
            while not _same(event, others.popleft()):
                continue  # that one was sent before this monitor was opened
            if not self._in_step:
                self._step_in(monitor, event)
            return
        mine.append(event)
        if self._in_step or monitor == self._leading:
            self._report(event)
        if len(mine) > self._bound:
            mine.popleft()
            if self._in_step:
                self._leading, self._in_step = monitor, False

    def _step_in(self, monitor: str, event: Event) -> None:
        """Note that from ``event`` on, which both have sent now, both send the same."""
        self._in_step = True
        self._ahead[
            monitor
        ].clear()  # those came before it, and the other monitor will not send them
        if monitor == self._leading:
            for one in (event, *self._ahead[self._other[monitor]]):
                self._report(one)


def _same(one: Event, other: Event) -> bool:
    return (one.at_s, one.name, one.data) == (other.at_s, other.name, other.data)
