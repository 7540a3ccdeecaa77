"""Faults dealt to a real pair: each has an effect that can be seen, and none after it is healed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path

import pytest
from support.pair_under_test import PATIENCE_S, RunningPair, running, setup_of

from coloctl import paths
from coloctl.chaos.faults import FAULTS
from coloctl.control.client import ControlClient
from coloctl.errors import MonitorError
from coloctl.lab import qemu

pytestmark = pytest.mark.qemu

PREPARED = ["monitor-hang", "clock-jump", "filesystem-full"]


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, qemu_builds: Callable[[str], qemu.Build]
) -> Iterator[RunningPair]:
    """A pair in COLO that is prepared for every fault; the last test costs it a node."""
    if os.geteuid() != 0:
        pytest.skip("mounting a filesystem and taking niceness back need root")
    folder = tmp_path_factory.mktemp("n")
    setup = setup_of(folder, qemu_builds("11.1"))
    with ExitStack() as stack:
        for kind in PREPARED:
            prepare = FAULTS[kind].prepare
            assert prepare is not None
            stack.enter_context(prepare(setup))
        yield stack.enter_context(running(setup))
    assert not [path for path in folder.iterdir() if path.is_dir()]


def named(pair: RunningPair, node: str) -> set[str]:
    nodes = {n["node-name"] for n in pair.qmp(node, "query-named-block-nodes")}
    return nodes | {n["name"] for n in pair.qmp(node, "qom-list", path="/objects")}


def answers(pair: RunningPair, node: str, *, oob: bool) -> bool:
    execute = {"execute": "query-yank" if oob else "query-status", "oob": oob}
    try:
        pair.ask("node-qmp", 20, node=node, timeout_s=0.5, **execute)
    except MonitorError:
        return False
    return True


def clock_error(pair: RunningPair) -> float:
    """How far the supervisor's clock is off, by what it says of the next checkpoint."""
    with ControlClient.connect(paths.control_socket(pair.pair.name), 10) as client:
        for event in client.events(30):
            if event.name == "CHECKPOINT":
                return event.at_s - time.time()
    raise AssertionError(pair.view())


def test_what_was_healed_in_time_costs_nothing(pair: RunningPair) -> None:
    primary, secondary = (pair.node(role).name for role in ("primary", "secondary"))
    whole = named(pair, secondary)
    # Every checkpoint empties both overlays: an error there would cost the secondary at once.
    for kind, layer, how in [
        ("disk-slow", "active", {"iops": 1000}),
        ("disk-slow", "hidden", {"iops": 1000}),
        ("disk-error", "image", {}),
    ]:
        fault = pair.inject(kind, "secondary", layer=layer, **how)
        assert fault.nodes == (secondary,)
        assert len(named(pair, secondary) - whole) >= 1
        fault.heal()
        fault.heal()
        assert named(pair, secondary) == whole

    fault = pair.inject("monitor-hang", "secondary", which="commands")
    assert not answers(pair, secondary, oob=False)
    assert answers(pair, secondary, oob=True) and answers(pair, primary, oob=False)
    fault.heal()
    pair.until(lambda: answers(pair, secondary, oob=False))

    fault = pair.inject("monitor-hang", "primary", which="commands")
    # Whatever it told before it fell silent, the rescue monitor tells the rest.
    counted = pair.view().checkpoints.count
    pair.until(lambda: pair.view().checkpoints.count >= counted + 4)
    assert not answers(pair, primary, oob=False)
    fault.heal()
    pair.until(lambda: answers(pair, primary, oob=False))
    with ControlClient.connect(paths.control_socket(pair.pair.name), 10) as client:
        told = (event.data for event in client.events(30) if event.name == "CHECKPOINT")
        phases = [(one["count"], one["phase"]) for one in islice(told, 6)]
    # What it tells late is not counted again: begin and end take turns, one number each.
    assert all(a[1] != b[1] and b[0] - a[0] == (b[1] == "end") for a, b in pairwise(phases))

    fault = pair.inject("clock-jump", "supervisor", seconds=-86400)
    assert clock_error(pair) < -80000
    fault.heal()
    assert abs(clock_error(pair)) < 80000

    pid = pair.node("primary").pid
    usual = os.getpriority(os.PRIO_PROCESS, pid)
    fault = pair.inject("cpu-starvation", "primary", burners=2, nice=usual + 3)
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {usual + 3}
    fault.heal()
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {usual}

    fault = pair.inject("operator", "pair", verb="checkpoint")
    fault.heal()
    assert fault.result() == "done"
    assert pair.view().protection == "colo"


def test_a_failover_keeps_room_and_without_any_is_written_down_later(pair: RunningPair) -> None:
    secondary = pair.node("secondary").name
    full = pair.inject("filesystem-full", "state")
    with pytest.raises(OSError, match="No space left"):
        (paths.state_dir() / "more").write_bytes(bytes(8192))
    (paths.state_dir() / "more").unlink()
    pair.inject("kill", "primary")
    pair.until(lambda: pair.view().protection == "unprotected")
    assert pair.node("primary").name == secondary
    full.heal()

    pair.ask("pair-protect", PATIENCE_S)
    secondary = pair.node("secondary").name
    os.truncate(paths.pair_dir(pair.pair.name) / "journal.jsonl.reserve", 0)
    full = pair.inject("filesystem-full", "state")
    journal = paths.pair_dir(pair.pair.name) / "journal.jsonl"
    left = -journal.stat().st_size % 4096  # of its last block; a failover writes almost 4 KiB
    pair.inject("kill", "primary")
    # The claim fits into the place of the one before; the journal has to wait.
    pair.until(lambda: pair.view().protection == "unprotected")
    assert "nothing new is begun" in pair.view().unwritten or left > 3500
    full.heal()
    pair.until(lambda: not pair.view().unwritten)
    assert '"fact":"survivor-runs"' in journal.read_text().rpartition('"fact":"node-lost"')[2]
    assert pair.node("primary").name == secondary

    bad = pair.inject("disk-error", "primary", errno="EIO", on="write")
    assert "Input/output error" in pair.qemu_io(secondary, "write 0 64k")
    bad.heal()
    assert "wrote 65536/65536" in pair.qemu_io(secondary, "write 0 64k")
