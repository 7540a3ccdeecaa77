"""Set up the parts of a run's environment: a lab, a folder with the pair file, a guest that serves.

Called by `chaos.run.environment` and `pytest_plugin`; calls `lab.network` and `lab.sample`. Lab and
folder are contexts: at the end of the block they are removed, unless they were to be kept.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coloctl import interrupts, paths
from coloctl.chaos.faults.fault import Setup, environment_set
from coloctl.chaos.run import credentials
from coloctl.chaos.run.site import Site, site_of
from coloctl.clock import Deadline
from coloctl.control.acts import Acts
from coloctl.control.client import ControlClient
from coloctl.errors import DeadlineMissed, LabError, PairBusy
from coloctl.lab import guest as guests
from coloctl.lab import sample
from coloctl.lab.machines import Machines
from coloctl.lab.network import Lab

BOOT_WAIT_S = 120.0
PROTECT_WAIT_S = 300.0
STEADY_WAIT_S = 120.0
#: How often what is waited for is looked at, seconds.
LOOK_S = 0.1


@dataclass(frozen=True)
class Testbed:
    """The parts of a testbed, and its name. ``detection`` overrides the pair file's defaults."""

    qemu: Path
    accel: str
    guest: guests.GuestImage
    name: str
    delay_ms: int = 500
    channel: str = "fd"
    memory: str = sample.MEMORY
    detection: Mapping[str, int] = field(default_factory=dict)
    keep: bool = False
    on: str = "lab"  #: or "machines"
    circular: bool = False  #: a pair that was attacked protects itself again
    tls: bool = False  #: every wire between the nodes is encrypted

    def to_json(self) -> dict[str, Any]:
        """Return the part of a document that says what was measured."""
        return {
            "qemu": {"binary": str(self.qemu), "accel": self.accel},
            "memory": self.memory,
            "delay_ms": self.delay_ms,
            "channel": self.channel,
            "detection": dict(self.detection),
            "tls": self.tls,
        }


@contextlib.contextmanager
def lab(setting: Testbed) -> Iterator[Lab]:
    """Set up a lab of that name; raises `PairBusy` when it is in use, or is being set up."""
    with _claimed(f"lab {setting.name}"):
        kind = Machines if setting.on == "machines" else Lab
        _refuse_used(setting.name, kind)
        standing: Lab | None = None
        try:
            with interrupts.deferred():
                standing = kind.up(setting.name)
            yield standing
        except BaseException:
            if standing is not None:
                with interrupts.deferred(raise_after=False):
                    standing.down()
            raise
        if not setting.keep:
            standing.down()


@contextlib.contextmanager
def free_name(name: str) -> Iterator[str]:
    """Find ``name``, or it with the first number from 2 on, under which nothing runs now."""
    for number in itertools.count(1):
        chosen = name if number == 1 else f"{name}{number}"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_claimed(f"name {chosen}"))
            except PairBusy:
                continue
            if not paths.control_socket(chosen).exists():
                yield chosen
                return


@contextlib.contextmanager
def _claimed(what: str) -> Iterator[None]:
    """Claim a name for one process: a socket's name, which ends with the process and is no file."""
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            claim.bind(f"\0coloctl {what}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise PairBusy(
                f"The {what} is in use by another run.", hint="give another --name"
            ) from None
        yield


def _refuse_used(name: str, kind: type[Lab]) -> None:
    """Refuse a lab of that name that is in use. What a crash left standing is repaired."""
    with contextlib.suppress(LabError):
        if kind.open(name).busy():
            raise PairBusy(
                f"The lab {name} is in use.",
                hint=f"`coloctl stop {name}` and `{kind.DOWN} --name {name}` end that, or give "
                "another --name",
            )


@contextlib.contextmanager
def folder(setting: Testbed) -> Iterator[Path]:
    """Make an empty folder for the pair file and its disks.

    What is written about disks that go with it goes too: they have a registry of their own there.
    """
    made = Path(tempfile.mkdtemp(prefix=f"coloctl-{setting.name}-"))
    registry = {paths.REGISTRY: str(made / "registry")}
    try:
        with contextlib.nullcontext() if setting.keep else environment_set(registry):
            yield made
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    if not setting.keep:
        shutil.rmtree(made)


def pair_file(setting: Testbed, standing: Lab, home: Path) -> Path:
    """Write the pair file of that testbed to ``home``, with a disk per node."""
    setup = Setup(setting.name, home, site_of(standing), setting.qemu)
    again = {"policy": {"auto_reprotect": setting.circular}}
    return write_pair(setting, setup, {}, again)


def write_pair(
    where: Testbed, setup: Setup, guest: Mapping[str, Any], tables: Mapping[str, Any]
) -> Path:
    """Write the pair file of a run as its site describes its pairs, with ``tables`` laid over it.

    ``guest`` are the options of `GuestImage.append_for`.
    """
    path = setup.home / f"{where.name}.toml"
    disks = sample.disks_beside(path)
    own: dict[str, Any] = {"detection": where.detection} if where.detection else {}
    if where.tls:
        own["tls"] = credentials.encrypted(setup.home)
    return setup.site.write_pair(
        path,
        name=where.name,
        guest=where.guest,
        qemu=setup.qemu,
        accel=where.accel,
        memory=where.memory,
        checkpoint_delay_ms=where.delay_ms,
        channel=where.channel,
        append_options=guest,
        disks={node: folder / disks[node].name for node, folder in setup.images.items()},
        tables=sample.overlaid(own, tables),
    )


def until(enough: Callable[[], bool], deadline_s: float, otherwise: str) -> None:
    """Wait until ``enough`` holds; raises `DeadlineMissed` with ``otherwise`` when it never did."""
    if not Deadline(deadline_s).poll_blocking(enough, LOOK_S):
        raise DeadlineMissed(f"{otherwise} within {deadline_s:.0f} s.")


def boot(pair: str, site: Site, client: ControlClient) -> None:
    """Start the guest on node a and wait for its own line that it serves.

    Nothing has been connected to it yet.
    """
    Acts(client).start(protect=False, wait_s=BOOT_WAIT_S)
    console = site.folder(pair, "a") / "console.log"

    def serves() -> bool:
        text = console.read_text(errors="replace") if console.exists() else ""
        ready = guests.READY_LINE in text
        if guests.FAILED_PREFIX in text and not ready:
            raise LabError(f"The guest failed to start: {text.strip().splitlines()[-1]}")
        return ready

    until(serves, BOOT_WAIT_S, "The guest was not ready")
