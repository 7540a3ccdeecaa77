"""A machine out of reach shows nothing of its certificate, and a wrong one is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.becoming import becomes
from support.fakes import fake_state, make_spec

from coloctl.colo import tls
from coloctl.errors import HostOutOfReach, PreconditionFailed
from coloctl.model import encryption
from coloctl.model.tls import TlsMode, TlsSpec
from coloctl.supervisor import certificates

pytestmark = pytest.mark.unit


async def test_certificates_are_read_again_as_soon_as_the_machines_are_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: Iterator[Exception] = iter(
        [
            HostOutOfReach("hv1 was not reached yet."),
            PreconditionFailed("The certificate of hv1 has ended."),
        ]
    )
    read = 0

    async def proofs(*_: object) -> dict[str, object]:
        nonlocal read
        read += 1
        raise next(errors)

    monkeypatch.setattr(tls, "proofs", proofs)
    monkeypatch.setattr(certificates, "REACH_PERIOD_S", 0.0)
    spec = replace(make_spec(), tls=TlsSpec(TlsMode.ON))
    async with fake_state(tmp_path, spec) as state:
        reading = asyncio.create_task(certificates.keep_reading(state))
        await becomes(lambda: state.encryption != encryption.ENCRYPTED)
        reading.cancel()
        assert "would be refused: The certificate of hv1 has ended." in state.encryption
        assert "not reached" not in state.encryption
        assert read == 2
