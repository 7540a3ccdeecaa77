"""Diagnose a pair: name what one observation shows to be wrong, with its evidence; pure.

Called by `supervisor.reactor` for every observation and by `ha.triggers` for what may happen next,
and by `ha.decision` to know a reset; asks `ha.monitoring_path` which node is gone. The first of
`RULES` that holds gives the diagnosis, the worst first. Example: the secondary's process has ended
and the link is silent. Both rules hold; the death comes first and explains the silence, so the
finding is secondary-dead.

Invariants: every observation has exactly one diagnosis. More silence never lets an earlier rule
give way to a later one, so a pair never looks healthier for it. Where both nodes are silent and
neither is proven dead, no node is named, because neither may be chosen.
"""

from __future__ import annotations

from collections.abc import Callable

from coloctl.ha.divergence import proofs
from coloctl.ha.monitoring_path import (
    Gone,
    absence,
    both,
    gone,
    holder,
    members,
    out_of_reach,
    rescue_silence,
    runs_on,
)
from coloctl.ha.stalled import checkpoint_stalled
from coloctl.model.observation import Diagnosis, Finding, Life, Notice, Observation
from coloctl.model.pair import NODES, NodeName, Role, other

Rule = Callable[[Observation], Finding | None]

_HEALTHY = "Every monitoring path answers within its limit."


def diagnose(observation: Observation) -> Finding:
    """Return what the first of `RULES` that holds has found; never raises."""
    return ranked(observation)[1]


def ranked(observation: Observation) -> tuple[int, Finding]:
    """Return the number of the rule that held, the smaller the worse, and its finding."""
    for number, rule in enumerate(RULES):
        finding = rule(observation)
        if finding is not None:
            return number, finding
    return len(RULES), Finding(Diagnosis.HEALTHY, None, (_HEALTHY,))


# -- the rules, each for one line of docs/detection.md


def _same_role_twice(observation: Observation) -> Finding | None:
    held = [seen.role for seen in observation.nodes.values() if seen.role is not Role.NONE]
    if len(held) == len(set(held)):
        return None
    said = f"Both nodes are held for the {held[0]}: what is believed of this pair is wrong."
    return Finding(Diagnosis.UNKNOWN, None, (said,))


def _guest_shutdown(observation: Observation) -> Finding | None:
    said = "The guest on node {node} powered itself off."
    return _noticed(
        observation, Role.PRIMARY, Notice.GUEST_SHUTDOWN, Diagnosis.GUEST_SHUTDOWN, said
    )


def _primary_dead(observation: Observation) -> Finding | None:
    return _lost(observation, Role.PRIMARY, Gone.DEAD, Diagnosis.PRIMARY_DEAD)


def _secondary_dead(observation: Observation) -> Finding | None:
    return _lost(observation, Role.SECONDARY, Gone.DEAD, Diagnosis.SECONDARY_DEAD)


def _both_silent(observation: Observation) -> Finding | None:
    """Refuse to choose: what silenced both is as likely to be on the supervisor's side."""
    silent = [node for node in members(observation) if gone(observation, node)]
    if len(silent) < len(NODES):
        return None
    said = "Both nodes are silent and neither is proven dead: neither may be chosen."
    return Finding(
        Diagnosis.UNKNOWN, None, (said, *(absence(observation, node) for node in silent))
    )


def _primary_frozen(observation: Observation) -> Finding | None:
    return _lost(observation, Role.PRIMARY, Gone.FROZEN, Diagnosis.PRIMARY_FROZEN)


def _secondary_frozen(observation: Observation) -> Finding | None:
    return _lost(observation, Role.SECONDARY, Gone.FROZEN, Diagnosis.SECONDARY_FROZEN)


def _host_unreachable(observation: Observation) -> Finding | None:
    for role in (Role.PRIMARY, Role.SECONDARY):
        found = _lost(observation, role, Gone.UNREACHABLE, Diagnosis.HOST_UNREACHABLE)
        if found is not None:
            return found
    return None


def _too_little_known(observation: Observation) -> Finding | None:
    """Find a node of whose process nothing is known.

    Where only the agent of its machine is silent, its QEMU is likely to run on.
    """
    limits = observation.limits
    for node in members(observation):
        seen = observation.nodes[node]
        if seen.life is not Life.UNKNOWN:
            continue
        if out_of_reach(observation, node):
            said = (
                f"The agent on node {node}'s machine has reported nothing for "
                f"{seen.agent_silent_ms:.0f} ms (limit {limits.silent_ms:.0f} ms); "
                f"{runs_on(observation)}"
            )
            return Finding(Diagnosis.UNKNOWN, node, (said,))
        if seen.rescue_silent_ms >= limits.suspect_ms:
            silence = rescue_silence(observation, node)
            said = f"Nothing is known of node {node}'s process, and {silence}"
            return Finding(Diagnosis.UNKNOWN, node, (said,))
    return None


def _replica_write_error(observation: Observation) -> Finding | None:
    primary, secondary = both(observation)
    if not (primary and secondary):
        return None
    if Notice.REPLICA_WRITE_ERROR not in observation.nodes[primary].notices:
        return None
    said = f"A write of the guest on node {primary} did not reach node {secondary}'s disk."
    return Finding(Diagnosis.REPLICA_WRITE_ERROR, secondary, (said,))


def _secondary_diverged(observation: Observation) -> Finding | None:
    primary, secondary = both(observation)
    if not (primary and secondary):
        return None
    evidence = proofs(observation.contrast, primary, secondary)
    return Finding(Diagnosis.SECONDARY_DIVERGED, secondary, evidence) if evidence else None


def _local_write_error(observation: Observation) -> Finding | None:
    kind, said = Diagnosis.LOCAL_DISK_ERROR, "Node {node}'s own disk failed a write."
    # A secondary whose guest is stopped for a write: QEMU aborts at a checkpoint of such a guest.
    return (
        _noticed(observation, Role.PRIMARY, Notice.LOCAL_WRITE_ERROR, kind, said)
        or _noticed(observation, Role.SECONDARY, Notice.LOCAL_WRITE_ERROR, kind, said)
        or _noticed(observation, Role.SECONDARY, Notice.GUEST_HELD, kind, said)
    )


def _guest_held(observation: Observation) -> Finding | None:
    """Find a write that failed on every disk of the quorum, and so was not acknowledged.

    Comes after the errors of single disks.
    """
    said = "QEMU has stopped the guest on node {node}: a write of it found no room, and waits."
    return _noticed(observation, Role.PRIMARY, Notice.GUEST_HELD, Diagnosis.GUEST_HELD, said)


def _link_broken(observation: Observation) -> Finding | None:
    """Find a link that carries nothing, or not all, between two nodes that may both live.

    The primary's own COLO_EXIT counts, the secondary's does not: its primary may be dying. A node
    of which nothing is known may be what the link is silent about; `ha.eligibility` asks whether
    the other one may go on.
    """
    primary, secondary = both(observation)
    if not (primary and secondary):
        return None
    if any(observation.nodes[node].life is Life.STOPPED for node in (primary, secondary)):
        return None
    evidence, (joined, there) = [], _there(observation)
    silent_ms, limit_ms = observation.link_silent_ms, observation.limits.link_ms
    if silent_ms is not None and silent_ms >= limit_ms:
        evidence.append(
            f"Nothing has crossed the replication link for {silent_ms:.0f} ms (limit "
            f"{limit_ms:.0f} ms), {joined} {there}."
        )
    if (unacked_ms := observation.unacked_ms or 0.0) >= observation.limits.silent_ms:
        evidence.append(
            f"What goes to the other node's {observation.unacked_by} has had no answer for "
            f"{unacked_ms:.0f} ms (limit {observation.limits.silent_ms:.0f} ms), while the link "
            f"carries all else and {there}."
        )
    if Notice.COLO_EXIT in observation.nodes[primary].notices:
        evidence.append(f"Node {primary} has left COLO with an error, {joined} {there}.")
    if not evidence:
        return None
    return Finding(Diagnosis.LINK_BROKEN, None, (*evidence, *_parting(observation, secondary)))


def _monitor_hung(observation: Observation) -> Finding | None:
    limits = observation.limits
    for node in members(observation):
        seen = observation.nodes[node]
        if seen.rescue_silent_ms >= limits.silent_ms:
            said = f"Node {node}'s process works, but {rescue_silence(observation, node)}"
            return Finding(Diagnosis.MONITOR_HUNG, node, (said,))
    for node in members(observation):
        silent_ms = observation.nodes[node].command_silent_ms
        if silent_ms >= limits.command_ms:
            said = (
                f"Node {node}'s main loop has not answered for {silent_ms:.0f} ms (limit "
                f"{limits.command_ms:.0f} ms), while its monitor thread answers."
            )
            return Finding(Diagnosis.MONITOR_HUNG, node, (said,))
    return None


def _guest_panic(observation: Observation) -> Finding | None:
    """Find a panic; one that a reset has ended is over."""
    if ended_by_reset(observation):
        return None
    said = "The guest on node {node} says that its kernel panicked."
    return _noticed(observation, Role.PRIMARY, Notice.GUEST_PANIC, Diagnosis.GUEST_PANIC, said)


def _guest_reset(observation: Observation) -> Finding | None:
    said = "The guest on node {node} was reset and starts again."
    if ended_by_reset(observation):
        said = "The guest on node {node} says that its kernel panicked. It was reset."
    return _noticed(observation, Role.PRIMARY, Notice.GUEST_RESET, Diagnosis.GUEST_RESET, said)


def _local_read_error(observation: Observation) -> Finding | None:
    kind, said = Diagnosis.LOCAL_DISK_ERROR, "Node {node}'s own disk failed a read."
    return _noticed(observation, Role.PRIMARY, Notice.LOCAL_READ_ERROR, kind, said) or _noticed(
        observation, Role.SECONDARY, Notice.LOCAL_READ_ERROR, kind, said
    )


#: The worst first. An earlier rule hides a later one: a dead primary explains a silent link.
RULES: tuple[Rule, ...] = (
    _same_role_twice,
    _guest_shutdown,  # before the deaths: QEMU ends by itself when its guest powers off
    _primary_dead,
    _secondary_dead,
    _both_silent,
    _primary_frozen,
    _secondary_frozen,
    _host_unreachable,
    _replica_write_error,
    _local_write_error,
    _guest_held,
    _secondary_diverged,  # before rules that give the secondary up without naming that reason
    _link_broken,
    checkpoint_stalled,
    _guest_panic,
    _guest_reset,
    # After the rules that lead to an action, since it is only reported: a machine that is out of
    # reach for hours hides nothing that must be done meanwhile.
    _too_little_known,
    _monitor_hung,
    _local_read_error,
)


# -- evidence that several rules share


def ended_by_reset(observation: Observation) -> bool:
    """Return whether the primary's guest panicked and was reset after that."""
    node = holder(observation, Role.PRIMARY)
    said = observation.nodes[node].notices if node else ()
    return {Notice.GUEST_PANIC, Notice.GUEST_RESET} <= set(said) and (
        said.index(Notice.GUEST_PANIC) < said.index(Notice.GUEST_RESET)
    )


def _there(observation: Observation) -> tuple[str, str]:
    """Return what is known of both nodes while the link fails, and the word to join it with."""
    for node in members(observation):
        if observation.nodes[node].life is Life.UNKNOWN:
            return "and", f"nothing is known of node {node}'s process"
    return "while", "both nodes are there"


def _lost(observation: Observation, role: Role, how: Gone, kind: Diagnosis) -> Finding | None:
    node = holder(observation, role)
    if node is None or gone(observation, node) is not how:
        return None
    peer = other(node)
    evidence = [absence(observation, node)]
    if peer in members(observation):
        if gone(observation, peer):
            evidence.append(absence(observation, peer))
        evidence.extend(_parting(observation, peer))
    return Finding(kind, node, tuple(evidence))


def _parting(observation: Observation, node: NodeName) -> tuple[str, ...]:
    """Return what ``node`` reported of its peer, as evidence."""
    if Notice.COLO_EXIT not in observation.nodes[node].notices:
        return ()
    return (f"Node {node} has left COLO with an error.",)


def _noticed(
    observation: Observation, role: Role, notice: Notice, kind: Diagnosis, said: str
) -> Finding | None:
    node = holder(observation, role)
    if node is None or notice not in observation.nodes[node].notices:
        return None
    return Finding(kind, node, (said.format(node=node),))
