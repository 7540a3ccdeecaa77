"""A failover that the supervisor does by itself: waited for, and timed from the fault on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coloctl.control.client import ControlClient, ControlEvent
from coloctl.errors import DeadlineMissed, FailoverRefused

#: A fault that was not seen by then is not seen at all.
NOTICE_DEADLINE_S = 15.0
#: Fence, promotion, and the merge of the survivor's overlays.
FAILOVER_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Takeover:
    """What the supervisor did; ``began_s`` is monotonic, the steps are milliseconds since then."""

    survivor: str
    lost: str
    role_before: str
    cause: str
    began_s: float
    steps: Mapping[str, float]

    @classmethod
    def of(cls, timeline: Mapping[str, Any]) -> Takeover:
        """From the timeline that the supervisor tells when a failover is over."""
        return cls(
            survivor=timeline["survivor"],
            lost=timeline["lost"],
            role_before=timeline["role_before"],
            cause=timeline.get("cause", ""),
            began_s=timeline["began_s"],
            steps=timeline["steps"],
        )

    def since_ms(self, fault_at_s: float) -> dict[str, float]:
        """From the fault to each step, in the order in which they were done."""
        before = (self.began_s - fault_at_s) * 1000
        times = {step: round(before + at_ms, 1) for step, at_ms in self.steps.items()}
        return dict(sorted(times.items(), key=lambda item: item[1]))

    def done_s(self, step: str) -> float:
        """When a step was done, monotonic; when the failover began, for a step that is not told."""
        return self.began_s + self.steps.get(step, 0.0) / 1000


def awaited(
    client: ControlClient, hear: Callable[[ControlEvent], None] = lambda _event: None
) -> Takeover:
    """The pair runs on one node because the supervisor saw to it; ``hear`` gets every event.

    Raises `DeadlineMissed` when the fault was not noticed in time, `FailoverRefused` when the
    failover failed or did not end.
    """
    noticed = False
    give_up = time.monotonic() + NOTICE_DEADLINE_S
    while (left_s := give_up - time.monotonic()) > 0:
        for event in client.events(left_s):
            hear(event)
            if event.name == "FAILED_OVER":
                return Takeover.of(event.data["timeline"])
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
