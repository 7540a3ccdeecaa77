"""Goal: the renewal of a TLS session's keys ends no pair, whichever thread sends and receives.

GnuTLS renews the keys of a TLS 1.3 session after 2^24 records, hours to days of a busy pair. Its
issue 1717 says that this is not safe where one thread sends and another receives. Method: the lab's
guest under load, every wire encrypted, in QEMUs that renew their keys after every few records
(`rekey.c`, loaded before GnuTLS). Per round: the first migration, with a sender and a receiver on
one session, then checkpoints, a comparison of disks and memory, and roles changed, all three times.
Prints a line per round; exit code 1 if a pair left COLO or differed.

``PYTHONPATH=tests python tests/campaign/rekey.py [--tls13] [--rounds N] [--checkpoints N] EVERY[p]
...``; ``p``: the other side is asked to renew its keys as well; 0 renews none.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from support.clients import booted, clients, guest_spec
from support.pairs import Stage, supervised

from coloctl.chaos.run.credentials import MACHINES, encrypted
from coloctl.errors import ColoctlError
from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab
from coloctl.machine import tls
from coloctl.model.pair import NODES, PairSpec
from coloctl.model.protection import Protection
from coloctl.model.tls import TlsMode, TlsSpec
from coloctl.model.verified import VerifyOutcome
from coloctl.supervisor import acts

CHANGES = 3
SOURCE = Path(__file__).with_name("rekey.c")


def wrapped(folder: Path, build: qemu.Build, every: str) -> Path:
    """The build's programs in ``folder``, its QEMU with keys that are renewed so often."""
    shim = folder / "rekey.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", shim, SOURCE, "-ldl"], check=True)
    text = build.binary.read_text()
    loader = " --inhibit-cache "
    assert loader in text, "only QEMUs of `coloctl lab qemu` start through a loader of their own"
    text = text.replace(loader, f" --preload {shim}{loader}", 1)
    env = f"export REKEY_EVERY={every.rstrip('p')}\n"
    if every.endswith("p"):
        env += "export REKEY_PEER=1\n"
    program = folder / build.binary.name
    program.write_text(text.replace("exec ", f"{env}exec ", 1))
    program.chmod(0o755)
    (folder / build.img.name).symlink_to(build.img)
    return program


def pair(lab: Lab, folder: Path, build: qemu.Build, every: str) -> PairSpec:
    """The lab's guest, encrypted, with checkpoints ten times a second."""
    image = guest.provide(qemu_img=build.img)
    spec = guest_spec(lab, image, folder, build)
    table = encrypted(folder)
    own = TlsSpec(
        TlsMode.ON,
        folders={node: Path(table["folders"][node]) for node in NODES},
        names={node: MACHINES[node][0] for node in NODES},
    )
    program = wrapped(folder, build, every)
    checkpoint = replace(spec.checkpoint, delay_ms=100)
    guest_table = replace(spec.guest, qemu=program)
    return replace(spec, guest=guest_table, checkpoint=checkpoint, tls=own)


async def compared(stage: Stage) -> None:
    found = await stage.supervisor.verifying.verify(memory=True)
    assert found.outcome is VerifyOutcome.EQUAL, found
    assert found.pages is not None and not found.pages.different, found.pages


async def once(lab: Lab, spec: PairSpec, checkpoints: int, history: Path) -> tuple[int, int, str]:
    """One round; how many renewals there were, how many were refused, and what went wrong."""
    made, refused, wrong = 0, 0, ""
    async with supervised(spec) as stage:
        try:
            await stage.start(protected=False)
            await booted(stage)
            await stage.start()
            with clients(lab, history) as at_work:
                for change in range(CHANGES + 1):
                    await at_work.acknowledged(20)
                    seat, goal = stage.state.seats[stage.primary.node], 0
                    goal = seat.stats.count + checkpoints
                    async with asyncio.timeout(1200):
                        while seat.stats.count < goal:
                            assert stage.state.protection is Protection.COLO, stage.state.view()
                            await asyncio.sleep(0.1)
                    await compared(stage)
                    if change < CHANGES:
                        # No fresh-code plugin was tried for the script in front of QEMU.
                        watch, entered = stage.supervisor.watch, stage.supervisor.entered
                        await acts.switchover(stage.state, watch, entered, force=True)
            assert stage.state.generation == CHANGES, "the pair failed over by itself"
        except (AssertionError, ColoctlError, TimeoutError) as error:
            wrong = f"{type(error).__name__}: {error}"
        for node in NODES:
            log = (stage.state.ground.rundir(node) / "qemu.log").read_text(errors="replace")
            made += 100 * len(re.findall(r"^rekey: \d+ records", log, re.MULTILINE))
            refused += len(re.findall(r"^rekey: error -50$", log, re.MULTILINE))
            bad = re.findall(r".*[Dd]ecryption has failed.*", log)
            wrong += " ".join(bad[:3])
            if wrong:
                print(f"node {node}:", *log.splitlines()[-8:], sep="\n  ")
    return made, refused, wrong


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("every", nargs="+")
    words.add_argument("--rounds", type=int, default=1)
    words.add_argument("--checkpoints", type=int, default=200)
    words.add_argument("--qemu", default="11.1")
    words.add_argument("--tls13", action="store_true", help="as QEMU negotiates by itself")
    given = words.parse_args()
    if given.tls13:
        tls.PRIORITY = tls.PRIORITY.partition(":-VERS")[0]
    build, bad = qemu.provide(given.qemu), 0
    with Lab.up(f"t{os.getpid()}-rekey") as lab:
        for every in given.every:
            for number in range(given.rounds):
                with tempfile.TemporaryDirectory(prefix="rekey-") as made:
                    folder = Path(made)
                    spec = pair(lab, folder, build, every)
                    work = once(lab, spec, given.checkpoints, folder / "history")
                    updates, refused, wrong = asyncio.run(work)
                bad += bool(wrong)
                checkpoints = given.checkpoints * (CHANGES + 1)
                print(
                    f"every {every}, round {number + 1}: {checkpoints} checkpoints, {CHANGES} "
                    f"changes of roles, {updates} or more renewals, {refused} refused: "
                    f"{wrong or 'no fault'}",
                    flush=True,
                )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
