"""Decide whether a secondary's guest has diverged from the primary's, from its signs; pure.

Called by `ha.analysis` and `ha.eligibility`, which ask `proofs`, and by `supervisor.contrast`.
`ha.unmatched` and `ha.processors` find the signs that only the secondary shows.

Invariant: an act of a sound secondary never counts against it. It runs earlier or later than the
primary, at other moments, with other timestamps; it repeats after each checkpoint what it had done
before; on a starved machine it is late. So a sign counts only where the primary does not show it
within a grace, and signs that a slow secondary shares with a damaged one count together only.
"""

from __future__ import annotations

from collections.abc import Mapping

from coloctl.model.observation import Contrast
from coloctl.model.pair import NodeName

#: So many windows in a row are a proof, where as many checkpoints in a row came because the
#: secondary's packet was missing.
PROOF_WINDOWS, PROOF_UNMATCHED = 4, 4
#: So many lines while the primary is silent, with as many such checkpoints, are a proof.
PROOF_LINES, LINES_UNMATCHED = 3, 3

#: A checkpoint whose period was less than this share of the delay was forced; from `DUE` on it was
#: due, and in between that is not certain: a busy machine moves each by hundredths of a second.
EARLY, DUE = 0.85, 0.95
#: It was forced because an answer waited for the secondary's packet where this share of the
#: comparison's timeout had passed.
WAITED = 0.9

#: The event of a supervisor that found the divergence and then died.
EARLIER = "earlier"
_EVENTS: Mapping[str, str] = {
    "reset": "Node {s}'s guest was reset, and node {p}'s was not.",
    "panic": "Node {s}'s guest says that its kernel panicked, and node {p}'s does not.",
    "watchdog": "Node {s}'s watchdog expired, and node {p}'s did not.",
    "memory": "Node {s}'s host says that memory of the guest failed, and node {p}'s does not.",
    EARLIER: "An earlier supervisor found that node {s}'s guest had diverged from node {p}'s.",
}


def proofs(contrast: Contrast, primary: NodeName, secondary: NodeName) -> tuple[str, ...]:
    """List the proofs that the guest of ``secondary`` has diverged; empty where there is none."""
    evidence = [_EVENTS[event].format(s=secondary, p=primary) for event in contrast.events]
    evidence += [
        f"Node {secondary}'s console says '{line}', and node {primary}'s never did."
        for line in contrast.lines
    ]
    evidence += contrast.disks
    if contrast.deaf:
        evidence.append(
            f"A processor of node {secondary}'s guest stays in one place and takes no interrupt, "
            f"and node {primary}'s does not."
        )
    elif contrast.unmatched >= PROOF_UNMATCHED and (how := _otherwise(contrast, primary)):
        evidence.append(
            f"A processor of node {secondary}'s guest {how}, and the last {contrast.unmatched} "
            "checkpoints came because the secondary's packet was missing."
        )
    if contrast.others >= PROOF_LINES and contrast.unmatched >= LINES_UNMATCHED:
        evidence.append(
            f"Node {secondary}'s guest wrote {contrast.others} lines to its console while node "
            f"{primary}'s wrote none, and the last {contrast.unmatched} checkpoints came because "
            "the secondary's packet was missing."
        )
    return tuple(evidence)


def _otherwise(contrast: Contrast, primary: NodeName) -> str:
    """Describe what only the secondary's processors have done for long; empty for nothing."""
    if contrast.spinning >= PROOF_WINDOWS:
        return f"never rests, while node {primary}'s does"
    if contrast.halted >= PROOF_WINDOWS:
        return f"does nothing, while node {primary}'s works"
    return ""


# -- checkpoints


def next_unmatched(so_far: int, *, period_ms: float, delay_ms: float, timeout_ms: float) -> int:
    """Count the checkpoints in a row that came because the secondary's packet was missing.

    ``so_far`` is the count before this checkpoint, ``period_ms`` its period. A checkpoint that was
    due, or was forced before the timeout, begins again with 0; one that may be either leaves the
    count. Where ``delay_ms`` is no longer than ``timeout_ms``, the comparison's, the two cannot be
    told apart.
    """
    if EARLY * delay_ms < period_ms < DUE * delay_ms:
        return so_far
    waited = period_ms >= WAITED * timeout_ms
    return so_far + 1 if waited and period_ms <= EARLY * delay_ms else 0
