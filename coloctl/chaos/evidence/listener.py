"""Receive the events of a supervisor for as long as a run lasts, also when it is killed.

Started by `chaos.run.environment` and `bench.supervisors`; `chaos.evidence.inventory`,
`chaos.run.engine` and `bench.stretches` read its events. It connects with `control.client`, again
and again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any

from coloctl import paths
from coloctl.chaos.evidence.background import Background
from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.clock import Deadline
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient, ControlEvent
from coloctl.errors import ColoctlError, DeadlineMissed
from coloctl.model.view import PairView

#: To connect, and for one answer about the pair: a new supervisor takes over first.
ANSWER_WAIT_S = 30.0
#: How long to wait before the next attempt to reach a supervisor that is gone.
AGAIN_S = 0.05
#: A supervisor's stamp that is further from now than this is not the machine's clock.
SANE_S = 30.0


class EventListener(Background):
    """Collects each event from its creation to the end of its ``with`` block in `heard`.

    Several threads may ask at the same time.
    """

    def __init__(self, pair: str) -> None:
        super().__init__("listener")
        self.heard: list[ObservedEvent] = []
        self._pair = pair
        self._news: SimpleQueue[ObservedEvent] = SimpleQueue()
        self.begin()

    def next(self, timeout_s: float) -> ObservedEvent | None:
        """Return the next event that was not taken yet; None if none came in time."""
        with contextlib.suppress(Empty):
            return self._news.get(timeout=max(0.0, timeout_s))
        return None

    def view(self) -> PairView:
        """Return the pair now; raises `DeadlineMissed` after 30 s without an answer."""
        deadline = Deadline(ANSWER_WAIT_S)
        while True:
            try:
                with self._connect() as client:
                    return Acts(client, ANSWER_WAIT_S).view()
            except (ColoctlError, OSError) as error:
                if deadline.expired:
                    raise DeadlineMissed(
                        f"No supervisor of {self._pair} answered within {ANSWER_WAIT_S:.0f} s: "
                        f"{error}"
                    ) from error
                time.sleep(AGAIN_S)

    def ask(self, name: str, timeout_s: float, /, **arguments: Any) -> Any:
        """Send one command over a connection of its own, once; raises what the supervisor raises.

        Raises `NoSuchPair`, `Unreachable` or `DeadlineMissed` where no supervisor answers.
        """
        with self._connect() as client:
            return client.execute(name, timeout_s, **arguments)

    def _connect(self) -> ControlClient:
        return ControlClient.connect(paths.control_socket(self._pair), ANSWER_WAIT_S)

    def work(self) -> None:
        """See `Background.work`."""
        while not self.ended:
            with contextlib.suppress(ColoctlError, OSError), self._connect() as client:
                self._catch_up(Acts(client, ANSWER_WAIT_S).view())
                for event in self._events(client):
                    self._hear(event)
            time.sleep(AGAIN_S)

    def _events(self, client: ControlClient) -> Iterator[ObservedEvent]:
        while not self.ended:
            for event in client.events(0.2):
                yield ObservedEvent(_monotonic(event), event.name, event.data)

    def _catch_up(self, view: PairView) -> None:
        """Add a change that came while no supervisor could be heard, as if it came now."""
        states = [event.data["after"] for event in self.heard if event.name == "STATE_CHANGED"]
        before, after = states[-1] if states else "", str(view.protection)
        if before != after:
            data = {"before": before, "fact": "", "after": after, "reason": view.reason}
            self._hear(ObservedEvent(time.monotonic(), "STATE_CHANGED", data))

    def _hear(self, event: ObservedEvent) -> None:
        self.heard.append(event)
        self._news.put(event)


def _monotonic(event: ControlEvent) -> float:
    """Convert a stamp to the monotonic clock; return now if the supervisor's clock is wrong."""
    now = time.monotonic()
    age_s = time.time() - event.at_s
    return now - age_s if abs(age_s) < SANE_S else now
