"""Say why a node may not run the guest alone: what stops a failover that starts by itself; pure.

`ha.decision` asks before it gives the other node up. Each answer is a sentence, empty for no doubt.
"""

from __future__ import annotations

from coloctl.ha.divergence import proofs
from coloctl.ha.monitoring_path import gone
from coloctl.model.observation import Life, Observation
from coloctl.model.pair import NodeName, Role, other
from coloctl.model.protection import Protection


def unheard(seen: Observation, survivor: NodeName) -> str:
    """Why ``survivor`` cannot be relied on now, a sentence; empty when it answers."""
    node, limits = seen.nodes.get(survivor), seen.limits
    if node is None or node.role is Role.NONE:
        return f"node {survivor} has no part in the pair."
    how = gone(seen, survivor)
    if how is not None or node.life is Life.STOPPED:
        return f"node {survivor} is {how or 'stopped'} itself."
    unseen = node.life is Life.UNKNOWN and node.rescue_silent_ms >= limits.suspect_ms
    if unseen or node.rescue_silent_ms >= limits.silent_ms:
        return f"node {survivor} does not answer on its rescue monitor."
    return ""


def diverged(seen: Observation, node: NodeName) -> bool:
    """Return whether ``node`` is a secondary whose guest is not the guest any more."""
    secondary = seen.nodes[node].role is Role.SECONDARY
    return secondary and bool(proofs(seen.contrast, other(node), node))


def misses(seen: Observation, survivor: NodeName) -> str:
    """What ``survivor`` lacks of the guest, a sentence; empty when it lacks nothing."""
    node, peer = seen.nodes[survivor], seen.nodes.get(other(survivor))
    if "local-write-error" in node.notices:
        return f"node {survivor}'s own disk missed a write of the guest."
    if node.role is Role.PRIMARY:
        return ""
    if peer is not None and "replica-write-error" in peer.notices:
        return f"node {survivor}'s disk missed a write of the guest."
    if diverged(seen, survivor):
        return f"node {survivor}'s guest is not the guest any more."
    if seen.protection not in (Protection.COLO, Protection.FAILOVER):
        return f"node {survivor} holds no complete checkpoint of this generation."
    return ""
