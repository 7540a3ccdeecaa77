"""Wait for a failover that the supervisor does by itself.

Called by `bench.circles` and `bench.demo` after a fault; reads events of `control.client`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from coloctl.control.client import ControlClient, ControlEvent
from coloctl.errors import DeadlineMissed, FailoverRefused
from coloctl.model.timeline import Timeline

#: A fault that was not noticed by then is not noticed at all.
NOTICE_DEADLINE_S = 15.0
#: Fence, promotion, and the merge of the survivor's overlays.
FAILOVER_DEADLINE_S = 60.0


def awaited(
    client: ControlClient, hear: Callable[[ControlEvent], None] = lambda _event: None
) -> Timeline:
    """Wait until the pair runs on one node because of the supervisor; ``hear`` gets every event.

    Raises `DeadlineMissed` when the fault was not noticed in time, `FailoverRefused` when the
    failover failed or did not end.
    """
    noticed = False
    give_up = time.monotonic() + NOTICE_DEADLINE_S
    while (left_s := give_up - time.monotonic()) > 0:
        for event in client.events(left_s):
            hear(event)
            if event.name == "FAILED_OVER":
                return Timeline.from_json(event.data["timeline"])
            if event.name != "STATE_CHANGED":
                continue
            after = event.data["after"]
            if after in ("failed", "down"):
                raise FailoverRefused(f"The pair is {after}: {event.data['reason']}")
            if after == "failover":
                noticed, give_up = True, time.monotonic() + FAILOVER_DEADLINE_S
                break
    if noticed:
        raise FailoverRefused(f"The failover was not done within {FAILOVER_DEADLINE_S:.0f} s.")
    raise DeadlineMissed(
        f"The supervisor did not notice the fault within {NOTICE_DEADLINE_S:.0f} s."
    )
