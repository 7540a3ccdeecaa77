"""Goal: a copy that does not fit is refused with its figures, and one that fits is not.

Method: a host whose `qemu-img info` and `df` answer what a test wants; its files are real.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import DIALECTS, make_spec

from coloctl.colo import first_copy
from coloctl.colo.ground import Ground, same_on_both
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Completed
from coloctl.host.local import LocalHost
from coloctl.model.pair import NODES, DiskSpec, PairSpec
from coloctl.model.units import MIB
from coloctl.vm import Binary

pytestmark = pytest.mark.unit


class Answers(LocalHost):
    """A host with so much room, whose images have allocated so much."""

    def __init__(self, *, free: int, allocated: dict[str, int], size: int = 1 << 30) -> None:
        super().__init__()
        self._free, self._allocated, self._size = free, allocated, size

    async def run(self, argv: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Completed:
        path = Path(argv[-1])
        if "info" in argv:
            if not path.exists():
                return Completed(1, "", f"qemu-img: Could not open '{path}': No such file")
            found = {"format": "qcow2", "virtual-size": self._size, "filename": str(path)}
            found["actual-size"] = self._allocated[path.name]
            return Completed(0, json.dumps(found), "")
        return Completed(0, f"Filesystem\n/dev/x 1 1 {self._free // 1024} 1% /\n", "")


@pytest.fixture
def spec(tmp_path: Path) -> PairSpec:
    (tmp_path / "there").mkdir()
    images = {"a": tmp_path / "a.qcow2", "b": tmp_path / "there" / "b.qcow2"}
    images["a"].touch()
    spec = make_spec()
    return replace(spec, disks=(DiskSpec("disk0", {node: images[node] for node in NODES}),))


def ground(host: LocalHost) -> Ground:
    binary = Binary(Path("/usr/bin/qemu"), DIALECTS["reconnect-ms"])
    return Ground({"a": host, "b": host}, same_on_both(binary, "tcg"), Path("/nowhere"))


async def test_an_image_that_is_not_there_needs_what_the_guest_has_allocated(
    spec: PairSpec,
) -> None:
    host = Answers(free=100 * MIB, allocated={"a.qcow2": 99 * MIB})
    with pytest.raises(PreconditionFailed) as refused:
        await first_copy.require_place(spec, ground(host), "b", known=False)
    folder, name = spec.disks[0].image["b"].parent, host.machine.name
    assert refused.value.message == (
        f"{folder} on {name} has 100.0 MiB of room, and the copy of disk0 needs 101.0 MiB."
    )
    assert refused.value.hint and name in refused.value.hint
    host = Answers(free=102 * MIB, allocated={"a.qcow2": 99 * MIB})
    made = await first_copy.require_place(spec, ground(host), "b", known=False)
    assert made == {spec.disks[0].image["b"]: 1 << 30}
    assert not spec.disks[0].image["b"].exists()


async def test_an_image_that_is_there_needs_what_it_has_less(spec: PairSpec) -> None:
    spec.disks[0].image["b"].touch()
    for free, there, known, fits in (
        (10, 99, False, True),
        (10, 95, False, True),
        (10, 50, False, False),
        (10, 0, True, True),
        (0, 99, False, True),
    ):
        host = Answers(free=free * MIB, allocated={"a.qcow2": 99 * MIB, "b.qcow2": there * MIB})
        if fits:
            assert not await first_copy.require_place(spec, ground(host), "b", known=known)
        else:
            with pytest.raises(PreconditionFailed, match=r"needs 50\.0 MiB"):
                await first_copy.require_place(spec, ground(host), "b", known=known)


async def test_known_disks_of_which_one_is_gone_need_room_for_that_one(spec: PairSpec) -> None:
    host = Answers(free=10 * MIB, allocated={"a.qcow2": 99 * MIB})
    with pytest.raises(PreconditionFailed, match="the copy of disk0 needs"):
        await first_copy.require_place(spec, ground(host), "b", known=True)


async def test_a_folder_that_is_not_there_is_named_with_what_makes_it(spec: PairSpec) -> None:
    path = spec.disks[0].image["b"]
    path.parent.rmdir()
    host = Answers(free=1 << 40, allocated={"a.qcow2": MIB})
    with pytest.raises(PreconditionFailed, match="cannot be made in its folder: No such") as no:
        await first_copy.require_place(spec, ground(host), "b", known=False)
    assert no.value.hint and f"`mkdir -p {path.parent}` on" in no.value.hint


async def test_without_the_guest_s_own_image_nothing_is_copied(spec: PairSpec) -> None:
    spec.disks[0].image["a"].unlink()
    host = Answers(free=1 << 40, allocated={})
    with pytest.raises(PreconditionFailed, match=r"a\.qcow2 cannot be used as a disk image"):
        await first_copy.require_place(spec, ground(host), "b", known=False)
