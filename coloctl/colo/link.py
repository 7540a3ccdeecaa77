"""Try the replication link before a guest that runs may come to depend on it.

Called by `supervisor.acts.protect` and `colo.protect`; sends data through `host.base`. QEMU
connects to an export from its main loop. Over a link that swallows packets this takes until a
timeout, and the guest stands still meanwhile (docs/qemu.md, "Pitfalls").

Invariant: coloctl connects first, from the same host to the same address and port, and only the act
waits for it.
"""

from __future__ import annotations

import asyncio

from coloctl.clock import Deadline
from coloctl.errors import PreconditionFailed, ReplicationError, Unreachable
from coloctl.host.base import Host
from coloctl.host.channel import carries
from coloctl.model.pair import NodeName, other
from coloctl.model.wires import SocketFile, Wires
from coloctl.nbd import wire

#: One answer over the link, seconds. A SYN that was lost is sent again after 1 s, and once more 3 s
#: after the first at the latest (RFC 6298: 1 s, then doubled; Linux 6.5 and newer stay at 1 s for a
#: while): room for three of them, and for a slow answer to the last. Only the act waits.
ANSWER_WAIT_S = 5.0

#: The NBD port of a QEMU that was killed is in use for up to 10 ms more (docs/qemu.md, "Pitfalls");
#: a busy machine may take longer. Seconds, and between two tries.
FREED_S, AGAIN_S = 2.0, 0.05

HINT = "is that link up both ways, and does no filter drop its packets? The guest was not touched"


async def require(wires: Wires, primary: Host, secondary: Host, node: NodeName) -> None:
    """Try data both ways between the hosts, before a QEMU listens there.

    The address is that of ``node``, the port that of its exports; one host reaches itself. Raises
    `ReplicationError`, which names both.
    """
    at, freed = wires.exports(node), Deadline(FREED_S)
    if isinstance(at, SocketFile):
        return None
    while True:
        try:
            return await carries(secondary, primary, at, deadline_s=ANSWER_WAIT_S)
        except Unreachable as error:
            raise _broken(node, error.message) from error
        except PreconditionFailed:
            if freed.expired:
                raise
        await asyncio.sleep(AGAIN_S)


async def require_exports(wires: Wires, primary: Host, node: NodeName, deadline: Deadline) -> None:
    """Receive the greeting of the NBD server of ``node`` on the primary's host; raises like
    `require`.

    The server greets every client, so its greeting proves both directions. A client that leaves
    after that leaves nothing there.
    """
    at = wires.exports(node)
    try:
        said = await primary.hear(
            at, wire.GREETING.size, deadline_s=deadline.at_most(ANSWER_WAIT_S)
        )
    except Unreachable as error:
        raise _broken(node, error.message) from error
    if not said.startswith(wire.MAGIC):
        raise _broken(node, f"what answers at {at} is no NBD server")


def _broken(node: NodeName, why: str) -> ReplicationError:
    return ReplicationError(
        f"Node {other(node)} does not reach node {node} over the replication link: {why}.",
        stage="protect",
        hint=HINT,
    )
