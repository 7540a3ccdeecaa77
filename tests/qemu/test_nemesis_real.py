"""Faults dealt to a real pair: each has an effect that can be seen, and none after it is healed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path

import pytest
from support.grounds import PATIENCE_S, Scene, playing, staging

from coloctl import paths
from coloctl.chaos.faults import FAULTS
from coloctl.control.client import ControlClient
from coloctl.errors import MonitorError
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu

PREPARED = ["monitor-hang", "clock-jump", "filesystem-full"]


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory, qemu_builds: Callable[[str], qemu.Build]
) -> Iterator[Scene]:
    """A pair in COLO that is prepared for every fault; the last test costs it a node."""
    if os.geteuid() != 0:
        pytest.skip("mounting a filesystem and taking niceness back need root")
    folder = tmp_path_factory.mktemp("n")
    stage = staging(folder, qemu_builds("11.1"))
    with ExitStack() as stack:
        for kind in PREPARED:
            prepare = FAULTS[kind].prepare
            assert prepare is not None
            stack.enter_context(prepare(stage))
        yield stack.enter_context(playing(stage))
    assert not [path for path in folder.iterdir() if path.is_dir()]


def named(scene: Scene, node: str) -> set[str]:
    nodes = {n["node-name"] for n in scene.qmp(node, "query-named-block-nodes")}
    return nodes | {n["name"] for n in scene.qmp(node, "qom-list", path="/objects")}


def answers(scene: Scene, node: str, *, oob: bool) -> bool:
    execute = {"execute": "query-yank" if oob else "query-status", "oob": oob}
    try:
        scene.ask("node-qmp", 20, node=node, timeout_s=0.5, **execute)
    except MonitorError:
        return False
    return True


def clock_error(scene: Scene) -> float:
    """How far the supervisor's clock is off, by what it says of the next checkpoint."""
    with ControlClient.connect(paths.control_socket(scene.ground.name), 10) as client:
        for event in client.events(30):
            if event.name == "CHECKPOINT":
                return event.at_s - time.time()
    raise AssertionError(scene.view())


def test_what_was_healed_in_time_costs_nothing(scene: Scene) -> None:
    primary, secondary = (scene.node(role)["name"] for role in ("primary", "secondary"))
    whole = named(scene, secondary)
    # Every checkpoint empties both overlays: an error there would cost the secondary at once.
    for kind, layer, how in [
        ("disk-slow", "active", {"iops": 1000}),
        ("disk-slow", "hidden", {"iops": 1000}),
        ("disk-error", "image", {}),
    ]:
        blow = scene.strike(kind, "secondary", layer=layer, **how)
        assert (blow.nodes, blow.missed) == ((secondary,), "")
        assert len(named(scene, secondary) - whole) >= 1
        blow.heal()
        blow.heal()
        assert named(scene, secondary) == whole

    blow = scene.strike("monitor-hang", "secondary", which="commands")
    assert not answers(scene, secondary, oob=False)
    assert answers(scene, secondary, oob=True) and answers(scene, primary, oob=False)
    blow.heal()
    scene.until(lambda: answers(scene, secondary, oob=False))

    blow = scene.strike("monitor-hang", "primary", which="commands")
    # Whatever it told before it fell silent, the rescue monitor tells the rest.
    counted = scene.view()["checkpoints"]["count"]
    scene.until(lambda: scene.view()["checkpoints"]["count"] >= counted + 4)
    assert not answers(scene, primary, oob=False)
    blow.heal()
    scene.until(lambda: answers(scene, primary, oob=False))
    with ControlClient.connect(paths.control_socket(scene.ground.name), 10) as client:
        told = (event.data for event in client.events(30) if event.name == "CHECKPOINT")
        phases = [(one["count"], one["phase"]) for one in islice(told, 6)]
    # What it tells late is not counted again: begin and end take turns, one number each.
    assert all(a[1] != b[1] and b[0] - a[0] == (b[1] == "end") for a, b in pairwise(phases))

    blow = scene.strike("clock-jump", "supervisor", seconds=-86400)
    assert clock_error(scene) < -80000
    blow.heal()
    assert abs(clock_error(scene)) < 80000

    pid = scene.node("primary")["pid"]
    blow = scene.strike("cpu-starvation", "primary", burners=2, nice=5)
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {5}
    blow.heal()
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {0}

    blow = scene.strike("operator", "pair", verb="checkpoint")
    blow.heal()
    assert blow.outcome() == "done"
    assert scene.view()["protection"] == "colo"


def test_a_failover_keeps_room_and_without_any_is_written_down_later(scene: Scene) -> None:
    secondary = scene.node("secondary")["name"]
    full = scene.strike("filesystem-full", "state")
    with pytest.raises(OSError, match="No space left"):
        (paths.state_dir() / "more").write_bytes(bytes(8192))
    (paths.state_dir() / "more").unlink()
    scene.strike("kill", "primary")
    scene.until(lambda: scene.view()["protection"] == "unprotected")
    assert scene.node("primary")["name"] == secondary
    full.heal()

    scene.ask("pair-protect", PATIENCE_S)
    secondary = scene.node("secondary")["name"]
    os.truncate(paths.pair_dir(scene.ground.name) / "journal.jsonl.reserve", 0)
    full = scene.strike("filesystem-full", "state")
    journal = paths.pair_dir(scene.ground.name) / "journal.jsonl"
    left = -journal.stat().st_size % 4096  # of its last block; a failover writes almost 4 KiB
    scene.strike("kill", "primary")
    # The claim fits into the place of the one before; the journal has to wait.
    scene.until(lambda: scene.view()["protection"] == "unprotected")
    assert "nothing new is begun" in scene.view()["unwritten"] or left > 3500
    full.heal()
    scene.until(lambda: not scene.view()["unwritten"])
    assert '"fact":"survivor-runs"' in journal.read_text().rpartition('"fact":"node-lost"')[2]
    assert scene.node("primary")["name"] == secondary

    bad = scene.strike("disk-error", "primary", errno="EIO", on="write")
    assert "Input/output error" in scene.qemu_io(secondary, "write 0 64k")
    bad.heal()
    assert "wrote 65536/65536" in scene.qemu_io(secondary, "write 0 64k")
