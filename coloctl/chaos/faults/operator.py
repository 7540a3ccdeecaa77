"""An operator who does something while other things happen: he may be refused, and may wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Params
from coloctl.chaos.scenario.values import Planned
from coloctl.errors import ColoctlError

#: What a verb asks the supervisor for; "reprotect" is how people call a second "protect".
COMMANDS: Mapping[str, str] = {
    "protect": "pair-protect",
    "reprotect": "pair-protect",
    "unprotect": "pair-unprotect",
    "switchover": "pair-switchover",
    "failover": "pair-failover",
    "pause": "pair-pause",
    "resume": "pair-resume",
    "start": "pair-start",
    "checkpoint": "pair-checkpoint",
    "fence-confirm": "pair-fence-confirm",
}


class Operator(Params):
    """What he asks for, and how long he waits for the answer."""

    verb: Literal[
        "protect",
        "reprotect",
        "unprotect",
        "switchover",
        "failover",
        "pause",
        "resume",
        "start",
        "checkpoint",
        "fence-confirm",
    ] = "checkpoint"
    timeout_s: float = Field(120.0, gt=0)
    #: Further arguments of the command, such as ``to`` and ``force`` of a failover.
    arguments: Mapping[str, Any] = Field(default_factory=dict)


def operate(_ground: Ground, fault: Planned, ask: Ask) -> Blow:
    """The supervisor was asked. Healing waits for its answer, which is the outcome then."""
    answers: list[str] = []
    verb, timeout_s = fault.params["verb"], float(fault.params["timeout_s"])
    arguments = fault.params.get("arguments") or {}

    def type_it() -> None:
        try:
            ask(COMMANDS[verb], timeout_s, **arguments)
        except ColoctlError as refused:
            answers.append(f"{refused.code}: {refused.message}")
        else:
            answers.append("done")

    typing = threading.Thread(target=type_it, name=f"operator-{verb}", daemon=True)
    at_s = time.monotonic()
    typing.start()

    def heal() -> None:
        typing.join(timeout_s + 10)
        if typing.is_alive():
            answers.append("no answer")

    return Blow(at_s, heal, note=verb, outcome=lambda: answers[0] if answers else "")


FAULTS: Mapping[str, FaultKind] = {
    "operator": FaultKind(
        "An operator asks for something.", operate, ("pair",), Operator, lasting=True
    ),
}
