"""Decide whether a failover that failed at its fence goes on, now that the node is down; pure.

Called by `ha.decision` for a pair that has failed; asks `ha.eligibility` about the survivor.

Invariant: it goes on only when the kernel has reported the death of the node's QEMU, or an operator
has confirmed that the node is off, and only where no objection to the survivor is left.
"""

from __future__ import annotations

from dataclasses import replace

from coloctl.ha.eligibility import answer_objection, data_objection
from coloctl.model.observation import Life, Observation
from coloctl.model.pair import NodeName, other
from coloctl.model.protection import Protection


def goes_on(lost: NodeName, seen: Observation, pair: str) -> tuple[bool, str]:
    """Decide whether the other node may run the guest now; the reason is for an operator.

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
