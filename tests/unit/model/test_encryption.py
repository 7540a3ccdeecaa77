"""The sentences about a pair's encryption: never silent about two machines in plain."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.fakes import make_spec, on_one_host

from coloctl.model import encryption
from coloctl.model.pair import PairSpec
from coloctl.model.tls import TlsMode, TlsSpec

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 29, tzinfo=UTC)


def apart(mode: TlsMode = TlsMode.AUTO) -> PairSpec:
    """A pair on two machines."""
    spec = replace(make_spec(), tls=TlsSpec(mode))
    return replace(spec, nodes={**spec.nodes, "b": replace(spec.nodes["b"], host="ssh://hv2")})


def test_a_pair_on_one_machine_needs_no_sentence() -> None:
    assert encryption.sentence(on_one_host(make_spec())) == ""
    assert encryption.sentence(make_spec()) == ""


def test_two_machines_are_never_silent() -> None:
    assert encryption.sentence(apart(TlsMode.OFF)) == encryption.PLAIN
    assert encryption.sentence(apart()) == encryption.ENCRYPTED
    local = replace(make_spec(), tls=TlsSpec(TlsMode.ON))
    assert encryption.sentence(local) == encryption.ENCRYPTED


@pytest.mark.parametrize(("days", "said"), [(13, True), (0, True), (-1, True), (15, False)])
def test_a_certificate_that_ends_soon_is_named(days: int, said: bool) -> None:
    ends = {"a": NOW + timedelta(days=300), "b": NOW + timedelta(days=days)}
    sentence = encryption.sentence(apart(), ends, NOW)
    assert ("node b" in sentence) is said
    assert "node a" not in sentence
    assert f"{ends['b']:%Y-%m-%d}" in sentence or not said


def test_a_next_secondary_that_would_be_refused_is_said_before_it_is_needed() -> None:
    wrong = "The certificate on hv2 is for hv9, not for hv2."
    assert encryption.sentence(apart(), wrong=wrong).endswith(wrong)
