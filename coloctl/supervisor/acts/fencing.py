"""Gather what may prove a lost node down, and take a person's word for it at any time.

Called by `acts.failover` while a fence is under way, by the control socket for `fence confirm`, and
by the supervisor, which asks the pair's fence agent long before it is needed.
"""

from __future__ import annotations

import asyncio
import logging

from coloctl.errors import FailoverRefused
from coloctl.ha import agent
from coloctl.ha.fencing import Confirm, Means
from coloctl.model.event import Kind
from coloctl.model.pair import NODES, FencingMethod, NodeName
from coloctl.model.protection import Protection
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: A fence agent is asked for each node's status so often, seconds: a password that was changed is
#: known of before the agent is needed. Sooner while it has not answered.
ASK_PERIOD_S = 3600.0
ASK_AGAIN_S = 300.0


def means(
    state: PairState, node: NodeName, confirm: Confirm, *, forced: bool, vouched: bool
) -> Means:
    """Gather what may prove ``node`` down; a person's word counts from now on until `over`."""
    said = state.confirmations[node] = asyncio.Event()

    async def word() -> None:
        await said.wait()

    heard = state.agents.get(node)
    return Means(confirm, word, vouched, forced, agent_known=heard is not None and heard.on)


def over(state: PairState, node: NodeName) -> None:
    """The fence of ``node`` is over: no one waits for a word on it."""
    state.confirmations.pop(node, None)
    state.vouched = False


def confirm_fence(state: PairState, node: NodeName) -> None:
    """Take a person's word that ``node`` is down, durably; the failover that waits for it goes on.

    So does one that failed because the node was not proven down: the supervisor begins it again.
    Raises `FailoverRefused` when neither is so.
    """
    waiting = state.confirmations.get(node)
    failed = state.protection is Protection.FAILED and state.unfenced == node
    if waiting is None and not failed:
        raise FailoverRefused(
            f"No failover of pair {state.spec.name} waits for a word on node {node}.",
            hint=f"`coloctl status {state.spec.name}` says what it waits for",
        )
    state.record(Kind.OUTCOME, step="confirm", node=node)
    if waiting is not None:
        waiting.set()
    else:
        state.vouched = True


async def keep_asking(state: PairState) -> None:
    """Ask the fence agent for the status of both nodes now and then, while the pair is protected.

    What it said is in `PairState.agents`, and in the log where it does not work. Never returns.
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
            heard = await agent.ask(state.spec.fencing, node)
            # It worked once: a device that does not answer today does not make it a stranger.
            state.agents[node] = heard if heard.works or before is None or not before.on else before
            if not heard.works:
                wait_s = ASK_AGAIN_S
                log.error("%s Without it a failover waits for a person.", heard.said)
        await asyncio.sleep(wait_s)
