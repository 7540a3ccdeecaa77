"""Decide whether a failover that failed at its fence goes on, now that the node is down; pure.

Called by `ha.decision` for a pair that has failed. Invariant: only the kernel's word that the QEMU
of the node is dead, or a person's, lets it go on, and only where nothing speaks against the
survivor.
"""

from __future__ import annotations

from dataclasses import replace

from coloctl.ha.eligibility import misses, unheard
from coloctl.model.observation import Life, Observation
from coloctl.model.pair import NodeName, other
from coloctl.model.protection import Protection


def goes_on(lost: NodeName, seen: Observation, pair: str) -> tuple[bool, str]:
    """Say whether the other node may run the guest now, and why, in sentences for an operator.

    The pair was in COLO when the failover began, so its survivor held a complete checkpoint.
    """
    survivor, node = other(lost), seen.nodes.get(lost)
    dead = node is not None and node.life is Life.DEAD
    if not (dead or seen.vouched):
        return False, (
            f"Node {lost} is not proven down, so node {survivor} may not run the guest yet: switch "
            f"node {lost} off, then say so with `coloctl fence confirm {pair} {lost}`; or `coloctl "
            f"failover {pair} --force` kills its QEMU. When that ends, the failover goes on by "
            "itself."
        )
    held = replace(seen, protection=Protection.FAILOVER)
    if doubt := unheard(seen, survivor) or misses(held, survivor):
        return False, (
            f"Node {lost} is down, but {doubt} `coloctl failover {pair} --to {survivor} --force` "
            "goes on all the same."
        )
    proof = "is dead, as the kernel proves" if dead else "is down, as a person vouches"
    return True, f"Node {lost} {proof}: node {survivor} runs the guest alone."
