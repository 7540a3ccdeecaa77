"""Record the last messages between the supervisor and one QEMU, for `bundle`.

`supervisor.state` keeps a `FlightRecorder` per node; a monitor's reader calls it. Secrets are taken
out by `supervisor.redact` before anything is kept.

Invariant: `FlightRecorder.record` is cheap, never waits and never raises; the messages kept are
bounded in number and in bytes. Probes that were answered (`CHATTER`) are counted, with the last
answer of each kept, because a heartbeat would push everything else out.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from coloctl.supervisor import redact

#: Messages kept per node, and the bytes that they may have together. The setup of a pair takes
#: about 150 messages, a checkpoint two events on each node.
MESSAGES_MAX = 2000
BYTES_MAX = 512 << 10
#: A longer message (a schema, a list of block nodes) is cut.
MESSAGE_MAX = 8 << 10
#: Commands without an answer that are remembered; a monitor takes no more (`qmp.session`).
OPEN_MAX = 128

#: Commands that are sent again and again while nothing happens; ``pmemsave`` by a comparison of
#: memory.
CHATTER = frozenset(
    {"query-yank", "query-status", "query-migrate", "query-colo-status", "pmemsave"}
)

Wall = Callable[[], float]


class FlightRecorder:
    """The messages over both monitors of one node's QEMU, the latest last."""

    def __init__(
        self,
        *,
        messages_max: int = MESSAGES_MAX,
        bytes_max: int = BYTES_MAX,
        wall: Wall = time.time,
    ) -> None:
        self.dropped = 0  #: messages that had to make room
        self._messages_max, self._bytes_max = messages_max, bytes_max
        self._wall = wall
        self._ring: deque[bytes] = deque()
        self._bytes = 0
        self._open: dict[tuple[str, object], tuple[float, str, Mapping[str, Any]]] = {}
        self._chatter: dict[str, tuple[int, float, Mapping[str, Any]]] = {}

    def record(self, what: str, message: Mapping[str, Any]) -> None:
        """Record a message of `qmp.monitor.Monitor`; ``what`` is ``"command sent"`` and so on."""
        try:
            self._take(what, message)
        except Exception as error:
            # A monitor's reader must not end for the sake of a record.
            self._keep(self._wall(), what, {"not-recorded": f"{type(error).__name__}: {error}"})

    def _take(self, what: str, message: Mapping[str, Any]) -> None:
        road, _, verb = what.partition(" ")
        key = (road, message.get("id"))
        if verb == "sent" and _command(message) in CHATTER:
            if len(self._open) >= OPEN_MAX:
                self._release(next(iter(self._open)))
            self._open[key] = (self._wall(), what, message)
        elif verb == "received" and key in self._open:
            command = _command(self._open[key][2])
            if "return" in message:
                del self._open[key]
                count = self._chatter[command][0] if command in self._chatter else 0
                self._chatter[command] = (count + 1, self._wall(), message)
            else:
                self._release(key)
                self._keep(self._wall(), what, message)
        else:
            if verb == "abandoned":
                self._release_asked(road, _command(message))
            self._keep(self._wall(), what, message)

    def _release_asked(self, road: str, command: str) -> None:
        """Keep the probe that was given up: it is no chatter any more."""
        for key in list(self._open):
            if key[0] == road and _command(self._open[key][2]) == command:
                self._release(key)

    def _release(self, key: tuple[str, object]) -> None:
        self._keep(*self._open.pop(key))

    def _keep(self, at_s: float, what: str, message: Mapping[str, Any]) -> None:
        line = _encoded(at_s, what, message)
        self._ring.append(line)
        self._bytes += len(line)
        while len(self._ring) > self._messages_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._ring.popleft())
            self.dropped += 1

    def lines(self) -> list[dict[str, Any]]:
        """Return ``{"at_s", "what", "message"}`` each, by the time of day.

        First how much is missing, then what was counted, then the ring, then what is unanswered.
        """
        head: list[dict[str, Any]] = [{"what": "dropped", "count": self.dropped}]
        for command, (count, at_s, answer) in sorted(self._chatter.items()):
            counted = json.loads(_encoded(at_s, "answered", answer))
            head.append({**counted, "command": command, "count": count})
        asked = [json.loads(_encoded(*one)) for one in self._open.values()]
        return [
            *head,
            *(json.loads(line) for line in self._ring),
            *({**one, "unanswered": True} for one in asked),
        ]


def _command(message: Mapping[str, Any]) -> str:
    return str(message.get("execute") or message.get("exec-oob") or "")


def _encoded(at_s: float, what: str, message: Mapping[str, Any]) -> bytes:
    said = json.dumps(redact.value(message), separators=(",", ":"), default=str)
    if len(said) > MESSAGE_MAX:
        said = json.dumps({"cut": said[:MESSAGE_MAX], "characters": len(said)})
    return f'{{"at_s":{at_s:.6f},"what":{json.dumps(what)},"message":{said}}}'.encode()
