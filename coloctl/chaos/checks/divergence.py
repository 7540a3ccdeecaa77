"""Whether a secondary that was ruined was noticed in time, and none that was sound was accused."""

from __future__ import annotations

from pydantic import Field

from coloctl.chaos.checks.check import Check, Params, count, invalid, unknown, valid, when
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import FaultRecord
from coloctl.model.observation import Diagnosis

NOTICED, NONE_ACCUSED = "ruin_noticed", "none_accused"
#: The fault that ruins a secondary.
RUIN = "ruin"


class Noticed(Params):
    """``checkpoints``: how many may be completed before the divergence is diagnosed."""

    checkpoints: int = Field(default=5, ge=1)


def _accusations(evidence: Evidence) -> list[tuple[float, str]]:
    return [
        (said.at_s, str(said.data.get("evidence", "")))
        for said in evidence.events
        if said.name == "DIAGNOSIS" and said.data.get("diagnosis") == Diagnosis.SECONDARY_DIVERGED
    ]


def _noticed(evidence: Evidence) -> list[float]:
    """When a ruined secondary was given up: diverged, or dead of its ruin."""
    kinds = (Diagnosis.SECONDARY_DIVERGED, Diagnosis.SECONDARY_DEAD)
    return [
        said.at_s
        for said in evidence.events
        if said.name == "DIAGNOSIS" and said.data.get("diagnosis") in kinds
    ]


def _ruined(evidence: Evidence) -> list[FaultRecord]:
    return [one for one in evidence.faults if one.fault.kind == RUIN and not one.missed]


def _taken(evidence: Evidence, begin_s: float, end_s: float) -> int:
    return sum(
        said.name == "CHECKPOINT" and said.data["phase"] == "end" and begin_s < said.at_s <= end_s
        for said in evidence.events
    )


def ruin_noticed(evidence: Evidence, params: Noticed) -> Verdict:
    """Each secondary that was ruined was given up within that many checkpoints."""
    ruined = _ruined(evidence)
    if not ruined or not evidence.events:
        return unknown(NOTICED, "no secondary was ruined, or no event was heard")
    told, late = [], []
    for one in ruined:
        ends = (later.at_s for later in ruined if later.at_s > one.at_s)
        until_s = min(ends, default=float("inf"))
        found = [at_s for at_s in _noticed(evidence) if one.at_s <= at_s < until_s]
        if not found:
            late.append(f"{when(evidence, one.at_s)}: {one.fault.name} was never noticed")
            continue
        taken = _taken(evidence, one.at_s, found[0])
        line = f"after {count(taken, 'checkpoint')} and {found[0] - one.at_s:.2f} s"
        told.append(line)
        if taken > params.checkpoints:
            late.append(f"{when(evidence, one.at_s)}: {one.fault.name} was noticed {line}")
    if late:
        return invalid(NOTICED, f"of {count(len(ruined), 'ruin')} {len(late)} too late", late)
    return valid(NOTICED, f"{count(len(ruined), 'ruin')} noticed: {', '.join(told)}")


def none_accused(evidence: Evidence, _: Params) -> Verdict:
    """No secondary was said to have diverged but one that was ruined."""
    if not evidence.events:
        return unknown(NONE_ACCUSED, "no event was heard")
    ruined = _ruined(evidence)
    wrong = [
        f"{when(evidence, at_s)}: {because}"
        for at_s, because in _accusations(evidence)
        if not any(one.at_s <= at_s for one in ruined)
    ]
    if wrong:
        return invalid(NONE_ACCUSED, f"{count(len(wrong), 'sound secondary')} accused", wrong)
    return valid(NONE_ACCUSED, "no sound secondary was accused")


CHECKS = {
    NOTICED: Check(
        "A ruined secondary is diagnosed within `checkpoints` checkpoints.", ruin_noticed, Noticed
    ),
    NONE_ACCUSED: Check("No sound secondary is said to have diverged.", none_accused),
}
