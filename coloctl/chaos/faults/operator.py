"""Run a command of an operator while other things happen; it may be refused, and may wait.

Registered in `chaos.faults`; `bench.circles` and `cli.demo_machines` give it its verbs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from coloctl.chaos.faults.fault import Fault, Injected, fault
from coloctl.chaos.scenario.tables import Params
from coloctl.errors import ColoctlError


class OperatorParams(Params):
    """The verb, and how long its answer is waited for; "reprotect" is a second "protect"."""

    verb: Literal[
        "protect", "reprotect", "unprotect", "switchover", "failover", "pause", "resume", "start",
        "checkpoint", "fence-confirm", "set"
    ] = "checkpoint"  # fmt: skip
    timeout_s: float = Field(default=120.0, gt=0)
    #: Further arguments of the command, such as ``to`` and ``force`` of a failover.
    arguments: Mapping[str, Any] = Field(default_factory=dict)


@fault("operator")
class Operator(Fault[OperatorParams]):
    """A request of an operator.

    Healing waits for the supervisor's answer, which is the result.
    """

    targets = ("pair",)
    params = OperatorParams
    lasting = True
    _answer = ""
    _typing: threading.Thread | None = None

    def begin(self) -> Injected:
        """Ask the supervisor in a thread of its own."""
        verb = self.given.verb
        self._typing = threading.Thread(target=self._ask, name=f"operator-{verb}", daemon=True)
        at_s = time.monotonic()
        self._typing.start()
        return Injected(at_s, note=verb)

    def _ask(self) -> None:
        verb = "protect" if self.given.verb == "reprotect" else self.given.verb
        try:
            self.pair.ask(f"pair-{verb}", self.given.timeout_s, **self.given.arguments)
        except ColoctlError as refused:
            self._answer = f"{refused.code}: {refused.message}"
        else:
            self._answer = "done"

    def heal(self) -> None:
        """Wait for the answer."""
        if self._typing is not None:
            self._typing.join(self.given.timeout_s + 10)
            self._answer = self._answer or "no answer"

    def result(self) -> str:
        """Return "done" or the reason of the refusal; empty while the answer is awaited."""
        return self._answer
