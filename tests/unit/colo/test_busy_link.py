"""A link that is not measured in time is a sentence, and refuses no start."""

from __future__ import annotations

import pytest

from coloctl.colo import frames
from coloctl.errors import PreconditionFailed
from coloctl.host import open_host

pytestmark = pytest.mark.unit


async def test_a_machine_that_is_too_busy_to_measure_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program that listens is a real one; no Python starts in a tenth of a millisecond."""
    monkeypatch.setattr(frames, "SERVE_DEADLINE_S", 1e-4)
    host = open_host("local")
    name = host.machine.name
    with pytest.raises(PreconditionFailed) as late:
        await frames.probe(host, host, "127.0.0.1", "frames")
    await host.aclose()
    assert late.value.message.startswith(f"The link from {name} to {name} was not measured within")
