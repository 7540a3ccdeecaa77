"""The supervisor's own record: every state follows the table, every promotion a fence and a claim,
and nobody is told of a survivor before its QEMU has left COLO.

What proves the last is an event of QEMU itself: with ``x-colo-lost-heartbeat`` the migration of the
survivor, of either role, goes from ``colo`` to ``completed``, and QEMU says so (MIGRATION). Its
COLO_EXIT proves nothing: a secondary sends it already when its peer is gone, and waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coloctl.chaos.checks import lives
from coloctl.chaos.checks.check import Check, Params, count, invalid, unknown, valid, when
from coloctl.chaos.checks.verdict import Verdict
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.model.event import Kind, Record
from coloctl.model.protection import Fact, Protection, advance

CHECK = "journal_consistent"
#: `DeathProof.how`; an agent's or a person's word may stand before it.
PROOFS = ("sigterm", "sigkill", "already-dead", "identity-gone")


def journal_consistent(evidence: Evidence, _: Params) -> Verdict:
    """What was recorded and said is what may happen, in the order in which it may happen."""
    journal = evidence.journal
    announced = list(announcements(evidence))
    wrong = [
        *_sequence(journal),
        *_states(journal),
        *_promotions(journal),
        *_survivors(journal),
        *(_early(evidence, one) for one in announced if one.promoted is False),
    ]
    if wrong:
        return invalid(CHECK, "the supervisor did what it must not, or in the wrong order", wrong)
    states = sum(record.kind is Kind.STATE for record in journal)
    if not states:
        return unknown(CHECK, "there is no journal, or no state in it")
    promotions = lives.promotions(journal)
    if open_ := [one for one in announced if one.promoted is None]:
        return unknown(
            CHECK,
            f"nobody heard node {open_[0].survivor or '?'} leave COLO before it was announced at "
            f"{when(evidence, open_[0].said.at_s)}",
        )
    if promotions and not announced:
        return unknown(CHECK, f"{count(len(promotions), 'promotion')}, and no event tells of them")
    told = f"{count(len(journal), 'record')}, {count(states, 'state')}"
    return valid(CHECK, f"{told}, {count(len(promotions), 'promotion')}")


def _sequence(journal: Sequence[Record]) -> Iterator[str]:
    for earlier, later in pairwise(journal):
        if later.seq <= earlier.seq:
            yield f"line {later.seq} stands behind line {earlier.seq}"


def _states(journal: Sequence[Record]) -> Iterator[str]:
    """States that do not follow from the ones before and the table."""
    last: Record | None = None
    for record in (one for one in journal if one.kind is Kind.STATE):
        if last is not None and record.before != last.after:
            yield (
                f"line {record.seq}: {record.fact} found the pair {record.before}, line "
                f"{last.seq} left it {last.after}"
            )
        last = record
        try:
            step = advance(Protection(record.before), Fact(record.fact))
        except ValueError as error:
            yield f"line {record.seq}: {error}"
            continue
        if (step.after, step.listed) != (record.after, record.data.get("listed", step.listed)):
            yield (
                f"line {record.seq}: {record.before} became {record.after} by {record.fact}; "
                f"the table says {step.after}"
            )


def _promotions(journal: Sequence[Record]) -> Iterator[str]:
    """Promotions without a proof, or with that of another process than the node's."""
    for one in lives.promotions(journal):
        line, fence = one.intent.seq, one.fence
        if fence is None and one.intent.act == "start" and _down_at(journal, line):
            continue  # an operator has named the disks to begin with: there was nobody to fence
        if fence is None:
            yield f"line {line}: generation {one.intent.generation} was promoted without a fence"
        elif not str(fence.data["how"]).endswith(PROOFS):
            yield f"line {fence.seq}: '{fence.data['how']}' does not prove node {fence.node} dead"
        else:
            launched = [
                record.data["pid"]
                for record in journal
                if record.node == fence.node and "launched" in record.data
                if record.seq < fence.seq
            ]
            if launched and fence.data.get("pid", launched[-1]) != launched[-1]:
                yield (
                    f"line {fence.seq}: process {fence.data['pid']} is dead, node {fence.node} "
                    f"was process {launched[-1]}"
                )


def _down_at(journal: Sequence[Record], line: int) -> bool:
    """Whether the last state before that line says that nothing of the pair runs."""
    states = [one.after for one in journal if one.kind is Kind.STATE and one.seq < line]
    return bool(states) and states[-1] == Protection.DOWN


def _survivors(journal: Sequence[Record]) -> Iterator[str]:
    """Survivors that nothing was claimed for since the other node was lost."""
    claimed = False
    for record in journal:
        if record.kind is Kind.INTENT and record.step == "promote":
            claimed = True
        elif record.kind is not Kind.STATE:
            continue
        elif record.fact == Fact.NODE_LOST:
            claimed = False
        elif record.fact in (Fact.SURVIVOR_RUNS, Fact.OPERATOR_CLEARED) and not claimed:
            yield f"line {record.seq}: {record.fact}, and no promotion was claimed before"


@dataclass(frozen=True)
class Announcement:
    """The first word that a survivor runs; ``promoted``: it did by then, did not, or None."""

    said: ObservedEvent
    survivor: str
    promoted: bool | None


def announcements(evidence: Evidence) -> Iterator[Announcement]:
    """One for each failover that was heard."""
    events = evidence.events
    entered = 0  # where the failover began that the next word is about
    told = False
    for place, said in enumerate(events):
        if said.name == "STATE_CHANGED" and said.data["after"] == Protection.FAILOVER:
            entered, told = place, False
        elif _tells(said) and not told:
            told = True
            survivor, role = _survivor(events[place:])
            promoted = _promoted(events, place, survivor)
            if promoted is None and role == "secondary":  # what was heard counts more
                since_s = events[entered].at_s
                if _heard_on_lan(evidence, survivor, since_s, said.at_s):
                    promoted = True
            yield Announcement(said, survivor, promoted)
        elif said.name == "STATE_CHANGED" and said.data["after"] == Protection.COLO:
            told = False


def _tells(said: ObservedEvent) -> bool:
    if said.name == "FAILED_OVER":
        return True
    left = (Protection.FAILOVER, Protection.FAILED)
    return (
        said.name == "STATE_CHANGED"
        and said.data["before"] in left
        and said.data["after"] == Protection.UNPROTECTED
    )


def _survivor(events: Sequence[ObservedEvent]) -> tuple[str, str]:
    """Who it was, and what it was before, by the timeline that follows."""
    timelines = (said.data["timeline"] for said in events if said.name == "FAILED_OVER")
    timeline = next(timelines, None)
    return (timeline["survivor"], timeline["role_before"]) if timeline else ("", "")


def _promoted(events: Sequence[ObservedEvent], place: int, survivor: str) -> bool | None:
    """Whether the survivor's QEMU had left COLO; None when that was not heard at all."""
    left: bool | None = None
    for number, said in enumerate(events):
        if said.name != "NODE_EVENT" or said.data["node"] != survivor:
            continue
        if said.data["event"] != "MIGRATION":
            continue
        status = said.data["data"].get("status")
        if status == "colo":
            if number > place:
                break
            left = None
        elif status == "completed" and left is None:
            left = number < place
    return left


def _heard_on_lan(evidence: Evidence, node: str, from_s: float, to_s: float) -> bool:
    """A secondary is not heard before it is promoted."""
    return any(one.node == node and from_s < one.first_s < to_s for one in evidence.frames)


def _early(evidence: Evidence, one: Announcement) -> str:
    return (
        f"{when(evidence, one.said.at_s)}: {one.said.name} told that node {one.survivor} runs the "
        "guest; its QEMU left COLO only afterwards"
    )


CHECKS = {
    CHECK: Check(
        "The journal follows the table of states; every promotion is claimed, behind the proof "
        "that the other node is dead; no survivor is announced before its QEMU has left COLO.",
        journal_consistent,
    )
}
