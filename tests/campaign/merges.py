"""Goal: no acknowledged write is lost, whatever ends a promoted secondary in a long merge.

Method: a firmware pair under TCG, 80 MiB in the active overlay, an image that takes 2 MiB per
second. The primary is killed, the secondary promoted; it acknowledges a record every 50 ms until it
ends: by SIGKILL or SIGTERM at each of ten moments, by its own power-off, by `stop`, by `stop
--force`. Its state folder is gone then, with claim and journal. The next start has another one; its
guest has to read every record. Prints a line per run and what was lost in all.

``PYTHONPATH=tests python tests/campaign/merges.py [SECONDS ...]``; exit code 1 if any was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import support.pairs
from support.merging import power_off, slow
from support.pairs import Stage, firmware_spec, guest_writes, holds, make_disks, qemu_io, supervised

from coloctl.errors import ColoctlError
from coloctl.lab import qemu
from coloctl.model.pair import CheckpointSpec, PairSpec
from coloctl.model.protection import Protection
from coloctl.model.units import MIB
from coloctl.supervisor import acts

HELD, SPEED = 80 * MIB, 2 * MIB
#: Seconds after the promotion; the merge takes 40.
MOMENTS = (0.0, 0.1, 0.5, 2.0, 5.0, 10.0, 20.0, 30.0, 38.0, 42.0)
#: A record is one block; every one has a place of its own, over what the overlay holds.
BLOCK, RECORD_S = 4096, 0.05

support.pairs.DISK_BYTES = 128 * MIB


def at(number: int) -> int:
    """Where a record lies: spread over all of the overlay."""
    return (number * 7919 * BLOCK) % HELD


async def serve(stage: Stage) -> int:
    """The survivor writes until it cannot; answers how many records it acknowledged."""
    survivor, number = stage.vm("b"), 0
    with contextlib.suppress(ColoctlError, AssertionError, TimeoutError, OSError):
        while survivor.process.alive():
            await guest_writes(survivor, number % 250 + 1, at(number), BLOCK)
            number += 1
            await asyncio.sleep(RECORD_S)
    return number


async def end(stage: Stage, how: str, after_s: float) -> None:
    """The survivor has ended in that way, and nothing of the pair runs."""
    await asyncio.sleep(after_s)
    if how == "power-off":
        await power_off(stage.vm("b"))
    elif how.startswith("stop"):
        await acts.stop(stage.state, force=how == "stop --force", timeout_s=1.0)
    else:
        stage.vm("b").process.signal(signal.Signals[how])
    async with asyncio.timeout(300):
        while stage.state.protection is not Protection.DOWN:  # noqa: ASYNC110 - a campaign may poll
            await asyncio.sleep(0.1)


async def run(spec: PairSpec, build: qemu.Build, how: str, after_s: float) -> tuple[int, int]:
    """Records acknowledged, and lost."""
    await make_disks(spec, build.img)
    async with supervised(spec) as stage:
        await stage.start()
        survivor = stage.secondary
        await slow(survivor, spec, SPEED)
        await stage.checkpoints(1)
        for place in range(0, HELD, 8 * MIB):
            await qemu_io(survivor, f"write -P 255 {place} {8 * MIB}")
        stage.primary.process.signal(signal.SIGKILL)
        await acts.failover(stage.state, "b")
        serving = asyncio.create_task(serve(stage))
        await end(stage, how, after_s)
        written = await serving
    async with supervised(spec) as stage:
        await stage.start(protected=False)
        assert stage.primary.node == "b"
        last = {at(number): number % 250 + 1 for number in range(written)}
        lost = [where for where, byte in last.items()
                if not await holds(stage.primary, byte, where, BLOCK)]  # fmt: skip
        rest = next(n for n in range(written, 10**6) if at(n) not in last)
        if not await holds(stage.primary, 255, at(rest), BLOCK):
            lost.append(at(rest))
    return written, len(lost)


async def campaign(moments: tuple[float, ...]) -> int:
    build = qemu.provide("11.1")
    ends = [(how, after_s) for how in ("SIGKILL", "SIGTERM") for after_s in moments]
    ends += [(how, 3.0) for how in ("stop", "stop --force", "power-off")]
    acknowledged = lost = 0
    for how, after_s in ends:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["COLOCTL_STATE_DIR"] = f"{folder}/s"
            os.environ["COLOCTL_REGISTRY_DIR"] = f"{folder}/disks"
            spec = firmware_spec(Path(folder), build, "tcg")
            images = {node: Path(folder) / f"{node}.raw" for node in spec.disks[0].image}
            spec = replace(
                spec,
                disks=(replace(spec.disks[0], format="raw", image=images),),
                checkpoint=CheckpointSpec(delay_ms=5000, guard_first_connection=False),
            )
            began = time.monotonic()
            written, gone = await run(spec, build, how, after_s)
            took = f"{time.monotonic() - began:.0f} s"
            print(f"{how} after {after_s:g} s: {written} acknowledged, {gone} lost ({took})")
            acknowledged, lost = acknowledged + written, lost + gone
    print(f"{len(ends)} runs: {acknowledged} acknowledged, {lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    chosen = tuple(float(word) for word in sys.argv[1:])
    sys.exit(asyncio.run(campaign(chosen or MOMENTS)))
