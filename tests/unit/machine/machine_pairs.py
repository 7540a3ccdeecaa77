"""Pairs to describe: nothing of them exists, and nothing of them has to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from coloctl.model.pair import (
    DiskSpec,
    GuestSpec,
    NicSpec,
    NodeSpec,
    PairSpec,
    TapSpec,
)


def disk(number: int = 0, **changes: object) -> DiskSpec:
    images = {"a": Path(f"/srv/a{number}.qcow2"), "b": Path(f"/srv/b{number}.qcow2")}
    return replace(DiskSpec(f"disk{number}", images), **changes)  # type: ignore[arg-type]


def nic(number: int = 0, **changes: object) -> NicSpec:
    tap = TapSpec({"a": f"tap-a{number}", "b": f"tap-b{number}"}, bridge="br0")
    return replace(NicSpec(f"hn{number}", f"52:54:00:12:34:5{number}", tap), **changes)  # type: ignore[arg-type]


def make_pair(
    *,
    disks: tuple[DiskSpec, ...] = (disk(),),
    nics: tuple[NicSpec, ...] = (nic(),),
    **guest: object,
) -> PairSpec:
    """A pair of 512 MiB with one disk and one NIC, and whatever is asked to be different."""
    return PairSpec(
        name="web",
        guest=replace(GuestSpec(memory_mib=512), **guest),  # type: ignore[arg-type]
        disks=disks,
        nics=nics,
        nodes={
            "a": NodeSpec("a", "netns:host-a", "10.66.0.1"),
            "b": NodeSpec("b", "netns:host-b", "10.66.0.2"),
        },
    )
