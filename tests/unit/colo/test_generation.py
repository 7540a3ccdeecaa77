"""What stands beside the images decides whose disks the guest begins with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import DIALECTS, make_spec

from coloctl.colo import generation
from coloctl.colo.generation import Companion, Worth
from coloctl.colo.ground import Ground, same_on_both
from coloctl.errors import PreconditionFailed
from coloctl.host import open_host
from coloctl.model.pair import NODES, DiskSpec, NodeName, PairSpec, other
from coloctl.vm import Binary

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "registry"
    monkeypatch.setenv("COLOCTL_REGISTRY_DIR", str(folder))
    return folder


def spec_in(folder: Path) -> PairSpec:
    images = {node: folder / f"{node}.qcow2" for node in NODES}
    if folder.exists():
        for image in images.values():
            image.touch()
    return replace(make_spec(), disks=(DiskSpec("disk0", images),))


def on_ground(folder: Path, deed: Callable[[Ground], Awaitable[None]]) -> None:
    async def run() -> None:
        host = open_host("local")
        binary = Binary(Path("/usr/bin/qemu"), DIALECTS["reconnect-ms"])
        try:
            await deed(Ground({"a": host, "b": host}, same_on_both(binary, "tcg"), folder))
        finally:
            await host.aclose()

    asyncio.run(run())


def test_a_pair_that_never_failed_over_begins_on_node_a(tmp_path: Path) -> None:
    async def check(ground: Ground) -> None:
        found = await generation.read(spec_in(tmp_path), ground.hosts)
        assert found == {node: Companion("web", node) for node in NODES}
        assert generation.source(found) == "a"

    on_ground(tmp_path, check)


def test_disks_that_the_guest_only_ran_on_without_hold_nothing_of_it(tmp_path: Path) -> None:
    """A copy to them needs its whole room; one to disks that were once a copy does not."""

    async def check(ground: Ground) -> None:
        spec = spec_in(tmp_path)
        seen = [(await generation.read(spec, ground.hosts))["b"].held_guest]
        for state in (Worth.DIVERGED, Worth.RESYNC_TARGET, Worth.FOLLOWING, Worth.DIVERGED):
            await generation.write(spec, ground.hosts, "b", 0, state)
            seen.append((await generation.read(spec, ground.hosts))["b"].held_guest)
        assert seen == [False, False, True, True, True]

    on_ground(tmp_path, check)


def test_the_last_to_be_promoted_has_the_newest_disks(tmp_path: Path) -> None:
    async def check(ground: Ground) -> None:
        spec = spec_in(tmp_path)
        for number, node in enumerate(("b", "a", "b"), start=1):
            await generation.write(spec, ground.hosts, node, number)  # type: ignore[arg-type]
            assert generation.source(await generation.read(spec, ground.hosts)) == node
        found = await generation.read(spec, ground.hosts)
        assert {node: one.generation for node, one in found.items()} == {"a": 2, "b": 3}
        assert {path.name for path in tmp_path.iterdir()} == {
            "a.qcow2.generation",
            "b.qcow2.generation",
            "a.qcow2",
            "b.qcow2",
            "registry",
        }

    on_ground(tmp_path, check)


@pytest.mark.parametrize("state", Worth)
def test_what_was_written_is_read_back(tmp_path: Path, state: Worth) -> None:
    async def check(ground: Ground) -> None:
        spec = spec_in(tmp_path)
        await generation.write(spec, ground.hosts, "b", 7, state)
        found = await generation.read(spec, ground.hosts)
        assert found["b"] == Companion("web", "b", 7, state, written=True, serial=1)

    on_ground(tmp_path, check)


def test_a_lone_number_is_a_generation(tmp_path: Path) -> None:
    """As it was written before there were states, or by a person."""

    async def check(ground: Ground) -> None:
        (tmp_path / "b.qcow2.generation").write_text("4\n")
        found = await generation.read(spec_in(tmp_path), ground.hosts)
        assert found["b"] == Companion("web", "b", 4, written=True)

    on_ground(tmp_path, check)


@pytest.mark.parametrize("text", ["newest\n", "", "true", "[]", '{"pair": "web", "generation": 1}'])
def test_what_does_not_tell_is_neither_new_nor_old(tmp_path: Path, text: str) -> None:
    """Nothing of the registry helps here: an earlier coloctl wrote what was damaged."""

    async def check(ground: Ground) -> None:
        spec = spec_in(tmp_path)
        (tmp_path / "b.qcow2.generation").write_text(text)
        found = await generation.read(spec, ground.hosts)
        with pytest.raises(PreconditionFailed, match=r"b\.qcow2\.generation .*would be lost") as no:
            generation.source(found)
        assert no.value.hint and "--from NODE" in no.value.hint

    on_ground(tmp_path, check)


def test_another_pair_s_disks_are_refused(tmp_path: Path) -> None:
    async def check(ground: Ground) -> None:
        spec = spec_in(tmp_path)
        await generation.write(replace(spec, name="shop"), ground.hosts, "a", 2)
        with pytest.raises(PreconditionFailed, match="belong to the pair shop") as failed:
            await generation.read(spec, ground.hosts)
        assert failed.value.hint

    on_ground(tmp_path, check)


def test_a_number_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    async def check(ground: Ground) -> None:
        (tmp_path / "registry").write_text("no folder")
        with pytest.raises(PreconditionFailed, match="cannot be written"):
            await generation.write(spec_in(tmp_path / "absent"), ground.hosts, "b", 1)

    on_ground(tmp_path, check)


def test_pairs_without_disks_keep_none(tmp_path: Path, registry: Path) -> None:
    async def check(ground: Ground) -> None:
        spec = replace(make_spec(), disks=())
        await generation.write(spec, ground.hosts, "b", 1)
        found = await generation.read(spec, ground.hosts)
        assert found == {node: Companion("web", node) for node in NODES}
        assert not registry.exists()

    on_ground(tmp_path, check)


_worths = st.builds(
    lambda a, b: {
        node: Companion("web", node, number, state)
        for node, (number, state) in zip(NODES, (a, b), strict=True)
    },
    *[st.tuples(st.integers(0, 3), st.sampled_from(Worth))] * 2,
)


@given(_worths, st.none() | st.tuples(st.sampled_from(NODES), st.integers(0, 4)))
def test_nothing_newer_is_ever_passed_over(
    found: dict[NodeName, Companion], promoted: tuple[NodeName, int] | None
) -> None:
    """Whoever is chosen is whole, and nobody is known to have gone further."""
    try:
        node = generation.source(found, promoted=promoted)
    except PreconditionFailed as refused:
        assert refused.hint and all(one.sentence() in refused.message for one in found.values())
        return
    reached = {
        one: max(found[one].generation, promoted[1] if promoted and promoted[0] == one else 0)
        for one in NODES
    }
    assert found[node].state not in (Worth.DIVERGED, Worth.RESYNC_TARGET)
    assert reached[node] >= reached[other(node)]


def test_a_primary_s_disks_come_before_its_secondary_s() -> None:
    """Whoever ended first, the guest may have written once more after its secondary was gone."""
    found = {
        "a": Companion("web", "a", 1, Worth.FOLLOWING),
        "b": Companion("web", "b", 1),
    }
    assert generation.source(found) == "b"  # type: ignore[arg-type]


def test_half_a_copy_is_no_guest_s_disk() -> None:
    found = {
        "a": Companion("web", "a", 1),
        "b": Companion("web", "b", 2, Worth.RESYNC_TARGET),
    }
    with pytest.raises(PreconditionFailed, match="since generation 1 would be lost"):
        generation.source(found)  # type: ignore[arg-type]


_doubts = st.builds(
    lambda generation, bound, replaced: Companion(
        "web", "b", generation, doubt="Nothing is known.", bound=bound, replaced=replaced
    ),
    st.just(0),
    st.none() | st.integers(0, 4),
    st.booleans(),
)


@given(
    st.just(Companion("web", "a"))
    | st.builds(
        Companion,
        st.just("web"),
        st.just("a"),
        st.integers(0, 3),
        st.sampled_from(Worth),
        written=st.just(True),
    ),
    _doubts,
)
def test_disks_in_doubt_are_neither_chosen_nor_passed_over(a: Companion, b: Companion) -> None:
    """They are passed over only by disks that hold all that those in doubt can hold."""
    found: dict[NodeName, Companion] = {"a": a, "b": b}
    try:
        node = generation.source(found)
    except PreconditionFailed as refused:
        assert "Nothing is known." in refused.message
        assert "--from" in (refused.hint or "")
        return
    assert node == "a"
    assert b.bound is not None and b.bound <= a.generation
    if not (b.replaced and b.bound == 0):
        assert a.written, "new disks hold nothing"
        assert b.bound < a.generation or a.state is not Worth.FOLLOWING


def test_new_disks_for_both_nodes_are_a_new_pair() -> None:
    """The registry still knows the disks that lay there before; of these nothing is written."""
    found = {
        node: Companion("web", node, doubt="Others lay there.", bound=number, replaced=True)
        for node, number in (("a", 3), ("b", 4))
    }
    assert generation.source(found) == "a"  # type: ignore[arg-type]
    with pytest.raises(PreconditionFailed, match="Others lay there"):
        generation.source({**found, "a": Companion("web", "a", 3)})  # type: ignore[dict-item]


def test_new_disks_are_never_preferred_to_those_that_were_known() -> None:
    """A prepared image took the place of node a's; its companion was forgotten, b's is empty."""
    known = Companion("web", "a", doubt="It was written for other disks.", bound=0)
    new = Companion("web", "b")
    with pytest.raises(PreconditionFailed, match="written for other disks"):
        generation.source({"a": known, "b": new})
    assert generation.source({"a": replace(known, replaced=True), "b": new}) == "a"
    with pytest.raises(PreconditionFailed):
        generation.source({"a": replace(known, replaced=True, bound=1), "b": new})


def test_disks_that_the_guest_went_on_without_are_marked_where_they_could_count_as_whole(
    tmp_path: Path,
) -> None:
    spec = spec_in(tmp_path)

    async def check(ground: Ground) -> None:
        await generation.write(spec, ground.hosts, "a", 3)
        for state in Worth:
            overlays = {"disk0": ("/x",)} if state is Worth.OVERLAY_PENDING else {}
            await generation.write(spec, ground.hosts, "b", 2, state, overlays=overlays)
            assert not await generation.leave(spec, ground.hosts, "b", 3)
            found = (await generation.read(spec, ground.hosts))["b"]
            kept = state if state in (Worth.OVERLAY_PENDING, Worth.RESYNC_TARGET) else None
            assert found.state is (kept or Worth.DIVERGED) and found.written
            spec.disks[0].image["b"].unlink()
            spec.disks[0].image["b"].touch()

    on_ground(tmp_path, check)
