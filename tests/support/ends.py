"""What QEMU says when a guest in COLO ends: no supervisor, every event of both sides, in order.

``python tests/support/ends.py DEED [--qemu NAME] [--append WORDS] [--seconds S] [-- OPTIONS]``
plays one deed on a real pair and prints what came of it, the QEMUs started with those options. A
deed is a word for the lab's guest, which a client publishes (`coloctl/lab/files/init`): reboot,
reset, poweroff, panic; or a QMP command and a node: system_reset@a, system_powerdown@b.
docs/qemu.md has what was learned with it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.clients import guest_spec, tell
from support.pairs import firmware_spec, make_disks

from coloctl import paths
from coloctl.clock import Deadline
from coloctl.colo import launch
from coloctl.colo.ground import Ground
from coloctl.colo.inspect import prepare
from coloctl.colo.protect import Protecting, protect
from coloctl.errors import ColoctlError
from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec
from coloctl.qmp.command import Command
from coloctl.vm import VM

PATIENCE_S = 90.0


class Log:
    """Events of both sides with the time since the deed; checkpoints are counted, not told."""

    def __init__(self) -> None:
        self.began_s = time.time()
        self.checkpoints = {"a": 0, "b": 0}
        self._held: dict[str, str] = {}

    def tell(self, who: str, what: str, at_s: float | None = None) -> None:
        at_ms = ((at_s or time.time()) - self.began_s) * 1000
        print(f"{at_ms:9.1f} {who} {what}", flush=True)

    async def listen(self, vm: VM) -> None:
        with vm.monitor.listen(bound=5000) as events:
            while True:
                event = await events.next(1e9)
                if event.name in ("STOP", "RESUME"):
                    self.checkpoints[vm.node] += event.name == "RESUME"
                    self._held[vm.node] = event.name
                    if not quiet:
                        self.tell(vm.node, event.name, event.at_s)
                else:
                    self.tell(vm.node, f"{event.name} {dict(event.data)}", event.at_s)


quiet = True


@asynccontextmanager
async def paired(spec: PairSpec, ground: Ground) -> AsyncIterator[tuple[VM, VM]]:
    """Both QEMUs are in COLO inside the block, and dead behind it."""
    vms: list[VM] = []
    firmware = spec.guest.kernel is None
    try:
        vms.append(await launch.launch_primary(spec, ground, "a", paused=firmware, record=None))
        if not firmware:
            await vms[0].until_booted(guest.READY_LINE, PATIENCE_S)
        vms.append(await launch.launch_secondary(spec, ground, "b", record=None))
        act = Protecting(spec, vms[0], vms[1], ground.node("a").binary.dialect, firmware, 500)
        await protect(
            act,
            deadline=Deadline(PATIENCE_S),
            report=lambda _step, _done, _total: None,
            fact=lambda _fact, _reason: None,
        )
        yield vms[0], vms[1]
    finally:
        for vm in vms:
            await vm.kill(10)
        for node in ("a", "b"):
            await launch.sweep(spec, ground, node)
        await ground.aclose()


async def state(vm: VM) -> str:
    if not vm.process.alive():
        return f"ended; last words: {(await vm.last_words(2)).strip() or 'none'}"
    try:
        seen = await vm.observe(3)
    except ColoctlError as error:
        return f"silent: {error}"
    return f"{seen.run_state}, migration {seen.migration}, COLO {seen.colo_mode}"


async def poll(log: Log, vm: VM) -> None:
    last = ""
    while True:
        now = await state(vm)
        told = now.replace("colo, migr", "running, migr").replace("paused, migr", "running, migr")
        if told != last:
            log.tell(vm.node, f"-- {now}")
        if not vm.process.alive():
            return
        last = told
        await asyncio.sleep(0.1)


async def play(spec: PairSpec, lab: Lab | None, deed: str, seconds: float) -> None:
    ground = await prepare(spec)
    paths.make_private(ground.folder)
    async with paired(spec, ground) as vms:
        log = Log()
        tasks = [asyncio.create_task(one) for vm in vms for one in (log.listen(vm), poll(log, vm))]
        await asyncio.sleep(1.2)
        log.began_s = time.time()
        before = dict(log.checkpoints)
        log.tell(" ", f"{deed}, after {before} resumptions")
        if "@" in deed:
            command, node = deed.split("@")
            await vms["ab".index(node)].execute(Command(command, {}))
        elif lab is not None:
            await tell(lab, deed)
        await asyncio.sleep(seconds)
        for vm in vms:
            log.tell(vm.node, f"== {await state(vm)}; {log.checkpoints[vm.node]} resumptions")
            console = (vm.rundir / "console.log").read_text(errors="replace")
            said = [line for line in console.splitlines() if line.strip()]
            print("   console:", *said[-tail:], sep="\n      ")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


tail = 8


def main() -> int:
    global quiet, tail
    words, _, options = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser()
    parser.add_argument("deed", metavar="EVENT")
    parser.add_argument("--qemu", default="11.1")
    parser.add_argument("--append", default="")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--firmware", action="store_true")
    parser.add_argument("--stops", action="store_true")
    parser.add_argument("--tail", type=int, default=8)
    asked = parser.parse_args(words.split())
    quiet, tail = not asked.stops, asked.tail
    build = qemu.provide(asked.qemu)
    with tempfile.TemporaryDirectory(prefix="ends-") as scratch:
        os.environ["COLOCTL_STATE_DIR"] = f"{scratch}/s"
        folder = paths.make_private(Path(scratch) / "d")
        extra = tuple(options.split())
        if asked.firmware:
            accel = "tcg" if asked.qemu == "11.1" else "kvm"
            spec = firmware_spec(folder, build, accel, extra_args=extra)
            asyncio.run(make_disks(spec, build.img))
            asyncio.run(play(spec, None, asked.deed, asked.seconds))
            return 0
        image = guest.provide(qemu_img=build.img)
        with Lab.up(f"ends{os.getpid()}") as lab:
            spec = guest_spec(lab, image, folder, build)
            append = f"{spec.guest.append} {asked.append}".rstrip()
            spec = replace(spec, guest=replace(spec.guest, append=append, extra_args=extra))
            asyncio.run(play(spec, lab, asked.deed, asked.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
