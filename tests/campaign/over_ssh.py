"""Measure what a machine behind ssh costs a pair: round trips, proofs, an idle pair's processors.

By hand, as root, from the repository's root (two minutes):

    PYTHONPATH=tests .venv/bin/python tests/campaign/over_ssh.py [--local]

A lab of namespaces, the lab's guest, node b over a real ssh; with ``--local`` over none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from support import sshhost
from support.clients import booted, guest_spec
from support.pairs import Stage, supervised

from coloctl import procfs
from coloctl.lab import guest, netns, qemu
from coloctl.lab.network import Lab
from coloctl.model.launch import Launch
from coloctl.model.pair import PairSpec
from coloctl.model.tls import TlsMode, TlsSpec
from coloctl.qmp import command as qmp
from coloctl.supervisor import acts
from coloctl.vm import VM

ROUNDS, PROOFS, IDLE_S = 1000, 20, 20.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


async def timed(count: int, act: Callable[[], Awaitable[object]]) -> str:
    """Return median and 99th percentile of ``act``, milliseconds."""
    took = []
    for _ in range(count):
        began_s = time.monotonic()
        await act()
        took.append(time.monotonic() - began_s)
    took.sort()
    return f"p50 {1e3 * took[count // 2]:.2f} ms, p99 {1e3 * took[count * 99 // 100]:.2f} ms"


def used_s(pid: int) -> float:
    """Return the processor time that a process has used, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_kib(pid: int) -> int:
    """Return the memory of a process that is in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def idle(lab: Lab) -> None:
    """Print what each process of an idle pair uses."""
    ours = [pid for pid, stat in procfs.living().items() if stat.parent == os.getpid()]
    pids = {os.getpid(), *ours, *netns.processes(lab.host_a), *netns.processes(lab.host_b)}
    before, began_s = {pid: used_s(pid) for pid in pids}, time.monotonic()
    await asyncio.sleep(IDLE_S)
    span_s = time.monotonic() - began_s
    for pid in sorted(pids):
        with contextlib.suppress(OSError):
            share = 100 * (used_s(pid) - before[pid]) / span_s
            what = "supervisor" if pid == os.getpid() else name_of(pid)
            print(f"{what}: {share:.1f} % of a processor, {resident_kib(pid)} KiB")


async def measure_node(stage: Stage, vm: VM, log: Path) -> None:
    """Print the times of one node."""
    node, host = vm.node, vm.host
    print(node, "command:", await timed(ROUNDS, lambda: vm.execute(qmp.query_status())))
    print(node, "rescue:", await timed(ROUNDS, lambda: vm.monitor.rescue(qmp.query_yank(), 5)))
    if stage.secondary is vm:
        tap = f"tap-{node}"
        print(node, "tap down:", await timed(PROOFS, lambda: host.tap(tap, up=False)))
    held = [await host.launch(Launch(("sleep", "300")), stderr=log) for _ in range(PROOFS)]
    left = list(held)
    print(node, "kill to proof:", await timed(PROOFS, lambda: left.pop().kill(10)))
    for process in held:
        process.close()


async def measure(spec: PairSpec, lab: Lab, folder: Path) -> None:
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        await booted(stage)
        await stage.start()
        await stage.checkpoints(5)
        for node in ("a", "b"):
            await measure_node(stage, stage.vm(node), folder / "log")
        await idle(lab)
        await acts.stop(stage.state, force=False)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="over-ssh-") as scratch, Lab.up("overssh") as lab:
        folder = Path(scratch)
        os.environ["COLOCTL_STATE_DIR"] = str(folder / "state")
        os.environ["COLOCTL_REGISTRY_DIR"] = str(folder / "registry")
        hosts = sshhost.serve(folder / "ssh", {"host-b": lab.host_b})
        os.environ.update(hosts.environment)
        image = guest.find()
        assert image is not None, "`coloctl lab guest` builds it"
        spec = guest_spec(lab, image, folder, qemu.provide("11.1"))
        nodes = dict(spec.nodes)
        if "--local" not in sys.argv:
            nodes["b"] = replace(nodes["b"], host="ssh://host-b")
        plain = TlsSpec(mode=TlsMode.OFF)
        asyncio.run(measure(replace(spec, nodes=nodes, tls=plain), lab, folder))


if __name__ == "__main__":
    main()
