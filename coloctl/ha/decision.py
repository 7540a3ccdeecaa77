"""What is done about a diagnosis: one table per phase, and the doubts that stop a failover.

Invariants: a node is given up only when the other answers and holds what clients saw acknowledged;
a secondary is promoted only from COLO, where it holds a complete checkpoint of this generation, and
never when its disk missed a write or its guest has diverged; nothing is decided while an act that
decides is under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from coloctl.ha.analysis import ended_by_reset
from coloctl.ha.eligibility import answer_objection, data_objection, diverged
from coloctl.ha.monitoring_path import holder, members
from coloctl.ha.unfenced import goes_on
from coloctl.model.observation import Diagnosis, Finding, Life, Observation
from coloctl.model.pair import NodeName, OnPanic, Policy, Role, other
from coloctl.model.protection import Protection


class Action(StrEnum):
    """What the supervisor does now."""

    NONE = "none"
    REPORT = "report"  #: people are told, the pair is left alone
    FAIL_OVER = "fail-over"  #: `Decision.lost` is fenced, the other runs the guest alone
    ABANDON = "abandon"  #: the secondary is given up before it was one; the guest runs on
    END = "end"  #: the guest is gone, so is the pair
    RESTART = "restart"  #: the guest is reset
    WAIT = "wait"  #: something would be done, and may not or cannot be done now


@dataclass(frozen=True)
class Decision:
    """An action with its reason."""

    action: Action
    lost: NodeName | None = None  #: the node to give up
    reason: str = ""  #: sentences for an operator


class Response(StrEnum):
    """What a diagnosis asks for, before anybody asks whether it can be done."""

    NOTHING = "nothing"
    REPORT = "report"
    GIVE_UP_IT = "give-up-it"  #: the node that the finding is about
    GIVE_UP_BY_ROLE = "give-up-by-role"  #: both live: the one that `LINK_LOSER` names
    ABANDON = "abandon"
    END = "end"
    BOOT = "boot"  #: the guest starts anew: alone, where its secondary would not survive that
    PANIC = "panic"  #: as the policy says
    RESTART = "restart"


#: Both live and cannot speak with each other: the other one keeps the guest. The primary does so by
#: default, because its clients are there; the secondary would serve as well.
LINK_LOSER = Role.SECONDARY

_D = Diagnosis
_C = Response

#: Both nodes hold the guest. `_course` looks closer at the node and at a local disk's error.
TOGETHER: Mapping[Diagnosis, Response] = {
    _D.HEALTHY: _C.NOTHING,
    _D.PRIMARY_DEAD: _C.GIVE_UP_IT,
    _D.SECONDARY_DEAD: _C.GIVE_UP_IT,
    _D.PRIMARY_FROZEN: _C.GIVE_UP_IT,
    _D.SECONDARY_FROZEN: _C.GIVE_UP_IT,
    _D.SECONDARY_DIVERGED: _C.GIVE_UP_IT,
    _D.HOST_UNREACHABLE: _C.GIVE_UP_IT,  # only a fence can prove what nobody sees
    _D.LINK_BROKEN: _C.GIVE_UP_BY_ROLE,
    _D.CHECKPOINT_STALLED: _C.GIVE_UP_IT,
    _D.REPLICA_WRITE_ERROR: _C.GIVE_UP_IT,
    _D.LOCAL_DISK_ERROR: _C.GIVE_UP_IT,
    _D.GUEST_HELD: _C.GIVE_UP_BY_ROLE,  # before the next checkpoint, at which QEMU would abort
    _D.MONITOR_HUNG: _C.REPORT,
    _D.GUEST_SHUTDOWN: _C.END,
    _D.GUEST_RESET: _C.BOOT,
    _D.GUEST_PANIC: _C.PANIC,  # both guests panic alike: a failover would win nothing
    _D.UNKNOWN: _C.REPORT,
}

#: The guest runs on the primary; the secondary is being made. What is about the primary is
#: reported, see `_course`.
JOINING: Mapping[Diagnosis, Response] = {
    **TOGETHER,
    _D.PRIMARY_DEAD: _C.END,
    _D.PRIMARY_FROZEN: _C.REPORT,
    _D.SECONDARY_DEAD: _C.ABANDON,
    _D.SECONDARY_FROZEN: _C.ABANDON,
    _D.SECONDARY_DIVERGED: _C.ABANDON,
    _D.HOST_UNREACHABLE: _C.ABANDON,
    _D.LINK_BROKEN: _C.ABANDON,
    _D.CHECKPOINT_STALLED: _C.ABANDON,
    _D.REPLICA_WRITE_ERROR: _C.ABANDON,
    _D.LOCAL_DISK_ERROR: _C.ABANDON,
    _D.GUEST_HELD: _C.ABANDON,
}

#: There is no secondary.
ALONE: Mapping[Diagnosis, Response] = {
    **dict.fromkeys(Diagnosis, _C.REPORT),
    _D.HEALTHY: _C.NOTHING,
    _D.PRIMARY_DEAD: _C.END,
    _D.GUEST_SHUTDOWN: _C.END,
    _D.GUEST_RESET: _C.BOOT,
    _D.GUEST_PANIC: _C.PANIC,
}

#: One node is already held for lost. Where both answer again, the primary has the newest guest, and
#: whether its session with the secondary still holds is not known: it goes on alone.
FAILING_OVER: Mapping[Diagnosis, Response] = {
    **TOGETHER,
    **dict.fromkeys(
        (_D.HEALTHY, _D.MONITOR_HUNG, _D.GUEST_RESET, _D.GUEST_PANIC), _C.GIVE_UP_BY_ROLE
    ),
}

COURSES: Mapping[Protection, Mapping[Diagnosis, Response]] = {
    Protection.DOWN: ALONE,
    Protection.UNPROTECTED: ALONE,
    Protection.RESYNC: JOINING,
    Protection.MIGRATING: JOINING,
    Protection.COLO: TOGETHER,
    Protection.FAILOVER: FAILING_OVER,
}

#: These acts decide about the pair themselves.
DECIDING_ACTS = frozenset({"failover", "stop", "adopt"})


def decide(
    finding: Finding,
    seen: Observation,
    policy: Policy,
    *,
    paused: bool,
    acting: str = "",
    pair: str = "PAIR",
) -> Decision:
    """What is done about ``finding``, which was made from ``seen``; never raises.

    ``acting`` names the act under way, ``pair`` the pair in the commands that the reason names.
    """
    return _held_back(finding, seen, acting, pair) or _on_course(
        finding, seen, policy, paused=paused, pair=pair
    )


def _held_back(finding: Finding, seen: Observation, acting: str, pair: str) -> Decision | None:
    said = finding.sentence()
    if seen.protection is Protection.FAILED:
        if acting in DECIDING_ACTS:
            return Decision(Action.WAIT, None, f"{said} '{acting}' is under way.")
        if seen.unfenced is not None:
            may, why = goes_on(seen.unfenced, seen, pair)
            if may:
                return Decision(Action.FAIL_OVER, seen.unfenced, why)
            return Decision(Action.WAIT, None, f"{said} {why}")
        said += " An earlier failover failed, so only an operator goes on:"
        return Decision(
            Action.WAIT, None, f"{said} `coloctl failover {pair} --force` tries it again."
        )
    if acting in DECIDING_ACTS:
        return Decision(Action.WAIT, None, f"{said} '{acting}' is under way.")
    return None


def _on_course(
    finding: Finding, seen: Observation, policy: Policy, *, paused: bool, pair: str
) -> Decision:
    course, said = _course(finding, seen), finding.sentence()
    if course in (Response.BOOT, Response.PANIC):
        course = _of_the_guest(course, seen, policy, paused=paused)
    if course is Response.NOTHING:
        return Decision(Action.NONE)
    if course in (Response.REPORT, Response.RESTART):
        return Decision(Action(course.value), None, said)
    if course is Response.END:
        return _end(finding, seen, pair)
    if course is Response.ABANDON:
        return _abandon(said, seen, paused=paused, pair=pair)
    lost = finding.node
    if course is Response.BOOT:
        lost = holder(seen, Role.SECONDARY)
    if course is Response.GIVE_UP_BY_ROLE:
        # One whose failover went no further than the proof of its death is seen no more.
        left = members(seen)
        lost = other(left[0]) if len(left) == 1 else holder(seen, LINK_LOSER)
        if finding.diagnosis not in (Diagnosis.LINK_BROKEN, Diagnosis.GUEST_HELD):
            said += " The pair is already held for broken, so one node goes on alone."
    if lost is None:
        return Decision(Action.WAIT, None, f"{said} No node is left to choose between.")
    return _give_up(lost, said, finding, seen, policy, paused=paused, pair=pair)


def _end(finding: Finding, seen: Observation, pair: str) -> Decision:
    """The end, unless somebody lives on whom belief has not caught up with."""
    said = finding.sentence()
    living = [node for node in members(seen) if seen.nodes[node].life is not Life.DEAD]
    if COURSES[seen.protection] is ALONE and living and finding.node not in living:
        # Nobody was expected there: it may be the survivor of a change that is not yet known here.
        return Decision(
            Action.WAIT,
            None,
            f"{said} Node {living[0]} is not known to hold the guest, and lives: "
            f"`coloctl status {pair}` shows what it does.",
        )
    return Decision(Action.END, None, f"{said} The pair ends with its guest.")


def _course(finding: Finding, seen: Observation) -> Response:
    courses = COURSES[seen.protection]
    if courses is ALONE and holder(seen, Role.SECONDARY):
        courses = JOINING  # it has been launched, and is on its way
    course = courses[finding.diagnosis]
    node = finding.node
    if course not in (Response.GIVE_UP_IT, Response.ABANDON) or node is None:
        return course
    wrote = not {"local-write-error", "guest-held"}.isdisjoint(seen.nodes[node].notices)
    if finding.diagnosis is Diagnosis.LOCAL_DISK_ERROR and not wrote:
        # A read: the guest was given the replica's data.
        parting = seen.protection is Protection.FAILOVER
        return Response.GIVE_UP_BY_ROLE if parting else Response.REPORT
    if course is Response.ABANDON and seen.nodes[node].role is Role.PRIMARY:
        # The secondary holds nothing yet, so the guest stays where it is; a checkpoint that a
        # primary cannot finish is given up with the secondary.
        ends_it = finding.diagnosis in (Diagnosis.CHECKPOINT_STALLED, Diagnosis.GUEST_HELD)
        return Response.ABANDON if ends_it else Response.REPORT
    if finding.diagnosis in (Diagnosis.PRIMARY_DEAD, Diagnosis.SECONDARY_DEAD):
        peer = seen.nodes.get(other(node))
        if peer is not None and peer.life is Life.DEAD:
            return Response.END
    return course


def _of_the_guest(course: Response, seen: Observation, policy: Policy, *, paused: bool) -> Response:
    """What follows where the guest itself is the matter; it is left alone while the pair is paused.

    ``BOOT`` where its secondary is to be given up for that.
    """
    if paused:
        return Response.REPORT
    panicked = course is Response.PANIC or ended_by_reset(seen)
    if panicked and policy.on_panic is OnPanic.STOP:
        return Response.END
    if course is Response.PANIC:
        return Response.RESTART if policy.on_panic is OnPanic.RESTART else Response.REPORT
    if not seen.boots_alone or holder(seen, Role.SECONDARY) is None:
        return Response.REPORT
    if seen.protection is not Protection.COLO:
        return Response.ABANDON
    return Response.BOOT if policy.auto_failover else Response.REPORT


def _abandon(said: str, seen: Observation, *, paused: bool, pair: str) -> Decision:
    secondary = holder(seen, Role.SECONDARY)
    if secondary is None:
        return Decision(Action.REPORT, None, said)
    if paused:
        return Decision(
            Action.WAIT,
            None,
            f"{said} Node {secondary} would be given up, but the pair is paused: "
            f"`coloctl resume {pair}` lets that happen.",
        )
    return Decision(
        Action.ABANDON,
        secondary,
        f"{said} Node {secondary} is given up before it protects anything; the guest runs on.",
    )


def _give_up(
    lost: NodeName,
    said: str,
    finding: Finding,
    seen: Observation,
    policy: Policy,
    *,
    paused: bool,
    pair: str,
) -> Decision:
    survivor = other(lost)
    command = f"`coloctl failover {pair} --to {survivor}`"
    if objection := answer_objection(seen, survivor):
        return Decision(
            Action.WAIT,
            None,
            f"{said} Nothing is done by itself yet: {objection} `coloctl explain {pair}` shows "
            "what is seen.",
        )
    if objection := data_objection(seen, survivor):
        return Decision(
            Action.WAIT,
            None,
            f"{said} Nothing is done by itself: {objection} {_whole(lost, seen, pair)}"
            f"`coloctl failover {pair} --to {survivor} --force` accepts what that loses.",
        )
    if paused:
        return Decision(
            Action.WAIT,
            None,
            f"{said} Node {survivor} would run on alone, but the pair is paused: {command} does "
            f"it now, `coloctl resume {pair}` leaves it to the supervisor.",
        )
    if not policy.auto_failover:
        return Decision(
            Action.WAIT,
            None,
            f"{said} Node {survivor} would run on alone, but policy.auto_failover is false: "
            f"{command} does it.",
        )
    return Decision(Action.FAIL_OVER, lost, f"{said} {_gain(finding, seen, survivor)}")


def _whole(lost: NodeName, seen: Observation, pair: str) -> str:
    """Name the way that loses nothing, where only a diverged secondary is left."""
    if not diverged(seen, other(lost)):
        return ""
    return (
        f"Node {lost}'s disk has every write that was acknowledged to clients: `coloctl stop "
        f"{pair} --force`, then `coloctl start` with the pair file, boots the guest from there. "
    )


def _gain(finding: Finding, seen: Observation, survivor: NodeName) -> str:
    """Why nothing that a client saw acknowledged is lost."""
    if finding.diagnosis is Diagnosis.LOCAL_DISK_ERROR:
        return (
            f"Node {survivor}'s disk has every write that was acknowledged to the guest, so node "
            f"{survivor} runs on alone."
        )
    if finding.diagnosis is Diagnosis.GUEST_RESET and seen.boots_alone:
        return f"Under TCG no secondary survives that, so node {survivor} boots alone."
    if seen.nodes[survivor].role is Role.SECONDARY:
        return f"Node {survivor} takes the guest over and runs on alone."
    return f"Node {survivor} keeps the guest and runs on alone."
