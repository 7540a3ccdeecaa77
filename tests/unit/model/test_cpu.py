"""Goal: a CPU model runs on both machines or is refused, and the best common one is offered.

Method: answers as QEMU gives them, cut to the members that count.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloctl.model import cpu
from coloctl.model.cpu import CpuFacts

pytestmark = pytest.mark.unit

#: As a QEMU 11.1 under KVM answers for two generations of one vendor's servers.
SKYLAKE = ("aes", "avx", "avx2", "avx512bw", "avx512f", "sse4_2", "xsave")
HASWELL = ("aes", "avx", "avx2", "sse4_2", "xsave")


def expansion(*features: str, vendor: str = "GenuineIntel") -> dict[str, Any]:
    props: dict[str, Any] = {"vendor": vendor, "model-id": "x", "level": 13, "avx512pf": False}
    return {"model": {"name": "host", "props": {**props, **dict.fromkeys(features, True)}}}


def definitions(*features: str) -> list[dict[str, Any]]:
    needed = {
        "Skylake-Server-v4": SKYLAKE,
        "Skylake-Server": SKYLAKE,
        "Haswell-v4": HASWELL,
        "Haswell": HASWELL,
        "qemu64": (),
        "qemu64-v1": (),
        "base": (),
        "host": (),
    }
    return [
        {"name": name, "unavailable-features": [one for one in wanted if one not in features]}
        for name, wanted in needed.items()
    ]


def machine(*features: str, vendor: str = "GenuineIntel") -> CpuFacts:
    return cpu.facts(expansion(*features, vendor=vendor), definitions(*features))


NEW, OLD = machine(*SKYLAKE), machine(*HASWELL)
PAIR = {"hv1": NEW, "hv2": OLD}


def test_what_a_machine_has_is_refused_where_the_other_has_less() -> None:
    sentence = (
        "The processor of hv2 has no avx512bw and avx512f, which that of hv1 has: "
        "host would be two different ones."
    )
    assert cpu.trouble("host", PAIR) == sentence
    assert cpu.trouble("host", {"hv2": OLD, "hv1": NEW}) == sentence
    assert cpu.trouble("host", {"hv1": NEW, "hv2": NEW}) == ""
    assert cpu.trouble("host,-avx512f,avx512bw=off", PAIR) == ""
    amd = {"hv1": NEW, "hv2": machine(*SKYLAKE, vendor="AuthenticAMD")}
    assert "is of GenuineIntel and that of hv2 of AuthenticAMD" in cpu.trouble("host", amd)


def test_a_model_is_refused_where_one_machine_misses_a_feature_of_it() -> None:
    sentence = "The processor of hv2 has no avx512bw and avx512f, which Skylake-Server-v4 needs."
    assert cpu.trouble("Skylake-Server-v4", PAIR) == sentence
    assert cpu.trouble("Haswell-v4,+avx512f", PAIR) == (
        "The processor of hv2 has no avx512f, which Haswell-v4,+avx512f needs."
    )
    for fits in ("Haswell", "qemu64,kvmclock=on", "Skylake-Server,-avx512f,-avx512bw", "Unknown"):
        assert cpu.trouble(fits, PAIR) == "", fits


def test_both_spellings_of_a_feature_are_one() -> None:
    assert OLD.missing("qemu64,+sse4_2") == OLD.missing("qemu64,+sse4-2") == frozenset()
    assert machine("aes").missing("qemu64,+sse4_2,+sse4-2") == {"sse4-2"}


def test_the_richest_model_of_both_is_offered_with_its_version() -> None:
    names = cpu.candidates([NEW, OLD])
    assert names == ["Haswell-v4", "qemu64-v1"]
    features = {"Haswell-v4": HASWELL, "qemu64-v1": ()}
    assert cpu.richest({name: features[name] for name in names}) == "Haswell-v4"
    assert cpu.richest({}) is None


@pytest.mark.parametrize(
    ("features", "text"),
    [(["b"], "b"), (["b", "a"], "a and b"), (["c", "b", "a"], "a, b and c"),
     (["f", "e", "d", "c", "b", "a"], "a, b, c, d and 2 more")],
)  # fmt: skip
def test_many_features_are_counted(features: list[str], text: str) -> None:
    assert cpu.listed(features) == text


FEATURES = st.frozensets(st.sampled_from(SKYLAKE))


@given(FEATURES, FEATURES)
def test_no_model_is_offered_that_would_be_refused(
    one: frozenset[str], two: frozenset[str]
) -> None:
    machines = {"hv1": machine(*one), "hv2": machine(*two)}
    for name in cpu.candidates(list(machines.values())):
        assert cpu.trouble(name, machines) == ""
    assert (cpu.trouble("host", machines) == "") is (one == two)
