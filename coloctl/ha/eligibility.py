"""Find why a node may not run the guest alone: the objections to a failover; pure.

Called by `ha.decision` before it gives the other node up, and before a failed failover goes on.
Each objection is a sentence for an operator; empty means that there is none.

A survivor must answer now (`answer_objection`), and its disk and memory must hold every write that
was acknowledged to a client (`data_objection`). Example: the primary died, and one of its writes
had not reached the secondary's disk. The secondary answers, but the second objection stops the
failover: only an operator may accept that loss, with ``--force``.
"""

from __future__ import annotations

from coloctl.ha.divergence import proofs
from coloctl.ha.monitoring_path import gone, unheard_ms
from coloctl.model.observation import Life, Notice, Observation
from coloctl.model.pair import NodeName, Role, other
from coloctl.model.protection import Protection

#: A silence of the link is known to a beat or two, and so is the age of a report. Milliseconds.
SENT_SINCE_MS = 60.0


def answer_objection(seen: Observation, survivor: NodeName) -> str:
    """Find why ``survivor`` cannot be relied on now; empty when it answers."""
    node, limits = seen.nodes.get(survivor), seen.limits
    if node is None or node.role is Role.NONE:
        return f"node {survivor} has no part in the pair."
    how = gone(seen, survivor)
    if how is not None or node.life is Life.STOPPED:
        return f"node {survivor} is {how or 'stopped'} itself."
    unseen_ms = unheard_ms(node, node.rescue_silent_ms)
    unseen = node.life is Life.UNKNOWN and unseen_ms >= limits.suspect_ms
    if unseen and unseen_ms > node.rescue_silent_ms:
        return f"nothing is known of node {survivor}: its machine's agent reports nothing."
    if unseen or node.rescue_silent_ms >= limits.silent_ms:
        return f"node {survivor} does not answer on its rescue monitor."
    if _perhaps_cut_off(seen, survivor):
        return f"nothing has come from node {survivor}'s machine since the link fell silent."
    return ""


def _perhaps_cut_off(seen: Observation, node: NodeName) -> bool:
    """Return whether the machine of ``node`` may be what the silent link is silent about.

    Its last report must have been sent after the link fell silent, which is what a report takes
    less than a round trip to show.
    """
    one, link_ms = seen.nodes[node], seen.link_silent_ms or 0.0
    if one.agent_silent_ms is None or link_ms < seen.limits.link_ms:
        return False
    return one.agent_silent_ms + one.agent_delay_ms + SENT_SINCE_MS > link_ms


def diverged(seen: Observation, node: NodeName) -> bool:
    """Return whether ``node`` is a secondary whose guest has diverged.

    Here and in `data_objection` the node must be in ``seen``: `KeyError` otherwise.
    """
    secondary = seen.nodes[node].role is Role.SECONDARY
    return secondary and bool(proofs(seen.contrast, other(node), node))


def data_objection(seen: Observation, survivor: NodeName) -> str:
    """Find what ``survivor`` does not hold of the guest; empty when it holds all of it.

    A primary can miss a write of its own disk alone.
    """
    node, peer = seen.nodes[survivor], seen.nodes.get(other(survivor))
    if Notice.LOCAL_WRITE_ERROR in node.notices:
        return f"node {survivor}'s own disk missed a write of the guest."
    if node.role is Role.PRIMARY:
        return ""
    if peer is not None and Notice.REPLICA_WRITE_ERROR in peer.notices:
        return f"node {survivor}'s disk missed a write of the guest."
    if diverged(seen, survivor):
        return f"node {survivor}'s guest has diverged."
    if seen.protection not in (Protection.COLO, Protection.FAILOVER):
        return f"node {survivor} holds no complete checkpoint of this generation."
    return ""
