"""Goal: disks are called alike only when every byte was compared, and no guest waits long for that.

Method: qemu-img is answered for by a host that says what a test wants, or takes too long.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import DIALECTS, FakeHost, make_spec

from coloctl.colo import digests, equal_disks
from coloctl.colo.companion import Companion, Worth
from coloctl.colo.equal_disks import SMALL_BYTES, disks_alike, worth_comparing
from coloctl.colo.ground import Ground, same_on_both
from coloctl.errors import DeadlineMissed, PreconditionFailed
from coloctl.host.base import Completed
from coloctl.host.machine import this_machine
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.vm import Binary

pytestmark = pytest.mark.unit

NEW: dict[NodeName, Companion] = {node: Companion("web", node) for node in NODES}
APART: dict[NodeName, Companion] = {
    "a": Companion("web", "a", 3, written=True),
    "b": Companion("web", "b", 3, Worth.DIVERGED, written=True),
}

companions = st.builds(
    lambda a, b: {"a": Companion("web", "a", *a), "b": Companion("web", "b", *b)},
    *[st.tuples(st.integers(0, 2), st.sampled_from(Worth))] * 2,
)


@given(companions)
def test_large_disks_that_were_written_apart_are_not_read(found: dict[NodeName, Companion]) -> None:
    together = {Worth.IN_SYNC, Worth.FOLLOWING}
    one, other = found["a"], found["b"]
    may_be_alike = one.generation == other.generation and {one.state, other.state} <= together
    assert worth_comparing(found, SMALL_BYTES) == may_be_alike
    assert worth_comparing(found, SMALL_BYTES - 1)


class Answers(FakeHost):
    """A host whose qemu-img knows the size of both disks and whether they are the same."""

    def __init__(self, *, code: int = 0, late: bool = False, size: int = 1 << 20) -> None:
        super().__init__("a", [])
        self._code, self._late, self._size = code, late, size
        self.compared: list[float] = []

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        if "compare" not in argv:
            said = {"format": "qcow2", "virtual-size": 1 << 40, "actual-size": self._size}
            return Completed(0, json.dumps(said), "")
        self.compared.append(deadline_s)
        if self._late:
            raise DeadlineMissed("qemu-img did not end")
        return Completed(self._code, "", "boom")


def ask(
    host: Answers, found: dict[NodeName, Companion], disks: int = 1, *, there: str = ""
) -> bool:
    binary = Binary(Path("/usr/bin/qemu"), DIALECTS["reconnect-ms"])
    facts = same_on_both(binary, "tcg")
    if there:
        other = replace(this_machine(), name=there, machine_id="f2", boot_id="b2")
        machines = {"a": this_machine(), "b": other}
        nodes = {node: replace(facts.nodes[node], machine=machines[node]) for node in NODES}
        facts = replace(facts, nodes=nodes)
    ground = Ground({"a": host, "b": host}, facts, Path("/nowhere"))
    return asyncio.run(disks_alike(make_spec(disks=disks), ground, found))


def test_only_a_comparison_to_the_end_says_that_they_are_alike() -> None:
    assert ask(Answers(code=0), NEW)
    assert not ask(Answers(code=1), NEW)
    with pytest.raises(PreconditionFailed, match="cannot be compared"):
        ask(Answers(code=2), NEW)


def test_a_guest_waits_a_few_seconds_at_most_whatever_its_disks_hold() -> None:
    host = Answers(late=True, size=1 << 40)
    assert not ask(host, NEW, disks=2)
    assert sum(host.compared) <= equal_disks.COMPARE_WAIT_S
    host = Answers(size=1 << 40)
    assert ask(host, NEW, disks=3)
    assert len(host.compared) == 3 and sum(host.compared) <= equal_disks.COMPARE_WAIT_S


def test_what_is_known_to_differ_is_compared_only_where_that_is_quick() -> None:
    host = Answers(size=SMALL_BYTES)
    assert not ask(host, APART)
    assert not host.compared
    assert ask(Answers(size=1 << 20), APART)


def test_disks_of_two_machines_are_compared_by_digests_and_as_briefly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`tests/qemu/test_digests.py` compares real ones."""
    limits: list[float] = []
    answers: list[bool | TimeoutError] = [True, False, TimeoutError()]

    async def alike(spec: PairSpec, ground: Ground, limit_s: float) -> bool:
        limits.append(limit_s)
        if isinstance(answer := answers.pop(0), TimeoutError):
            raise answer
        return answer

    monkeypatch.setattr(digests, "alike", alike)
    host = Answers(code=0, size=1 << 40)
    assert [ask(host, NEW, there="hv2") for _ in range(3)] == [True, False, False]
    assert not ask(host, APART, there="hv2")
    assert not host.compared and limits == [equal_disks.COMPARE_WAIT_S] * 3
