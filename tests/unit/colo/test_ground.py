"""The hosts of a pair are looked at once; a supervisor that follows gets what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import make_spec

from coloctl.colo.ground import Facts, Ground, prepare, require_same_binary
from coloctl.errors import UnsupportedQEMU
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.vm import Binary

pytestmark = pytest.mark.unit

DIALECT = Dialect("11.1.3", ReturnPath.FORBIDDEN, "reconnect-ms")
FACTS = Facts(Binary(Path("/opt/no/such/qemu"), DIALECT), "tcg", frozenset({Path("/dev/sda")}))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLOCTL_CACHE_DIR", str(tmp_path / "cache"))


async def grounds(facts: Facts | None) -> Ground:
    spec = make_spec()
    spec = replace(spec, guest=replace(spec.guest, qemu=FACTS.binary.path))
    spec = replace(spec, nodes={n: replace(one, host="local") for n, one in spec.nodes.items()})
    ground = await prepare(spec, facts)
    await ground.aclose()
    return ground


async def test_with_facts_nothing_is_asked_again() -> None:
    """Neither the binary, which is gone here, nor whether an image is a device."""
    assert (await grounds(FACTS)).facts == FACTS


async def test_without_facts_a_binary_that_is_gone_is_refused() -> None:
    with pytest.raises(UnsupportedQEMU, match="/opt/no/such/qemu"):
        await grounds(None)


async def test_the_binary_on_disk_is_compared_with_that_of_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def renewed(path: Path, _host: object) -> Binary:
        return Binary(path, replace(DIALECT, version="11.1.4"))

    monkeypatch.setattr("coloctl.colo.ground.inspect", renewed)

    async def check() -> None:
        await require_same_binary(await grounds(FACTS))

    with pytest.raises(UnsupportedQEMU, match=r"is 11\.1\.4 now, and the guest runs in 11\.1\.3"):
        await check()
