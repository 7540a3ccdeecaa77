"""A supervisor that was started without facts keeps what it found for those that follow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import fake_state, make_spec
from support.livings import living_qemu

from coloctl import paths
from coloctl.colo.ground import Facts, Ground
from coloctl.control.daemon import serve
from coloctl.errors import UnsupportedQEMU
from coloctl.host.local import LocalHost
from coloctl.model.pair import PairSpec
from coloctl.supervisor.pair_hosts import Hosts
from coloctl.supervisor.started import STARTED, Started, remember, remembered

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    return paths.make_private(paths.pair_dir(make_spec().name))


@pytest.fixture
async def ground(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Ground]:
    """What a look at the hosts finds, where no facts are given."""
    async with fake_state(tmp_path) as state:
        here = LocalHost()
        found = replace(state.ground, folder=folder, hosts={"a": here, "b": here})

        async def prepare(
            _: PairSpec, facts: Facts | None, *, stays: bool, hosts: Hosts | None
        ) -> Ground:
            return found if facts is None else replace(found, facts=facts)

        monkeypatch.setattr(serve, "prepare", prepare)
        yield found


async def test_what_it_found_is_there_for_the_next(folder: Path, ground: Ground) -> None:
    remember(folder, Started(make_spec()))
    await serve._ground(make_spec(), folder, None)
    assert remembered(folder) == Started(make_spec(), ground.facts)


async def test_facts_that_it_was_given_stay(folder: Path, ground: Ground) -> None:
    given = replace(ground.facts, accel="kvm")
    remember(folder, Started(make_spec(), given))
    assert (await serve._ground(make_spec(), folder, given)).accel == "kvm"
    assert remembered(folder) == Started(make_spec(), given)


async def test_beside_a_qemu_of_an_earlier_coloctl_nothing_is_written(
    folder: Path, ground: Ground
) -> None:
    """The QEMU on disk now may be another one than the guest runs in."""
    with living_qemu(folder):
        assert await serve._ground(make_spec(), folder, None) == ground
    assert not (folder / STARTED).exists()


async def test_a_folder_that_cannot_be_written_is_no_end(
    folder: Path, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serve, "write", full)
    assert await serve._ground(make_spec(), folder, None) == ground


async def test_hosts_that_cannot_be_used_leave_no_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> Ground:
        raise UnsupportedQEMU("There is none.")

    monkeypatch.setattr(serve, "prepare", refused)
    with pytest.raises(UnsupportedQEMU):
        await serve._ground(make_spec(), folder, None)
    assert not folder.exists()
