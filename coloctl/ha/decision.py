"""Decide what the supervisor does about a finding; pure.

Called by `supervisor.reactor` at every observation, by `supervisor.evidence` for `explain`, by
`ha.triggers`, and by `supervisor.acts.powerdown`; asks `ha.eligibility` whether the survivor may
run alone.

A decision is made in two steps. First the table of the pair's phase (`ha.responses`) names what the
diagnosis asks for. Then a node is given up only if nothing speaks against the survivor:

1. It must answer now. A failover to a silent node would stop the guest. Otherwise: wait.
2. It must hold every write that clients saw acknowledged. A secondary qualifies only from COLO,
   where it holds a complete checkpoint of this generation, and never when its disk missed a write
   or its guest has diverged. Otherwise: wait, and the reason names the command that accepts the
   loss.
3. The pair is not paused, and policy.auto_failover is true. Otherwise: wait for the operator.

A failover that failed at its fence goes on only when the kernel has reported the death of the
node's QEMU, or an operator has confirmed that the node is off, and no objection is left.

Example: in COLO the replication link has been silent for longer than its limit, and both QEMUs
answer. The finding is link-broken. The table asks to give up one node by role, the secondary,
because clients are connected to the primary. The primary answers, so the decision is to fence the
secondary and let the primary run alone. Were the pair paused, the decision would be to wait, and
the reason would name `coloctl failover PAIR --to a`.

Invariant: nothing is decided while an act of `DECIDING_ACTS` runs. `decide` never raises and has an
answer for every diagnosis in every phase.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from coloctl.ha.analysis import ended_by_reset
from coloctl.ha.eligibility import answer_objection, data_objection, diverged
from coloctl.ha.monitoring_path import holder, members
from coloctl.ha.responses import ALONE, JOINING, LINK_LOSER, RESPONSES, Response
from coloctl.model.observation import Diagnosis, Finding, Life, Notice, Observation
from coloctl.model.pair import NodeName, OnPanic, Policy, Role, other
from coloctl.model.protection import Protection


class Action(StrEnum):
    """An act of the supervisor, or none."""

    NONE = "none"
    REPORT = "report"  #: shown to operators; the pair is left alone
    FAIL_OVER = "fail-over"  #: `Decision.lost` is fenced, the other runs the guest alone
    ABANDON = "abandon"  #: the secondary is given up before it was one; the guest runs on
    END = "end"  #: the guest is gone, so is the pair
    RESTART = "restart"  #: the guest is reset
    WAIT = "wait"  #: an action is due, and may not or cannot be taken now


@dataclass(frozen=True)
class Decision:
    """An action with its reason."""

    action: Action
    lost: NodeName | None = None  #: the node to give up
    reason: str = ""  #: sentences for an operator


#: Acts that decide about the pair themselves; nothing else is decided meanwhile.
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
    """Decide what is done about ``finding``, which was made from ``seen``; never raises.

    ``acting`` names the act under way, ``pair`` the pair in the commands that the reason names.
    """
    return _held_back(finding, seen, acting, pair) or _follow_table(
        finding, seen, policy, paused=paused, pair=pair
    )


def _held_back(finding: Finding, seen: Observation, acting: str, pair: str) -> Decision | None:
    said = finding.sentence()
    if seen.protection is Protection.FAILED:
        if acting in DECIDING_ACTS:
            return Decision(Action.WAIT, None, f"{said} '{acting}' is under way.")
        if seen.unfenced is not None:
            may, why = _goes_on(seen.unfenced, seen, pair)
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


def _goes_on(lost: NodeName, seen: Observation, pair: str) -> tuple[bool, str]:
    """Decide whether the node that is not ``lost`` may run the guest now, with the reason.

    The pair was in COLO when the failover began, so its survivor held a complete checkpoint.
    """
    survivor, node = other(lost), seen.nodes.get(lost)
    dead = node is not None and node.life is Life.DEAD
    if not (dead or seen.vouched):
        return False, (
            f"Node {lost} is not proven down, so node {survivor} may not run the guest yet: switch "
            f"node {lost} off, then confirm it with `coloctl fence confirm {pair} {lost}`; or "
            f"`coloctl failover {pair} --force` kills its QEMU. When that ends, the failover goes "
            "on by itself."
        )
    held = replace(seen, protection=Protection.FAILOVER)
    if objection := answer_objection(seen, survivor) or data_objection(held, survivor):
        return False, (
            f"Node {lost} is down, but {objection} `coloctl failover {pair} --to {survivor} "
            "--force` goes on all the same."
        )
    proof = "is dead, as the kernel proves" if dead else "is down, as an operator confirmed"
    return True, f"Node {lost} {proof}: node {survivor} runs the guest alone."


def _follow_table(
    finding: Finding, seen: Observation, policy: Policy, *, paused: bool, pair: str
) -> Decision:
    response, said = _response_to(finding, seen), finding.sentence()
    if response in (Response.BOOT, Response.PANIC):
        response = _of_the_guest(response, seen, policy, paused=paused)
    if response is Response.NOTHING:
        return Decision(Action.NONE)
    if response in (Response.REPORT, Response.RESTART):
        return Decision(Action(response.value), None, said)
    if response is Response.END:
        return _end(finding, seen, pair)
    if response is Response.ABANDON:
        return _abandon(said, seen, paused=paused, pair=pair)
    lost = finding.node
    if response is Response.BOOT:
        lost = holder(seen, Role.SECONDARY)
    if response is Response.GIVE_UP_BY_ROLE:
        # A node whose failover ended right after the proof of its death is not observed any more.
        left = members(seen)
        lost = other(left[0]) if len(left) == 1 else holder(seen, LINK_LOSER)
        if finding.diagnosis not in (Diagnosis.LINK_BROKEN, Diagnosis.GUEST_HELD):
            said += " The pair is already taken for broken, so one node goes on alone."
    if lost is None:
        return Decision(Action.WAIT, None, f"{said} No node is left to choose between.")
    return _give_up(lost, said, finding, seen, policy, paused=paused, pair=pair)


def _end(finding: Finding, seen: Observation, pair: str) -> Decision:
    """Decide to end the pair, unless a node lives that is not known to hold the guest."""
    said = finding.sentence()
    living = [node for node in members(seen) if seen.nodes[node].life is not Life.DEAD]
    if RESPONSES[seen.protection] is ALONE and living and finding.node not in living:
        # Not expected there: it may be the survivor of a change that is not yet known here.
        return Decision(
            Action.WAIT,
            None,
            f"{said} Node {living[0]} is not known to hold the guest, and lives: "
            f"`coloctl status {pair}` shows what it does.",
        )
    return Decision(Action.END, None, f"{said} The pair ends with its guest.")


def _response_to(finding: Finding, seen: Observation) -> Response:
    table = RESPONSES[seen.protection]
    if table is ALONE and holder(seen, Role.SECONDARY):
        table = JOINING  # it has been launched, and is on its way
    response = table[finding.diagnosis]
    node = finding.node
    if response not in (Response.GIVE_UP_IT, Response.ABANDON) or node is None:
        return response
    wrote = not {Notice.LOCAL_WRITE_ERROR, Notice.GUEST_HELD}.isdisjoint(seen.nodes[node].notices)
    if finding.diagnosis is Diagnosis.LOCAL_DISK_ERROR and not wrote:
        # A read: the guest was given the replica's data.
        parting = seen.protection is Protection.FAILOVER
        return Response.GIVE_UP_BY_ROLE if parting else Response.REPORT
    if response is Response.ABANDON and seen.nodes[node].role is Role.PRIMARY:
        # The secondary holds nothing yet, so the guest stays where it is; a checkpoint that a
        # primary cannot finish is given up with the secondary.
        ends_it = finding.diagnosis in (Diagnosis.CHECKPOINT_STALLED, Diagnosis.GUEST_HELD)
        return Response.ABANDON if ends_it else Response.REPORT
    if finding.diagnosis in (Diagnosis.PRIMARY_DEAD, Diagnosis.SECONDARY_DEAD):
        peer = seen.nodes.get(other(node))
        if peer is not None and peer.life is Life.DEAD:
            return Response.END
    return response


def _of_the_guest(
    response: Response, seen: Observation, policy: Policy, *, paused: bool
) -> Response:
    """Choose the response to a reset or a panic of the guest; none while the pair is paused.

    ``BOOT`` where its secondary is to be given up for that.
    """
    if paused:
        return Response.REPORT
    panicked = response is Response.PANIC or ended_by_reset(seen)
    if panicked and policy.on_panic is OnPanic.STOP:
        return Response.END
    if response is Response.PANIC:
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
    """Describe the way that loses nothing, where only a diverged secondary is left."""
    if not diverged(seen, other(lost)):
        return ""
    return (
        f"Node {lost}'s disk has every write that was acknowledged to clients: `coloctl stop "
        f"{pair} --force`, then `coloctl start` with the pair file, boots the guest from there. "
    )


def _gain(finding: Finding, seen: Observation, survivor: NodeName) -> str:
    """Explain why no write that a client saw acknowledged is lost."""
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
