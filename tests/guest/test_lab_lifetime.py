"""A lab comes whole and goes without a trace, whoever interrupts it and whenever."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from labtools import NAME, NEEDS_ROOT, leftovers, ping, stand_in

from coloctl.errors import LabError
from coloctl.lab import devices, layout, link, netns
from coloctl.lab.network import Lab, labs

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module", autouse=True)
def _rights() -> None:
    if os.geteuid() != 0:
        pytest.skip(NEEDS_ROOT)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(NAME) as standing:
        yield standing


def namespaces_in_use() -> set[int]:
    """The inodes of all network namespaces in which some process lives."""
    inodes = set()
    for home in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            inodes.add(home.stat().st_ino)
    return inodes


def test_down_leaves_no_trace_and_may_be_repeated() -> None:
    fds = len(list(Path("/proc/self/fd").iterdir()))
    lab = Lab.up(NAME)
    inodes = {netns.path(ns).stat().st_ino for ns in (lab.host_a, lab.client)}
    polite = lab.popen(["sleep", "1000"], where="host-a")
    stubborn = lab.popen(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"],
        stdout=subprocess.PIPE,
    )
    assert stubborn.stdout is not None and stubborn.stdout.readline() == b"ready\n"
    assert NAME in labs()
    deeds = lab.down()
    assert polite.wait(5) == -signal.SIGTERM
    assert stubborn.wait(5) == -signal.SIGKILL
    stubborn.stdout.close()
    assert any("SIGTERM" in deed for deed in deeds) and any("SIGKILL" in deed for deed in deeds)
    assert leftovers(NAME) == []
    assert NAME not in labs()
    assert not inodes & namespaces_in_use()
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    assert lab.down() == []


def test_two_labs_stand_side_by_side() -> None:
    with Lab.up(f"{NAME}x") as first, Lab.up(f"{NAME}y") as second:
        stand_in(first, "host-a")
        assert ping(first.client, layout.GUEST)
        assert not ping(second.client, layout.GUEST, 0.3)
        first.link("client").cut()
        assert second.link("client").state() == "up"
        first.down()
        stand_in(second, "host-b")
        assert ping(second.client, layout.GUEST)
    assert leftovers(f"{NAME}x") == leftovers(f"{NAME}y") == []


def test_several_at_once_build_one_lab_and_take_it_down_together() -> None:
    def at_once(act: Callable[[], object]) -> None:
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    act()
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        ended = [os.waitpid(child, 0)[1] for child in children]
        assert ended == [0, 0, 0]

    try:
        at_once(lambda: Lab.up(NAME))
        stand_in(Lab.open(NAME), "host-a")
        assert ping(Lab.open(NAME).client, layout.GUEST)
    finally:
        at_once(Lab(NAME).down)
    assert leftovers(NAME) == []


def test_a_lab_is_opened_by_name_alone(lab: Lab) -> None:
    assert Lab.open(NAME).describe() == lab.describe()
    with pytest.raises(LabError, match="is not up") as closed:
        Lab.open(f"{NAME}-none")
    assert closed.value.hint


def test_somebody_elses_namespace_is_never_touched() -> None:
    name = f"{NAME}-client"
    with netns.exclusive():
        netns.create(name, lambda: None)
    try:
        for act in (lambda: Lab.up(NAME), Lab(NAME).down):
            with pytest.raises(LabError, match=name):
                act()
        assert [file.name for file in netns.RUN.glob(f"{NAME}-*")] == [name]
    finally:
        with netns.exclusive():
            netns.remove(name)


class Interrupter:
    """Counts everything that changes the kernel's state, and strikes just before the n-th."""

    def __init__(self, at: int, strike: Callable[[], None]) -> None:
        self.left = at
        self.strike = strike

    def step(self) -> None:
        """One more change is about to be made."""
        self.left -= 1
        if self.left == 0:
            self.strike()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Every netlink request and every mount, unshare and ioctl of the lab is counted."""
        interrupter, real_call = self, netns.call

        class Counted(devices.IPRoute):  # type: ignore[misc]
            def __getattr__(self, name: str) -> Any:
                found = super().__getattr__(name)
                if name not in ("link", "addr", "tc"):
                    return found

                def counted(command: str, *args: Any, **kwargs: Any) -> Any:
                    if command not in ("get", "dump"):
                        interrupter.step()
                    return found(command, *args, **kwargs)

                return counted

        def call(*arguments: Any) -> None:
            self.step()
            real_call(*arguments)

        patch.setattr(link, "IPRoute", Counted)
        patch.setattr(devices, "IPRoute", Counted)
        patch.setattr(netns, "call", call)


def crash_in(act: Callable[[], object], at: int) -> bool:
    """A child process died just before the n-th change that ``act`` makes; False if it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with pytest.MonkeyPatch.context() as patch:
                Interrupter(at, lambda: os._exit(77)).install(patch)
                act()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 77)
    return status == 77


def test_a_lab_that_crashed_at_any_step_is_mended_by_up_or_removed_by_down() -> None:
    with Lab.up(NAME) as lab:
        whole = shape(lab)
    at = 1
    try:
        while crash_in(lambda: Lab.up(NAME), at):
            if at % 2:
                mended = Lab.up(NAME)
                assert shape(mended) == whole, f"after a crash at change {at}"
            Lab(NAME).down()
            assert leftovers(NAME) == [], f"after a crash at change {at}"
            at += 1
    finally:
        Lab(NAME).down()
    assert at > 40


def test_a_down_that_crashed_at_any_step_is_finished_by_the_next() -> None:
    at = 1
    try:
        Lab.up(NAME)
        while crash_in(Lab(NAME).down, at):
            if at % 2:
                Lab(NAME).down()
                assert leftovers(NAME) == [], f"after a crash at change {at}"
            Lab.up(NAME)
            at += 1
    finally:
        Lab(NAME).down()
    assert at > 10


def shape(lab: Lab) -> dict[str, Any]:
    """The lab's document without what the kernel chooses: the taps' hardware addresses."""
    document = lab.describe()
    for machine in document["machines"].values():
        machine["devices"] = sorted(
            ({**d, "mac": ""} if d["kind"] == "tun" else d for d in machine["devices"]),
            key=lambda device: str(device["name"]),
        )
    return document


@pytest.mark.parametrize("at", [3, 10, 25, 40])
def test_an_interrupted_up_cleans_up_behind_itself(at: int) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        Interrupter(at, interrupt).install(patch)
        with pytest.raises(KeyboardInterrupt):
            Lab.up(NAME)
    assert leftovers(NAME) == []


def test_a_failing_up_of_a_standing_lab_leaves_it_standing(lab: Lab) -> None:
    def refuse() -> None:
        raise LabError("no more")

    with pytest.MonkeyPatch.context() as patch:
        Interrupter(30, refuse).install(patch)
        with pytest.raises(LabError, match="no more"):
            Lab.up(NAME)
    stand_in(lab, "host-a")
    assert ping(lab.client, layout.GUEST)
