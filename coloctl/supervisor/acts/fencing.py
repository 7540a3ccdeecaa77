"""Gather the means to prove a lost node down, and take an operator's confirmation at any time.

Called by `supervisor.acts.failover_book` while a fence is under way, by `control.service` for
`fence confirm`, and by `supervisor.loop`, which asks the fence agent through `ha.agent` long before
it is needed.

Invariant: a confirmation is in the journal before it counts.
"""

from __future__ import annotations

import asyncio
import logging

from coloctl.errors import FailoverRefused
from coloctl.ha import agent
from coloctl.ha.fencing import Confirmation, Means
from coloctl.model.event import Kind
from coloctl.model.pair import NODES, FencingMethod, NodeName
from coloctl.model.protection import Protection
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: A fence agent is asked for each node's status so often, seconds: a changed password is known of
#: before the agent is needed. Sooner while it has not answered.
ASK_PERIOD_S = 3600.0
ASK_AGAIN_S = 300.0


def means(
    state: PairState, node: NodeName, confirmation: Confirmation, *, forced: bool, confirmed: bool
) -> Means:
    """Gather the means to prove ``node`` down; an operator may confirm from now on until `over`."""
    state.confirmations[node] = confirmation
    answer = state.agents.get(node)
    known = answer is not None and answer.on
    return Means(confirmation, confirmed=confirmed, forced=forced, agent_known=known)


def over(state: PairState, node: NodeName) -> None:
    """End the fence of ``node``: a confirmation is not awaited any more."""
    state.confirmations.pop(node, None)
    state.vouched = False


def confirm_fence(state: PairState, node: NodeName) -> None:
    """Take an operator's statement that ``node`` is down, durably; its failover goes on.

    A failover that failed because the node was not proven down goes on as well: the supervisor
    begins it again. Raises `FailoverRefused` when neither is so.
    """
    waiting = state.confirmations.get(node)
    failed = state.protection is Protection.FAILED and state.unfenced == node
    if waiting is None and not failed:
        raise FailoverRefused(
            f"No failover of pair {state.spec.name} waits for a confirmation of node {node}.",
            hint=f"`coloctl status {state.spec.name}` shows what it waits for",
        )
    state.record(Kind.OUTCOME, step="confirm", node=node)
    if waiting is not None:
        waiting.give()
    else:
        state.vouched = True


async def keep_asking(state: PairState) -> None:
    """Ask the fence agent for the status of both nodes now and then, while the pair is protected.

    Its answer is in `PairState.agents`, and in the log where it does not work. Never returns.
    """
    while True:
        wait_s = ASK_PERIOD_S
        for node in NODES:
            if state.spec.fencing.method is not FencingMethod.COMMAND:
                break
            if state.protection is not Protection.COLO:
                wait_s = 1.0
                break
            before = state.agents.get(node)
            answer = await agent.ask(state.spec.fencing, node)
            # An agent that worked once stays known, also where its device does not answer today.
            state.agents[node] = (
                answer if answer.works or before is None or not before.on else before
            )
            if not answer.works:
                wait_s = ASK_AGAIN_S
                log.error("%s Without it a failover waits for an operator.", answer.said)
        await asyncio.sleep(wait_s)
