"""Notice that a certificate ends soon, or would be refused, before the next secondary needs it.

Called by `supervisor.loop`; reads through `colo.tls`, and `model.encryption` words what it finds.

Invariant: no open connection is cut because of a certificate. A session outlives its certificate,
and only the next secondary needs a valid one.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from coloctl.colo import tls
from coloctl.errors import ColoctlError, PreconditionFailed
from coloctl.model import encryption
from coloctl.model.event import Kind
from coloctl.supervisor.state import PairState

log = logging.getLogger(__name__)

#: Both machines' certificates are read so often, seconds: a renewed one is soon known.
READ_PERIOD_S = 600.0


async def keep_reading(state: PairState) -> None:
    """Read both machines' certificates now and then; a change is recorded. Never returns."""
    while state.spec.encrypted():
        found = await _read(state)
        if found != state.encryption:
            if found != encryption.ENCRYPTED:
                log.warning(found)
                state.record(Kind.NOTE, data={"encryption": found})
            state.encryption = found
        await asyncio.sleep(READ_PERIOD_S)
    await asyncio.Event().wait()


async def _read(state: PairState) -> str:
    try:
        found = await tls.proofs(state.spec, state.ground.hosts)
    except PreconditionFailed as error:
        return encryption.sentence(state.spec, wrong=error.message)
    except ColoctlError:
        return state.encryption  # a machine out of reach shows nothing of its certificate
    ends = {node: proof.facts.until for node, proof in found.items()}
    return encryption.sentence(state.spec, ends, datetime.now(UTC))
