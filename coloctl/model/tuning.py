"""Define the settings of a pair that can be changed while it runs: names, limits and values.

`supervisor.acts.tune` changes them, `cli.verbs.knobs` reads what an operator typed. Pure.

A pair begins with the settings of its pair file. What an operator sets replaces them in the
description of the pair as well (`Tuning.applied`), so that everything built from it afterwards has
the new values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from coloctl.errors import UsageError
from coloctl.model import units
from coloctl.model.bounds import RATE_MAX
from coloctl.model.pair import CheckpointMode, PairSpec

Value = int | CheckpointMode

_UNITS = ", ".join(unit for unit in units.UNITS if unit.endswith("iB"))


@dataclass(frozen=True)
class Tuning:
    """The live settings of one pair."""

    delay_ms: int = 1000
    mode: CheckpointMode = CheckpointMode.FIXED
    compare_timeout_ms: int = 300
    expired_scan_cycle_ms: int = 100
    max_queue_size: int = 1024
    mirror_rate: int = 0

    @classmethod
    def of(cls, spec: PairSpec) -> Tuning:
        """Read the settings from the description of a pair."""
        given = {field.name: getattr(spec.checkpoint, field.name) for field in _CHECKPOINT}
        return cls(**given, mirror_rate=spec.policy.mirror_rate)

    def applied(self, spec: PairSpec) -> PairSpec:
        """Return ``spec`` as if these settings stood in its pair file."""
        given = {field.name: getattr(self, field.name) for field in _CHECKPOINT}
        return replace(
            spec,
            checkpoint=replace(spec.checkpoint, **given),
            policy=replace(spec.policy, mirror_rate=self.mirror_rate),
        )

    def restored(self, settings: Mapping[str, object]) -> Tuning:
        """Replace ``settings``, by name; raises `UsageError` for a value that one cannot have."""
        values = {name: read(name, value) for name, value in settings.items()}
        given: dict[str, Any] = {SETTINGS[name].field: value for name, value in values.items()}
        return replace(self, **given)

    def changed(self, settings: Mapping[str, object], pair: str) -> Tuning:
        """Replace ``settings``, by name and as typed; raises `UsageError` where one cannot be."""
        after = self.restored(settings)
        if "checkpoint-delay" in settings and after.mode is CheckpointMode.ADAPTIVE:
            raise UsageError(
                f"The pair {pair} chooses its checkpoint-delay itself, because its "
                "checkpoint-mode is adaptive.",
                hint=f"`coloctl set {pair} checkpoint-mode=fixed "
                f"checkpoint-delay={after.delay_ms}` sets both",
            )
        return after

    def __getitem__(self, name: str) -> Value:
        value: Value = getattr(self, SETTINGS[name].field)
        return value

    @property
    def period(self) -> tuple[int, CheckpointMode]:
        """Settings from which QEMU's checkpoint delay follows."""
        return self.delay_ms, self.mode

    @property
    def comparison(self) -> tuple[int, int, int]:
        """Settings of the comparison of packets."""
        return self.compare_timeout_ms, self.expired_scan_cycle_ms, self.max_queue_size

    def by_name(self) -> dict[str, Value]:
        """Return every setting, by the name that operators type."""
        return {name: self[name] for name in SETTINGS}


_CHECKPOINT = tuple(field for field in fields(Tuning) if field.name != "mirror_rate")


@dataclass(frozen=True)
class Setting:
    """One setting: ``read`` takes what was typed and returns None for what it cannot be."""

    field: str  #: of `Tuning`
    wants: str  #: what it must be, as the rest of a sentence
    example: str
    read: Callable[[str], Value | None]
    tell: Callable[[Any], str]


def _number(field: str, unit: str, most: int, example: int) -> Setting:
    """Build a setting that counts ``unit`` from 1 to ``most``; milliseconds may end in ``ms``."""
    ms = unit == "milliseconds"

    def number(text: str) -> int | None:
        digits = text.removesuffix("ms").rstrip() if ms else text
        if not (digits.isascii() and digits.isdigit()):
            return None
        return value if 1 <= (value := int(digits)) <= most else None

    def tell(value: int) -> str:
        return f"{value} {'ms' if ms else unit}"

    wants = f"a whole number of {unit} from 1 to {most}"
    return Setting(field, wants, str(example), number, tell)


def _mode(text: str) -> CheckpointMode | None:
    return next((mode for mode in CheckpointMode if mode == text), None)


def _rate(text: str) -> int | None:
    value = int(text) if text.isascii() and text.isdigit() else units.bytes_of(text)
    return value if value is not None and value <= RATE_MAX else None


def rate_words(rate: int) -> str:
    """Write a rate for people."""
    return f"{units.size(rate)} per second" if rate else "unlimited"


#: By the name that operators type.
SETTINGS: Mapping[str, Setting] = {
    "checkpoint-delay": _number("delay_ms", "milliseconds", 600_000, 500),
    "checkpoint-mode": Setting("mode", "fixed or adaptive", "adaptive", _mode, str),
    "compare-timeout": _number("compare_timeout_ms", "milliseconds", 60_000, 300),
    "expired-scan-cycle": _number("expired_scan_cycle_ms", "milliseconds", 60_000, 100),
    "max-queue-size": _number("max_queue_size", "packets", 1_000_000, 1024),
    "mirror-rate": Setting(
        "mirror_rate", f"bytes per second with a unit ({_UNITS}), or 0", "50MiB", _rate, rate_words
    ),
}


def read(name: str, value: object) -> Value:
    """Convert ``value`` to what that setting holds; raises `UsageError` when it cannot."""
    if name not in SETTINGS:
        raise UsageError(
            f"'{name}' is no setting that can be changed.",
            hint=f"these can: {', '.join(SETTINGS)}",
        )
    setting = SETTINGS[name]
    typed = isinstance(value, (str, int)) and not isinstance(value, bool)
    found = setting.read(str(value).strip()) if typed else None
    if found is None:
        raise UsageError(
            f"{name} must be {setting.wants}, not {value!r}.",
            hint=f"write {name}={setting.example}",
        )
    return found


def words(name: str, value: Value) -> str:
    """Write the value of that setting for people."""
    return SETTINGS[name].tell(value)
