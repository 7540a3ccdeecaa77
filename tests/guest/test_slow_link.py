"""A guest that changes more than the link carries is not protected, and the figures say why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.clients import ask, booted, guest_spec
from support.pairs import supervised

from coloctl.colo import convergence
from coloctl.errors import MigrationFailed
from coloctl.lab import guest, qemu
from coloctl.lab.impairment import Impairment
from coloctl.lab.network import Lab
from coloctl.model.protection import Protection
from coloctl.model.qapi import RunState

pytestmark = pytest.mark.guest

#: Redis writes 48 MB again and again, 64 KiB at a time, and answers no client meanwhile.
WRITE = (
    "\"local x = string.rep('x', 65536);"
    " for i = 0, 100000000 do redis.call('setrange', 'k', (i % 768) * 65536, x) end\" 0"
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-slow") as lab:
        yield lab


async def test_a_link_too_slow_for_the_guest_is_named_with_its_figures(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path: Path,
    qemu_builds: Callable[[str], qemu.Build],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guest is not stopped for the rest of its memory."""
    monkeypatch.setattr(convergence, "CONVERGE_DEADLINE_S", 3.0)
    monkeypatch.setattr(convergence, "STILL_MAX_S", 0.3)
    spec = guest_spec(lab, guest_image, tmp_path, qemu_builds("11.1"))
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        await booted(stage)
        await ask(lab, "EVAL", WRITE, patience_s=0.5)
        lab.link("replication").impair(Impairment(rate_kbit=100_000))
        with pytest.raises(MigrationFailed) as caught:
            await stage.start()
        print(caught.value.message)
        figures = re.search(
            r"link to node b on .* carries (\d+) MB/s. The guest changes \d+ MB/s .* (\d+) MB were",
            caught.value.message,
        )
        assert figures, caught.value.message
        carried, left = map(int, figures.groups())
        assert carried <= 13 and left > 4
        assert stage.state.protection is Protection.UNPROTECTED
        assert (await stage.primary.observe()).run_state is RunState.RUNNING
