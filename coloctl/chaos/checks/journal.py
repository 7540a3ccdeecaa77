"""Check the supervisor's own record: states, fences, claims, and when a survivor is announced.

Every state must follow the table of `model.protection`, every promotion a claim and a proof that
the other node is dead; the start of a pair that is down needs no proof. No survivor may be
announced before its QEMU has left COLO. The proof is an event MIGRATION of the
survivor, of either role: after ``x-colo-lost-heartbeat`` its migration goes from ``colo`` to
``completed``. Its COLO_EXIT proves nothing: a secondary sends it as soon as its peer is
gone, and waits. Frames of a promoted secondary on the LAN count too. Example: FAILED_OVER at 5.2 s,
MIGRATION completed at 5.3 s: the survivor was announced too early. Registered in `chaos.checks`,
whose checks `chaos.run.runner` calls; reads promotions from `chaos.evidence.chronicle`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from coloctl.chaos.checks.verdict import Verdict, check, count, invalid, unknown, valid, when
from coloctl.chaos.evidence.chronicle import Promotion
from coloctl.chaos.evidence.evidence import Evidence
from coloctl.chaos.evidence.records import ObservedEvent
from coloctl.chaos.scenario.tables import Params
from coloctl.model.event import LAUNCHED, Kind, Record
from coloctl.model.pair import Role
from coloctl.model.protection import Fact, Protection, advance

#: `DeathProof.how`; what an agent or a person confirmed may stand before it.
PROOFS = ("sigterm", "sigkill", "already-dead", "identity-gone")
#: The end of a fence without a proof (`ha.fencing`), enough for a secondary alone.
OUT_OF_REACH = "out-of-reach"


@check()
def journal_consistent(evidence: Evidence, _: Params) -> Verdict:
    """Require that the journal follows the table of states, that every promotion is claimed after
    the proof that the other node is dead, and that no survivor is announced before its QEMU has
    left COLO.

    Unknown without a journal or a state in it, where no event shows that an announced survivor left
    COLO, and where no failover of a promotion sent an event.
    """
    journal, promotions = evidence.journal, evidence.chronicle.promotions
    announced = list(announcements(evidence))
    wrong = [
        *_sequence(journal),
        *_states(journal),
        *_unproven(journal, promotions),
        *_survivors(journal),
        *(_early(evidence, one) for one in announced if one.promoted is False),
    ]
    if wrong:
        return invalid("the supervisor did what it must not, or in the wrong order", wrong)
    states = sum(record.kind is Kind.STATE for record in journal)
    if not states:
        return unknown("there is no journal, or no state in it")
    if open_ := [one for one in announced if one.promoted is None]:
        return unknown(
            f"no event shows that node {open_[0].survivor or '?'} left COLO before it was "
            f"announced at {when(evidence, open_[0].event.at_s)}"
        )
    if promotions and not announced:
        return unknown(f"{count(len(promotions), 'promotion')}, and no event of any was received")
    records = f"{count(len(journal), 'record')}, {count(states, 'state')}"
    return valid(f"{records}, {count(len(promotions), 'promotion')}")


def _sequence(journal: Sequence[Record]) -> Iterator[str]:
    for earlier, later in pairwise(journal):
        if later.seq <= earlier.seq:
            yield f"line {later.seq} comes after line {earlier.seq}"


def _states(journal: Sequence[Record]) -> Iterator[str]:
    """Find states that do not follow from the ones before and the table."""
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
                f"the table has {step.after}"
            )


def _unproven(journal: Sequence[Record], promotions: Sequence[Promotion]) -> Iterator[str]:
    """Find promotions whose fence does not prove the other node dead.

    It is missing, names no accepted proof, or proves the death of a process that was not the one
    launched last on that node. A secondary whose machine is out of reach needs no proof: without a
    claim it never takes over, and the survivor has the claim.
    """
    for one in promotions:
        line, fence = one.intent.seq, one.fence
        if fence is None and one.intent.act == "start" and _down_at(journal, line):
            continue  # an operator has named the disks to begin with: there was no node to fence
        if fence is None:
            yield f"line {line}: generation {one.intent.generation} was promoted without a fence"
        else:
            yield from _unaccepted(journal, fence)


def _unaccepted(journal: Sequence[Record], fence: Record) -> Iterator[str]:
    """Find why the fence of a node allows no promotion."""
    how, there = str(fence.data["how"]), f"node {fence.node}"
    launched = [
        (record.data["pid"], record.data[LAUNCHED])
        for record in journal
        if record.node == fence.node and LAUNCHED in record.data
        if record.seq < fence.seq
    ]
    pid, role = launched[-1] if launched else (None, None)
    if not (how.endswith(PROOFS) or (how == OUT_OF_REACH and role == Role.SECONDARY)):
        yield f"line {fence.seq}: '{how}' does not prove {there} dead"
    elif pid is not None and fence.data.get("pid", pid) != pid:
        yield f"line {fence.seq}: process {fence.data['pid']} is dead, {there} was process {pid}"


def _down_at(journal: Sequence[Record], line: int) -> bool:
    """Return whether no QEMU of the pair ran by the last state before that line."""
    states = [one.after for one in journal if one.kind is Kind.STATE and one.seq < line]
    return bool(states) and states[-1] == Protection.DOWN


def _survivors(journal: Sequence[Record]) -> Iterator[str]:
    """Find survivors for which no generation was claimed since the other node was lost."""
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
    """The first event that a survivor runs.

    ``promoted``: its QEMU had left COLO by then (True), left later (False), or it is not known.
    """

    event: ObservedEvent
    survivor: str
    promoted: bool | None


def announcements(evidence: Evidence) -> Iterator[Announcement]:
    """Return the first announcement of each failover, in order of events.

    A failover of which no such event was received has none. ``survivor`` is empty without a
    timeline.
    """
    events = evidence.events
    entered = 0  # the place at which the failover began
    announced = False
    for place, event in enumerate(events):
        if event.name == "STATE_CHANGED" and event.data["after"] == Protection.FAILOVER:
            entered, announced = place, False
        elif _announces(event) and not announced:
            announced = True
            survivor, role = _survivor(events[place:])
            promoted = _promoted(events, place, survivor)
            if promoted is None and role == "secondary":  # frames on the LAN prove it as well
                since_s = events[entered].at_s
                if _heard_on_lan(evidence, survivor, since_s, event.at_s):
                    promoted = True
            yield Announcement(event, survivor, promoted)
        elif _protected(event):
            announced = False


def _protected(event: ObservedEvent) -> bool:
    return event.name == "STATE_CHANGED" and event.data["after"] == Protection.COLO


def _announces(event: ObservedEvent) -> bool:
    if event.name == "FAILED_OVER":
        return True
    left = (Protection.FAILOVER, Protection.FAILED)
    return (
        event.name == "STATE_CHANGED"
        and event.data["before"] in left
        and event.data["after"] == Protection.UNPROTECTED
    )


def _survivor(events: Sequence[ObservedEvent]) -> tuple[str, str]:
    """Return the node and its role before, by the timeline that follows.

    A supervisor that is killed before it sends one has none: the next is of another failover.
    """
    same = takewhile(lambda event: not _protected(event), events)
    timelines = (event.data["timeline"] for event in same if event.name == "FAILED_OVER")
    timeline = next(timelines, None)
    return (timeline["survivor"], timeline["role_before"]) if timeline else ("", "")


def _promoted(events: Sequence[ObservedEvent], place: int, survivor: str) -> bool | None:
    """Return whether the survivor's QEMU left COLO before event number ``place``.

    None if no event shows that it left.
    """
    left: bool | None = None
    for number, event in enumerate(events):
        if event.name != "NODE_EVENT" or event.data["node"] != survivor:
            continue
        if event.data["event"] != "MIGRATION":
            continue
        status = event.data["data"].get("status")
        if status == "colo":
            if number > place:
                break
            left = None
        elif status == "completed" and left is None:
            left = number < place
    return left


def _heard_on_lan(evidence: Evidence, node: str, from_s: float, to_s: float) -> bool:
    """Return whether frames of the node began in that time; a secondary sends none."""
    return any(one.node == node and from_s < one.first_s < to_s for one in evidence.frames)


def _early(evidence: Evidence, one: Announcement) -> str:
    return (
        f"{when(evidence, one.event.at_s)}: {one.event.name} announced that node {one.survivor} "
        "runs the guest; its QEMU left COLO only afterwards"
    )
