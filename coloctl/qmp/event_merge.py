"""What two monitors of one QEMU tell, each event once, from whichever of them tells it first.

QEMU makes one message of an event, timestamp and all, and sends it to every monitor, in one order
(``monitor_qapi_event_emit`` in monitor/monitor.c). So what one road tells is what the other has
told or is going to tell, and one that hangs for a while tells again, late, what is known already.

Invariant: an event is never told twice, and never after one that QEMU sent later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from coloctl.qmp.client import Event

#: Events by which one road may be behind the other before it is not waited for any more: more than
#: four minutes of checkpoints at four events a second.
BEHIND_MAX = 1000


class EventMerger:
    """Both roads of one QEMU; ``tell`` gets the events.

    The roads were opened one after the other, so the first events may have come on one of them
    only. Until they are heard to tell the same event, only the ``leading`` one is believed.
    """

    def __init__(
        self, tell: Callable[[Event], None], leading: str, following: str, bound: int = BEHIND_MAX
    ) -> None:
        self._tell, self._bound = tell, bound
        self._leading, self._in_step = leading, False
        self._other = {leading: following, following: leading}
        self._ahead: dict[str, deque[Event]] = {leading: deque(), following: deque()}

    def hear(self, road: str, event: Event) -> None:
        """``road`` has told ``event``; it is told on if nobody knows it yet."""
        mine, others = self._ahead[road], self._ahead[self._other[road]]
        if any(_same(event, one) for one in others):
            while not _same(event, others.popleft()):
                continue  # that one was sent before this road was opened
            if not self._in_step:
                self._step_in(road, event)
            return
        mine.append(event)
        if self._in_step or road == self._leading:
            self._tell(event)
        if len(mine) > self._bound:
            mine.popleft()
            if self._in_step:
                self._leading, self._in_step = road, False

    def _step_in(self, road: str, event: Event) -> None:
        """From ``event`` on, which both have told now, they tell the same."""
        self._in_step = True
        self._ahead[road].clear()  # those came before it, and the other road will not tell them
        if road == self._leading:
            for one in (event, *self._ahead[self._other[road]]):
                self._tell(one)


def _same(one: Event, other: Event) -> bool:
    return (one.at_s, one.name, one.data) == (other.at_s, other.name, other.data)
