"""Faults as values: what is written to a QEMU, whom they hit, and how often they may be healed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from support.pair_under_test import InjectedFault
from support.views import pair_view

from coloctl.chaos.evidence.records import StrangerGains
from coloctl.chaos.faults import (
    FAULTS,
    disks,
    machine,
    monitor_proxy,
    monitors,
    stranger,
    supervisor,
)
from coloctl.chaos.faults.fault import NothingToHit, PairUnderTest, Setup
from coloctl.chaos.run.site import LabSite
from coloctl.errors import CommandRefused, NotProtected
from coloctl.lab.network import Lab
from coloctl.model.view import PairView

NODES = pair_view(a=("primary", 1), b=("secondary", 0))


def pair(home: Path = Path("/"), view: PairView = NODES, ask: Any = None) -> PairUnderTest:
    return PairUnderTest("p", LabSite(cast("Lab", None)), home, lambda: view, ask)


def inject(
    kind: str, target: str, ask: Any = None, on: PairUnderTest | None = None, **given: Any
) -> InjectedFault:
    return InjectedFault(replace(on or pair(), ask=ask), kind, target, given)


def test_every_fault_has_a_sentence_a_target_and_parameters_with_defaults() -> None:
    for kind, fault in FAULTS.items():
        assert fault.doc.endswith("."), kind
        assert fault.targets, kind
        fault.params()


class Graph:
    """A QEMU's block graph: enough of it to put a filter in and to take it out."""

    def __init__(self) -> None:
        self.below = {"parent0": "#block1", "hidden0": "#block2"}
        self.backing = {"hidden0": "parent0"}
        self.extra: set[str] = set()
        self.objects: set[str] = set()
        self.reopened: list[dict[str, Any]] = []
        self.refuse = ""

    def __call__(self, name: str, timeout_s: float, /, **given: Any) -> Any:
        assert (name, given["node"]) == ("node-qmp", "a")
        if given["execute"] == self.refuse:
            raise CommandRefused(self.refuse, "no")
        method = getattr(self, given["execute"].replace("-", "_"))
        return method(**{k.replace("-", "_"): v for k, v in given["arguments"].items()})

    def query_named_block_nodes(self) -> list[dict[str, str]]:
        names = {*self.below, *self.below.values(), *self.extra}
        return [{"node-name": name, "drv": "qcow2"} for name in names]

    def x_debug_query_block_graph(self) -> dict[str, Any]:
        names = [n["node-name"] for n in self.query_named_block_nodes()]
        edges = [("file", p, c) for p, c in self.below.items()]
        edges += [("backing", p, c) for p, c in self.backing.items()]
        return {
            "nodes": [{"id": i, "name": name} for i, name in enumerate(names)],
            "edges": [
                {"name": kind, "parent": names.index(p), "child": names.index(c)}
                for kind, p, c in edges
            ],
        }

    def blockdev_add(self, node_name: str, **_: Any) -> None:
        self.extra.add(node_name)

    def blockdev_del(self, node_name: str) -> None:
        assert node_name not in self.below.values()
        self.extra.remove(node_name)

    def object_add(self, id: str, **_: Any) -> None:
        self.objects.add(id)

    def object_del(self, id: str) -> None:
        self.objects.remove(id)

    def qom_list(self, path: str) -> list[dict[str, str]]:
        return [{"name": name} for name in self.objects]

    def blockdev_reopen(self, options: list[dict[str, Any]]) -> None:
        (one,) = options
        self.reopened.append(one)
        if one["node-name"] in self.below:
            self.below[one["node-name"]] = one["file"]


@pytest.mark.parametrize("kind", ["disk-error", "disk-slow"])
def test_a_filter_goes_in_with_all_that_its_node_had_and_comes_out_again(kind: str) -> None:
    graph = Graph()
    fault = inject(kind, "primary", graph, layer="hidden")
    assert (fault.nodes, fault.role) == (("a",), "primary")
    added = graph.below["hidden0"]
    assert graph.extra == {added, added.removesuffix("-door")}
    assert graph.reopened == [
        {"driver": "qcow2", "node-name": "hidden0", "file": added, "backing": "parent0"}
    ]
    with pytest.raises(NothingToHit, match="hurt already"):
        inject(kind, "primary", graph, layer="hidden")
    for _ in range(2):
        fault.heal()
        assert graph.below["hidden0"] == "#block2"
        assert not graph.extra | graph.objects


def test_a_filter_is_healed_where_its_format_node_is_gone_or_its_qemu_another() -> None:
    graph, shown = Graph(), [NODES]
    on = replace(pair(), view=lambda: shown[0])
    fault = inject("disk-slow", "a", graph, on, layer="hidden")
    del graph.below["hidden0"], graph.backing["hidden0"]
    fault.heal()
    assert not graph.extra | graph.objects
    fault = inject("disk-error", "a", graph, on)
    shown[0] = pair_view(a=("primary", 7), b=("secondary", 0))
    graph.refuse = "query-named-block-nodes"
    fault.heal()


def test_a_filter_that_is_refused_leaves_nothing() -> None:
    graph = Graph()
    graph.refuse = "blockdev-reopen"
    with pytest.raises(CommandRefused):
        inject("disk-slow", "primary", graph)
    assert not graph.extra | graph.objects


@pytest.mark.parametrize(
    ("kind", "target", "given", "why"),
    [
        ("disk-error", "secondary", {}, "no secondary"),
        ("disk-error", "primary", {"disk": "disk1"}, "no parent1"),
        ("monitor-hang", "secondary", {}, "no secondary"),
        ("cpu-starvation", "b", {}, "no b"),
        ("clock-jump", "supervisor", {}, "not prepared"),
        ("filesystem-full", "state", {}, "no filesystem of its own"),
        ("images-full", "both", {}, "no filesystem of their own"),
        ("reader-gone", "supervisor", {}, "no pipe of this run"),
        ("script-killed", "secondary", {}, "no secondary"),
    ],
)
def test_a_fault_without_a_victim_says_so(
    kind: str, target: str, given: dict[str, Any], why: str
) -> None:
    with pytest.raises(NothingToHit, match=why):
        inject(kind, target, Graph(), **given)


def test_only_monitors_of_a_pair_are_served_by_proxies() -> None:
    words = ["-chardev", "socket,id=qmp0,fd=5,server=on,wait=off", "-qmp", "chardev:qmp0"]
    rescue = ["-chardev", "socket,id=rescue0,fd=6,server=on,wait=off"]
    console = ["-chardev", "file,id=console0,path=/x"]
    assert monitor_proxy.monitors([*words, *rescue, *console]) == {"qmp": 5, "rescue": 6}
    assert monitor_proxy.monitors(["-machine", "none", *words]) == {}
    assert monitor_proxy.monitors(["--version"]) == {}


def test_a_proxy_carries_bytes_and_descriptors_and_the_end() -> None:
    client, outer = socket.socketpair()
    inner, server = socket.socketpair()
    carrying = threading.Thread(target=monitor_proxy.carry, args=(outer, inner))
    carrying.start()
    reading, writing = os.pipe()
    with client, outer, inner, server, os.fdopen(reading, "rb") as end:
        socket.send_fds(client, [b" "], [writing])
        os.close(writing)
        client.sendall(b"getfd")
        data, fds, _, _ = socket.recv_fds(server, 64, 4)
        while len(data) < len(b" getfd"):
            data += server.recv(64)
        assert data == b" getfd"
        os.write(fds[0], b"through")
        os.close(fds[0])
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        carrying.join(5)
        assert end.read() == b"through"  # nobody kept a copy of the other end


def setup_of(folder: Path, qemu: Path) -> Setup:
    return Setup("p", folder, LabSite(cast("Lab", None)), qemu)


def test_a_wrapped_qemu_passes_questions_through_and_has_its_tools_beside(tmp_path: Path) -> None:
    real = tmp_path / "real dir" / "qemu-system-x86_64"
    real.parent.mkdir()
    for program in (real, real.with_name("qemu-img")):
        program.write_text(f'#!/bin/sh\necho {program.name} "$@"\n')
        program.chmod(0o755)
    stage = setup_of(tmp_path, real)
    with monitors.prepare(stage):
        assert stage.qemu != real
        asked = [[stage.qemu, "--version"], [stage.qemu.with_name("qemu-img"), "info", "x y"]]
        said = [subprocess.run(a, capture_output=True, text=True).stdout for a in asked]  # noqa: PLW1510
    assert said == ["qemu-system-x86_64 --version\n", "qemu-img info x y\n"]
    assert stage.qemu == real
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real dir"]


LOOK = """
import datetime, logging, time
print(time.time(), time.time_ns() / 1e9, datetime.datetime.now(datetime.timezone.utc).timestamp(),
      logging.makeLogRecord({}).created, time.mktime(time.localtime()), time.monotonic())
assert isinstance(datetime.datetime.fromisoformat("2026-01-01"), datetime.datetime)
from datetime import datetime as kind
assert isinstance(kind.now() - kind(2026, 1, 1), __import__("datetime").timedelta)
"""


@pytest.mark.parametrize("ours", [True, False])
def test_only_the_wall_clock_of_a_supervisor_jumps(tmp_path: Path, ours: bool) -> None:
    words = list(supervisor.SUPERVISOR) if ours else ["other"]
    stage = setup_of(tmp_path, tmp_path)
    jump = 86400.0
    with supervisor.shiftable_clock(stage):
        fault = inject("clock-jump", "supervisor", None, pair(tmp_path), seconds=jump)
        argv = [sys.executable, "-P", "-c", LOOK, *words]
        before, steady = time.time(), time.monotonic()
        environment = {**os.environ, **stage.environment}
        said = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, check=True).stdout
        *walls, monotonic = map(float, said.split())
        off = jump if ours else 0
        assert all(abs(wall - before - off) < jump / 2 for wall in walls)
        assert steady <= monotonic <= time.monotonic()
        fault.heal()
        fault.heal()
    fault.heal()
    assert not list(tmp_path.iterdir())


def test_an_operator_waits_in_a_thread_and_his_refusal_is_kept() -> None:
    let = threading.Event()

    def ask(name: str, timeout_s: float, /, **given: Any) -> None:
        assert (name, given) == ("pair-failover", {"to": "b"})
        let.wait(5)
        raise NotProtected("no")

    fault = inject("operator", "pair", ask, verb="failover", arguments={"to": "b"})
    assert (fault.note, fault.result()) == ("failover", "")
    let.set()
    fault.heal()
    fault.heal()
    assert fault.result() == "not-protected: no"


def test_an_operator_changes_settings() -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def ask(name: str, timeout_s: float, /, **given: Any) -> None:
        asked.append((name, given))

    given = {"settings": {"checkpoint-delay": 200}}
    fault = inject("operator", "pair", ask, verb="set", arguments=given)
    fault.heal()
    assert (asked, fault.result()) == ([("pair-set", given)], "done")


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "print('no')", ""])
def test_a_program_that_does_not_act_in_time_is_ended(program: str) -> None:
    started: list[subprocess.Popen[str]] = []

    def start(argv: list[str], **given: Any) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(argv, **given))
        return started[0]

    argv = [sys.executable, "-I", "-S", "-c", program]
    fault = machine.MemoryPressure(pair(), "machine", machine.MemoryPressureParams())
    with pytest.raises(NothingToHit, match="could not be held"):
        fault.start(start, argv, deadline_s=0.5)
    fault.heal()
    assert started[0].poll() is not None and fault.output is None


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may become another user")
def test_a_stranger_counts_the_connections_that_it_gets() -> None:
    fault = stranger.StrangerFault(pair(), "a", stranger.StrangerParams())
    assert fault.result() == ""
    with socket.create_server(("127.0.0.1", 0)) as door:
        name = f"a connection to port {door.getsockname()[1]}"
        given = json.dumps([[list(door.getsockname())], [], [], 0, stranger.NOBODY])
        argv = [sys.executable, "-I", "-c", stranger.PROGRAM, given]
        fault.start(subprocess.Popen, argv)
        door.accept()[0].close()
        fault.heal()
    gains = fault.result()
    assert isinstance(gains, StrangerGains)
    assert 0 < gains.got[name] <= gains.tried
    assert str(gains) == f"it got {gains.got[name]} x {name}"


@contextmanager
def healed(fault: InjectedFault) -> Iterator[InjectedFault]:
    with ExitStack() as stack:
        stack.callback(fault.heal)
        yield fault
        fault.heal()


def test_memory_is_held_within_what_there_is_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "spare_mib", lambda: 8)
    with healed(inject("memory-pressure", "machine", mib=4096)) as fault:
        assert fault.note == "8 MiB"
    monkeypatch.setattr(machine, "spare_mib", lambda: 0)
    with pytest.raises(NothingToHit, match="no memory to spare"):
        inject("memory-pressure", "machine")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a process less nice again")
def test_a_starved_process_is_nice_until_it_is_healed_and_may_have_ended_meanwhile() -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        before = os.getpriority(os.PRIO_PROCESS, victim.pid)
        on = pair(view=pair_view(a=("primary", victim.pid)))
        fault = inject("cpu-starvation", "primary", None, on, burners=1, nice=7)
        assert os.getpriority(os.PRIO_PROCESS, victim.pid) == 7
        fault.heal()
        fault.heal()
        assert os.getpriority(os.PRIO_PROCESS, victim.pid) == before
        with healed(inject("cpu-starvation", "primary", None, on, burners=0, nice=7)):
            victim.kill()


def test_requests_by_kind_are_those_of_blkdebug() -> None:
    made = disks.DiskErrorParams(errno="ENOSPC", on="all").filter("x").node("file")
    kinds = {rule["iotype"] for rule in made["inject-error"]}
    assert kinds == {"read", "write", "write-zeroes", "discard"}
    assert {rule["errno"] for rule in made["inject-error"]} == {28}
    slow = disks.DiskSlowParams(bytes_per_s=0, iops=3).filter("x")
    assert slow.helper is not None and slow.helper["limits"] == {"iops-total": 3}
    options = {"driver": "raw", "node-name": "p", "file": "g", "backing": "b"}
    assert disks.FilterPosition("p", "raw", "f", "b").reopened_on("g") == options
