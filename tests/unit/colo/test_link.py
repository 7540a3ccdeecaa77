"""A link that carries nothing is noticed before the guest's QEMU is told to use it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.fakes import DIALECTS, FakeHost, FakeListener, Log, fake_state, fake_vm, make_spec

from coloctl.clock import Deadline
from coloctl.colo import link
from coloctl.colo.protect import Protecting, protect
from coloctl.errors import PreconditionFailed, ReplicationError
from coloctl.host.watching import Listener
from coloctl.model.pair import Role
from coloctl.model.protection import Fact
from coloctl.model.wires import Endpoint, Wires
from coloctl.supervisor import acts

pytestmark = pytest.mark.unit

SPEC = make_spec()
WIRES = Wires(SPEC, Path("/run/coloctl/web"))
NAMED = r"Node a does not reach node b.*10\.66\.0\.2:9099"


def nothing(*_: object) -> None:
    return None


async def test_the_primary_is_told_nothing_over_a_link_that_broke_meanwhile() -> None:
    """The secondary was launched and waits; its NBD server is not heard."""
    log: Log = []

    async with fake_vm("a", log) as a, fake_vm("b", log) as b:
        a.host.cut_off = True
        act = Protecting(SPEC, a, b, DIALECTS["reconnect-ms"], False, 200)
        with pytest.raises(ReplicationError, match=NAMED) as broken:
            await protect(act, deadline=Deadline(10), report=nothing, fact=nothing)
        assert broken.value.hint
    assert "b: nbd-server-start" in log
    assert not [line for line in log if line.startswith("a:")]


async def test_no_secondary_is_made_over_a_link_that_is_cut(tmp_path: Path) -> None:
    log: Log = []

    async with fake_state(tmp_path, SPEC, log=log) as state, fake_vm("a", log) as a:
        state.seats["a"].take(a, Role.PRIMARY, "11.1.3")
        state.note(Fact.GUEST_STARTED, "test")
        host = state.ground.hosts["b"]
        assert isinstance(host, FakeHost)
        host.cut_off = True
        with pytest.raises(ReplicationError, match=NAMED):
            await acts.reprotect(state, nothing, nothing)
        assert state.seats["b"].vm is None
    assert "STEP protect link" in log
    asked = ("a: query-", "a: qom-list")  # of the primary alone, and nothing is changed there
    touched = [line for line in log if line.startswith("a:") and not line.startswith(asked)]
    assert not touched
    assert not [line for line in log if line.startswith(("b:", "STEP protect secondary"))]


def test_a_port_that_a_dead_qemu_still_holds_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def listen(host: FakeHost, at: Endpoint) -> Listener:
        asked.append(at)
        if len(asked) < 3 or link.FREED_S == 0:
            raise PreconditionFailed("10.66.0.2:9099 on local is in use by another process")
        return FakeListener(host, at)

    monkeypatch.setattr(FakeHost, "listen", listen)
    hosts = FakeHost("a", []), FakeHost("b", [])
    asyncio.run(link.require(WIRES, *hosts, "b"))
    assert len(asked) == 3
    monkeypatch.setattr(link, "FREED_S", 0)
    with pytest.raises(PreconditionFailed, match="in use"):
        asyncio.run(link.require(WIRES, *hosts, "b"))


async def test_what_answers_must_be_an_nbd_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hear(*_: object, **__: object) -> bytes:
        return b"SSH-2.0"

    monkeypatch.setattr(FakeHost, "hear", hear)
    with pytest.raises(ReplicationError, match=r"10\.66\.0\.2:9099 is no NBD server"):
        await link.require_exports(WIRES, FakeHost("a", []), "b", Deadline(10))
