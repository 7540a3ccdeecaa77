"""End a QEMU that was left behind, once its machine is back, and refuse what must wait for that.

Called by `supervisor.machines` when a machine is back, by `supervisor.acts.start` and
`supervisor.acts.protect` before they launch a QEMU, and by `supervisor.acts.stop`, which names what
was left. `host.base` ends such a QEMU, and `colo.launch` sweeps its folder.

Invariant: a node takes no part in the pair until the QEMU that was left on it is proven gone. Each
step may be repeated: a supervisor that is killed in between is followed by one that does them all.
"""

from __future__ import annotations

from coloctl.colo import generation, launch, taps
from coloctl.errors import PreconditionFailed
from coloctl.ha.fencing import KILL_DEADLINE_S
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model.event import GENERATION_NOT_KEPT, Kind
from coloctl.model.pair import NodeName
from coloctl.supervisor.acts import merge
from coloctl.supervisor.state import PairState


def sentence(state: PairState) -> str:
    """Return a sentence on each QEMU that was left behind; "" where none was."""
    return " ".join(state.left_on(node) for node in sorted(state.left))


def require_none(state: PairState, *nodes: NodeName) -> None:
    """Require that no QEMU was left behind on any of ``nodes``; raises `PreconditionFailed`."""
    for node in nodes:
        if node in state.left:
            raise PreconditionFailed(
                state.left_on(node),
                hint=f"it is ended as soon as its machine answers; `coloctl status "
                f"{state.spec.name}` shows that",
            )


async def finish(state: PairState, node: NodeName) -> None:
    """End the QEMU that was left on ``node``, sweep what it needed, and record the proof.

    Its disks are marked as diverged: the guest went on without them.

    Raises `FencingFailed` where it does not die or cannot be reached.
    """
    left, ground = state.left[node], state.ground
    host = ground.hosts[node]
    await taps.lower_free(state.spec, host, node)
    proof = await host.kill(
        left.identity,
        node=node,
        deadline_s=KILL_DEADLINE_S,
        leader=left.leader,
        sockets=tuple(monitor_sockets(ground.rundir(node)).values()),
    )
    pending = await merge.may_be_pending(state, node)
    if not pending:
        warning = await generation.leave(state.spec, ground.hosts, node, state.generation)
        if warning:
            state.record(Kind.NOTE, node=node, data={GENERATION_NOT_KEPT: warning})
    await launch.sweep(state.spec, ground, node, keep_overlays=pending)
    state.found_gone(node, proof)
