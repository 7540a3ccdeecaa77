"""Look at what an agent holds at every beat, and send the findings as one document.

Made by `host.agent.session`; reads processes, beacons and deliveries of `host.local`.

The document of a BEAT, of which only the newest counts::

    {"t": 12.5,                   seconds of the agent's monotonic clock
     "echo": 7.1, "held": 0.004,  the "t" of the client's newest BEAT or null, and its age here
     "p": [[hold, life, dying, cpu_s, console bytes, [at_s, [[ran_s, waited_s], ...]] or null],
           ...],
     "l": [[hold, beats that carried, lost, refused, delay_s or null], ...],
     "d": [[hold, [[which, port, unacked, resent, heard, acked, received], ...]], ...]}

A client sends {"t": seconds of its own clock}. "beats that carried" counts since the beacon was
made, so a document that is passed over loses nothing. ``which`` is in base64.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coloctl.clock import CLOCK
from coloctl.host.beacon import DatagramBeacon
from coloctl.host.delivery import TcpConnection, TcpDeliveries
from coloctl.host.program import Program
from coloctl.model.observation import Life

log = logging.getLogger(__name__)

#: A document goes out at every so many beats, at once where a life has changed or a process is
#: dying, and at each beat at which a link carried nothing.
SEND_EVERY = 2
#: The kernel is asked about each connection at every so many beats, and at each at which the link
#: carried nothing; it is looked through for new ones at every so many: as `ha.link` does it here.
LOOK_EVERY = 5
FIND_EVERY = 100


class Beat:
    """The rhythm of one session, and what is looked at in it."""

    def __init__(self, beat_ms: int, send: Callable[[Mapping[str, Any]], None]) -> None:
        self._period_s = beat_ms / 1000
        self._send = send
        self._processes: dict[int, Program] = {}
        self._beacons: dict[int, DatagramBeacon] = {}
        self._carried: dict[int, int] = {}
        self._deliveries: dict[int, TcpDeliveries] = {}
        self._rows: dict[int, Sequence[TcpConnection]] = {}
        self._number = 0
        self._changing: Any = None
        self._echo: tuple[float, float] | None = None

    def add_process(self, hold: int, process: Program) -> None:
        """Report the life of ``process`` from now on."""
        self._processes[hold] = process

    def add_beacon(self, hold: int, beacon: DatagramBeacon, beat_ms: int) -> None:
        """Beat ``beacon`` from now on; the session's rhythm is that of its fastest beacon."""
        self._beacons[hold], self._carried[hold] = beacon, 0
        self._period_s = min(self._period_s, beat_ms / 1000)

    def add_deliveries(self, hold: int, deliveries: TcpDeliveries) -> None:
        """Report the connections of ``deliveries`` from now on."""
        self._deliveries[hold], self._rows[hold] = deliveries, deliveries.find()

    def drop(self, hold: int) -> None:
        """Report a hold no longer."""
        for table in (self._processes, self._beacons, self._carried, self._deliveries, self._rows):
            table.pop(hold, None)

    def note(self, document: Mapping[str, Any]) -> None:
        """Note the client's newest beat, whose time is sent back."""
        at_s = document.get("t")
        if isinstance(at_s, int | float):
            self._echo = float(at_s), CLOCK.now()

    async def run(self) -> None:
        """Beat until cancelled; what a late loop has missed is not made up for."""
        due_s, failed = CLOCK.now(), False
        while True:
            try:
                self.beat()
            except Exception:  # the next beats are needed all the same
                if not failed:
                    log.exception("A beat failed.")
                failed = True
            due_s = max(due_s + self._period_s, CLOCK.now())
            await CLOCK.sleep(due_s - CLOCK.now())

    def beat(self) -> None:
        """Look once, and send the findings where they are due or something has changed."""
        lives = {hold: one.life() for hold, one in self._processes.items()}
        dying = [hold for hold, one in self._processes.items() if one.seen_dying]
        carrying = {hold: bool(one.beat()) for hold, one in self._beacons.items()}
        for hold, carries in carrying.items():
            self._carried[hold] += carries
        if self._number % LOOK_EVERY == 0 or not all(carrying.values()):
            find = self._number % FIND_EVERY == 0
            for hold, one in self._deliveries.items():
                self._rows[hold] = one.find() if find else one.look()
        changing = lives, dying, carrying
        due = self._number % SEND_EVERY == 0 or not all(carrying.values())
        if due or changing != self._changing:
            self._send(self._document(lives))
        self._changing = changing
        self._number += 1

    def _document(self, lives: Mapping[int, Life]) -> dict[str, Any]:
        now_s = CLOCK.now()
        echo_s, came_s = self._echo or (None, now_s)
        return {
            "t": now_s,
            "echo": echo_s,
            "held": now_s - came_s,
            "p": [_row(hold, one, lives[hold]) for hold, one in self._processes.items()],
            "l": [
                [hold, self._carried[hold], one.lost, one.refused, one.delay_s]
                for hold, one in self._beacons.items()
            ],
            "d": [[hold, [_connection(one) for one in rows]] for hold, rows in self._rows.items()],
        }


def _row(hold: int, process: Program, life: Life) -> list[Any]:
    worked = process.worked()
    times = None if worked is None else [worked.at_s, worked.threads]
    return [hold, life, process.seen_dying, process.cpu_s(), process.console_bytes(), times]


def _connection(one: TcpConnection) -> list[Any]:
    which = base64.b64encode(one.which).decode()
    return [which, one.port, one.unacked, one.resent, one.heard, one.acked, one.received]
