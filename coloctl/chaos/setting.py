"""Where stories and benches play: a lab of their own, a pair file in it, a guest that serves.

Each part is a context: whatever ends the block takes the part away again, unless it was to be kept.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coloctl import paths, spec
from coloctl.control.client import ControlClient
from coloctl.control.newborn import newborn
from coloctl.errors import DeadlineMissed, LabError, PairBusy
from coloctl.lab import guest as guests
from coloctl.lab import layout, sample
from coloctl.lab.network import Lab

BOOT_DEADLINE_S = 120.0
PROTECT_DEADLINE_S = 300.0
#: One answer of a supervisor about itself.
ASK_S = 10.0


@dataclass(frozen=True)
class Setting:
    """What plays, and under which name. ``detection`` overrides the pair file's defaults."""

    qemu: Path
    accel: str
    guest: guests.GuestImage
    name: str
    delay_ms: int = 500
    channel: str = "fd"
    memory: str = sample.MEMORY
    detection: Mapping[str, int] = field(default_factory=dict)
    keep: bool = False

    def to_json(self) -> dict[str, Any]:
        """The part of a document that says what was measured."""
        return {
            "qemu": {"binary": str(self.qemu), "accel": self.accel},
            "memory": self.memory,
            "delay_ms": self.delay_ms,
            "channel": self.channel,
            "detection": dict(self.detection),
        }


@contextlib.contextmanager
def lab(setting: Setting) -> Iterator[Lab]:
    """A lab of that name stands; raises `PairBusy` when somebody uses one."""
    _refuse_tenants(setting.name)
    standing = Lab.up(setting.name)
    try:
        yield standing
    except BaseException:
        standing.down()
        raise
    if not setting.keep:
        standing.down()


def _refuse_tenants(name: str) -> None:
    """Nobody uses the lab of that name. What a crash left standing is mended."""
    with contextlib.suppress(LabError):
        if any(Lab.open(name).processes().values()):
            raise PairBusy(
                f"The lab {name} is in use.",
                hint=f"`coloctl stop {name}` and `coloctl lab down --name {name}` end "
                "that, or give another --name",
            )


@contextlib.contextmanager
def folder(setting: Setting) -> Iterator[Path]:
    """An empty folder for the pair file and its disks."""
    made = Path(tempfile.mkdtemp(prefix=f"coloctl-{setting.name}-"))
    try:
        yield made
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    if not setting.keep:
        shutil.rmtree(made)


@contextlib.contextmanager
def pair(setting: Setting, standing: Lab, home: Path, metrics: str = "") -> Iterator[ControlClient]:
    """A supervisor of one's own answers; raises `PairBusy` when one of that name is there.

    ``metrics`` is the address at which it serves them, if any.
    """
    pair_file = sample.write_pair(
        home / f"{setting.name}.toml",
        name=setting.name,
        lab=standing,
        guest=setting.guest,
        qemu=setting.qemu,
        accel=setting.accel,
        memory=setting.memory,
        checkpoint_delay_ms=setting.delay_ms,
        channel=setting.channel,
    )
    with pair_file.open("a", encoding="utf-8") as text:
        text.write(tables(setting))
    with newborn(spec.load(pair_file), metrics) as born:
        with born.connect() as client:
            yield client
        if setting.keep:
            born.keep()
        else:
            born.end()


def tables(setting: Setting) -> str:
    """The tables that the sample has not: a pair that was attacked waits for its judge."""
    lines = [f"{key} = {value}" for key, value in setting.detection.items()]
    detection = ["", "[detection]", *lines] if lines else []
    return "\n".join([*detection, "", "[policy]", "auto_reprotect = false", ""])


def boot(setting: Setting, client: ControlClient) -> None:
    """The guest's own line says that it serves; nothing has been connected to it yet."""
    client.execute("pair-start", BOOT_DEADLINE_S, protect=False)
    console = paths.pair_dir(setting.name) / "a" / "console.log"
    give_up = time.monotonic() + BOOT_DEADLINE_S
    while time.monotonic() < give_up:
        text = console.read_text(errors="replace") if console.exists() else ""
        if guests.READY_LINE in text:
            return
        if guests.FAILED_PREFIX in text:
            raise LabError(f"The guest failed to start: {text.strip().splitlines()[-1]}")
        time.sleep(0.1)
    raise DeadlineMissed(f"The guest was not ready within {BOOT_DEADLINE_S:.0f} s.")


def left_behind(setting: Setting) -> list[str]:
    """What should be gone and is not."""
    left = [str(path) for path in (paths.pair_dir(setting.name),) if path.exists()]
    return left + [
        f"namespace {name}"
        for name in (layout.namespace(setting.name, role) for role in layout.ROLES)
        if (Path("/run/netns") / name).exists()
    ]
