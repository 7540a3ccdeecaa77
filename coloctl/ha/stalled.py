"""Find a checkpoint that does not end or does not begin, and tell a slow link from a hang; pure.

Called by `ha.analysis` as one of its rules. Rules: a guest that stands still for longer than any
checkpoint of its pair, or is not checkpointed, has a node that hangs. The one whose main loop alone
is silent is lost, else the secondary. While the guest's memory still goes over, no node hangs: the
link is slow, and the primary's main loop waits for it. The guest is held for `SLOW_MS` then. The
secondary is given up after that, because each checkpoint would hold the guest for as long. Example:
the guest has changed 128 MB, and the link carries 10 MB/s.
"""

from __future__ import annotations

from coloctl.ha.monitoring_path import both, unheard_ms
from coloctl.model.observation import Diagnosis, Finding, Observation

#: The longest that a guest may stand still for a checkpoint whose memory goes over: as long as for
#: the first one (`colo.convergence`). Milliseconds.
SLOW_MS = 10_000.0


def checkpoint_stalled(observation: Observation) -> Finding | None:
    """Find a checkpoint that does not end, or one that has been due for too long."""
    primary, secondary = both(observation)
    if not (primary and secondary):
        return None
    limits, evidence = observation.limits, []
    slow = goes_over(observation)
    limit_ms = max(limits.stall_ms, SLOW_MS) if slow else limits.stall_ms
    if observation.held_ms >= limit_ms:
        evidence.append(
            f"The guest has been stopped for a checkpoint for {observation.held_ms:.0f} ms (limit "
            f"{limit_ms:.0f} ms)."
        )
    if observation.overdue_ms >= limits.overdue_ms:
        evidence.append(
            f"A checkpoint has been due for {observation.overdue_ms:.0f} ms (limit "
            f"{limits.overdue_ms:.0f} ms)."
        )
    if not evidence:
        return None
    if slow:
        return Finding(Diagnosis.CHECKPOINT_STALLED, secondary, (*evidence, _too_slow(observation)))
    silent = [
        node
        for node in (primary, secondary)
        if unheard_ms(observation.nodes[node], observation.nodes[node].command_silent_ms)
        >= limits.silent_ms
    ]
    lost = primary if silent == [primary] else secondary
    answers = {0: "Both main loops answer.", 1: f"Node {lost}'s main loop does not answer."}
    evidence.append(answers.get(len(silent), "Neither main loop answers."))
    return Finding(Diagnosis.CHECKPOINT_STALLED, lost, tuple(evidence))


def goes_over(observation: Observation) -> bool:
    """Return whether memory of the checkpoint under way was acknowledged a moment ago."""
    idle_ms = observation.sent_idle_ms
    recent = idle_ms is not None and idle_ms < observation.limits.silent_ms
    return recent and observation.sent_bytes > 0


def _too_slow(observation: Observation) -> str:
    """Return the figures of a link that carries less than the guest changes."""
    sent_mb = observation.sent_bytes / 1e6
    rate = sent_mb / (observation.held_ms / 1000) if observation.held_ms else 0.0
    return (
        f"The guest changed more than {sent_mb:.0f} MB of its memory since the last checkpoint, "
        f"and the replication link carries {rate:.0f} MB/s: each checkpoint would stop it for as "
        "long."
    )
