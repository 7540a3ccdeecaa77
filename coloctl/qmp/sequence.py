"""Run a tuple of command values and report exactly how far it came.

`colo.plan` builds the tuples, and ``--dry-run`` prints the same values; `colo.protect` and
`ha.failover` run them over a `qmp.monitor`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coloctl.clock import Deadline
from coloctl.errors import CommandRefused, MonitorError
from coloctl.qmp.command import Command
from coloctl.qmp.monitor import Monitor


@dataclass(frozen=True)
class Step:
    """One command of a sequence; one that is out of band takes the rescue monitor."""

    command: Command
    why: str = ""
    #: Parts of QEMU's error text, or error classes, which mean that it is so already.
    tolerate: tuple[str, ...] = ()
    #: What this step alone may take; None: all that the sequence has left.
    deadline_s: float | None = None

    def tolerates(self, error: MonitorError) -> bool:
        """Return whether ``error`` means that the command's effect is there already."""
        return isinstance(error, CommandRefused) and any(
            word == error.error_class or word in error.desc for word in self.tolerate
        )

    def __str__(self) -> str:
        return f"{self.command}    # {self.why}" if self.why else str(self.command)


@dataclass(frozen=True)
class StepResult:
    """The outcome of one step."""

    step: Step
    answer: Any
    error: MonitorError | None
    began_s: float  #: monotonic clock when it was sent
    took_s: float

    @property
    def ok(self) -> bool:
        """True when it was done, or its effect was there already."""
        return self.error is None or self.step.tolerates(self.error)

    def to_json(self) -> dict[str, Any]:
        """Write the outcome for the journal of a bundle."""
        document: dict[str, Any] = {
            "command": self.step.command.wire(),
            "took-ms": round(self.took_s * 1000, 3),
        }
        if self.error is None:
            document["return"] = self.answer
        else:
            document["error"] = {"code": self.error.code, "message": self.error.message}
            document["tolerated"] = self.ok
        return document

    def line(self) -> str:
        """Format the outcome for people, on one line."""
        if self.error is None:
            result = "ok" if self.answer in ({}, [], None) else json.dumps(self.answer)
        else:
            result = ("already so: " if self.ok else "FAILED: ") + self.error.message
        return f"{self.took_s * 1000:8.1f} ms  {self.step.command}  -> {result}"


@dataclass(frozen=True)
class Transcript:
    """The outcomes of the steps that were tried, in order."""

    entries: tuple[StepResult, ...] = field(default=())

    @property
    def error(self) -> MonitorError | None:
        """The first error that was not tolerated."""
        return next((entry.error for entry in self.entries if not entry.ok), None)

    @property
    def ok(self) -> bool:
        """True when no step failed."""
        return self.error is None

    def answer(self, execute: str) -> Any:
        """Return the answer of the last command of that name; None when it was not run."""
        for entry in reversed(self.entries):
            if entry.step.command.execute == execute:
                return entry.answer
        return None

    def lines(self) -> list[str]:
        """Format the transcript for people, one line per step."""
        return [entry.line() for entry in self.entries]

    def to_json(self) -> list[dict[str, Any]]:
        """Write the outcomes of all steps."""
        return [entry.to_json() for entry in self.entries]


async def run(
    steps: Iterable[Step],
    monitor: Monitor,
    *,
    deadline: Deadline,
    keep_going: bool = False,
    fds: Mapping[str, int] | None = None,
) -> Transcript:
    """Run every step in order within ``deadline``, and return the transcript.

    Stops at the first step that fails and raises its `MonitorError`. With ``keep_going`` it tries
    them all, and the transcript shows the errors. ``fds`` has the descriptor for each ``getfd`` by
    its name.
    """
    entries: list[StepResult] = []
    for step in steps:
        entry = await _run_one(step, monitor, deadline, fds or {})
        entries.append(entry)
        if entry.error is not None and not entry.ok and not keep_going:
            raise entry.error
    return Transcript(tuple(entries))


async def _run_one(
    step: Step, monitor: Monitor, deadline: Deadline, fds: Mapping[str, int]
) -> StepResult:
    command = step.command
    allowed_s = deadline.remaining()
    if step.deadline_s is not None:
        allowed_s = min(allowed_s, step.deadline_s)
    answer, failed = None, None
    began_s = time.monotonic()
    try:
        if command.oob:
            answer = await monitor.rescue(command, allowed_s)
        else:
            fd = fds.get(command.arguments["fdname"]) if command.execute == "getfd" else None
            answer = await monitor.execute(command, allowed_s, fd=fd)
    except MonitorError as error:
        failed = error
    return StepResult(step, answer, failed, began_s, time.monotonic() - began_s)
