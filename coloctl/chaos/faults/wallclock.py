"""Shift the wall clock of one Python process; the kernel's and the monotonic one stay right.

The ``sitecustomize`` of a supervisor, written by `chaos.faults.supervisor`, runs this file by its
path, before the process asks for the time; standard library only. The offset is read again each
time the process asks.
"""

from __future__ import annotations

import datetime
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds that the clock is off, as one double.
OFFSET = struct.Struct("=d")


def write(file: Path, seconds: float) -> None:
    """Shift the clock of every process that reads ``file`` by that much from now on."""
    with file.open("r+b" if file.exists() else "w+b") as opened:
        opened.write(OFFSET.pack(seconds))


def shift(offset: Callable[[], float]) -> None:
    """Make Python's functions for the time of day return that much more; no other clock moves."""
    real, real_ns, real_get = time.time, time.time_ns, time.clock_gettime
    local, utc, text = time.localtime, time.gmtime, time.strftime

    def now() -> float:
        return real() + offset()

    def now_ns() -> int:
        return real_ns() + int(offset() * 1e9)

    def get(clock: int) -> float:
        return real_get(clock) + (offset() if clock == time.CLOCK_REALTIME else 0)

    def strftime(format: str, t: Any = None) -> str:
        return text(format, local(now()) if t is None else t)

    names: dict[str, Any] = {
        "time": now,
        "time_ns": now_ns,
        "clock_gettime": get,
        "strftime": strftime,
        "localtime": lambda seconds=None: local(now() if seconds is None else seconds),
        "gmtime": lambda seconds=None: utc(now() if seconds is None else seconds),
    }
    for name, function in names.items():
        setattr(time, name, function)
    datetime.datetime = _shifted(datetime.datetime, now)  # type: ignore[misc]


def _shifted(real: Any, now: Callable[[], float]) -> Any:
    """Return a `datetime` whose moments are real ones, made by that clock."""

    class ShiftedType(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, real)

    class Shifted(real, metaclass=ShiftedType):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.fromtimestamp(now(), tz)

        @classmethod
        def today(cls) -> Any:
            return real.fromtimestamp(now())

        @classmethod
        def utcnow(cls) -> Any:
            return real.fromtimestamp(now(), datetime.UTC).replace(tzinfo=None)

    Shifted.__name__ = Shifted.__qualname__ = "datetime"
    return Shifted


def begin(file: str) -> None:
    """Shift the clock of this process by what ``file`` holds."""
    with Path(file).open("rb") as opened:
        seen = mmap.mmap(opened.fileno(), OFFSET.size, prot=mmap.PROT_READ)
    shift(lambda: float(OFFSET.unpack_from(seen)[0]))
