"""The CPU models of real QEMUs: what two of them have in common runs in both of them.

Two versions stand in for two machines, because QEMU's own processor under TCG differs between
them; the older one has fewer features.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coloctl.check import processors
from coloctl.check.finding import Severity
from coloctl.colo import cpu_models
from coloctl.host import LocalHost
from coloctl.host.base import Host
from coloctl.host.machine import this_machine
from coloctl.host.records import Machine
from coloctl.lab import qemu
from coloctl.model.pair import NodeName

pytestmark = pytest.mark.qemu


class Elsewhere(LocalHost):
    """This machine under another name and identity."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._named = replace(this_machine(), name=name, machine_id=name)

    @property
    def machine(self) -> Machine:
        return self._named


@pytest.fixture
def hosts() -> dict[NodeName, Host]:
    return {"a": Elsewhere("hv1"), "b": Elsewhere("hv2")}


@pytest.fixture
def binaries(qemu_builds: Callable[[str], qemu.Build]) -> dict[NodeName, Path]:
    return {"a": qemu_builds("11.1").binary, "b": qemu_builds("7.2").binary}


def accepts(binary: Path, model: str) -> bool:
    """Whether this QEMU makes the processor with each of its features."""
    words = ["-accel", "tcg", "-cpu", f"{model},enforce", "-nodefaults", "-display", "none", "-S"]
    done = subprocess.run(
        [binary, *words, "-monitor", "stdio"],
        input="quit\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode == 0


async def test_a_model_that_one_machine_misses_is_refused_and_the_offered_one_runs_on_both(
    hosts: dict[NodeName, Host], binaries: dict[NodeName, Path]
) -> None:
    (found,) = await processors.compare(hosts, binaries, "tcg", "max")
    assert found.severity is Severity.ERROR
    assert found.sentence.startswith("The processor of hv2 has no "), found
    offered = found.hint.split('"')[1]
    for binary in binaries.values():
        assert accepts(binary, offered)
    (sound,) = await processors.compare(hosts, binaries, "tcg", offered)
    assert sound.severity is Severity.INFO and sound.hint == found.hint
    facts = {n: await cpu_models.ask(hosts[n], binaries[n], "tcg") for n in hosts}
    [lacking] = [n for n, missing in facts["b"].models.items() if n == "EPYC-v1" and missing]
    assert not accepts(binaries["b"], lacking)
    (refused,) = await processors.compare(hosts, binaries, "tcg", lacking)
    assert refused.severity is Severity.ERROR and f"which {lacking} needs." in refused.sentence


async def test_equal_machines_may_give_the_guest_what_they_have(
    hosts: dict[NodeName, Host], binaries: dict[NodeName, Path]
) -> None:
    same: dict[NodeName, Path] = dict.fromkeys(hosts, binaries["a"])
    (found,) = await processors.compare(hosts, same, "tcg", None)
    assert found.severity is Severity.OK and '[guest] cpu = "max" may be set.' in found.sentence
    (under_tcg,) = await processors.examine_processors(hosts, same, wanted="tcg", model="host")
    assert "QEMU's own on both nodes" in under_tcg.sentence
