"""Define the settings of a pair that can be changed while it runs: names, limits and values.

Called by `supervisor.acts.tune` when an operator changes settings, by `supervisor.adopt` for those
of a journal, and by `model.view`; `cli.views.plain` writes values for people. Pure.

A setting is a field of the pair's description. Changing it yields another `PairSpec`, so everything
that is built from that afterwards has the new value.

Invariant: a value is read here, once, in the supervisor; its bounds are those of its field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from coloctl.errors import UsageError
from coloctl.model import units
from coloctl.model.bounds import bounds
from coloctl.model.pair import CheckpointMode, CheckpointSpec, PairSpec, Policy

Value = int | CheckpointMode

_UNITS = ", ".join(unit for unit in units.UNITS if unit.endswith("iB"))


@dataclass(frozen=True)
class Setting:
    """One setting: ``read`` takes what was typed and returns None for what it cannot be."""

    table: Literal["checkpoint", "policy"]  #: the field of `PairSpec` that has it
    field: str  #: of that table
    wants: str  #: what it must be, as the rest of a sentence
    example: str
    read: Callable[[str], Value | None]
    tell: Callable[[Any], str]


def _number(field: str, unit: str, example: int) -> Setting:
    """Build a setting that counts ``unit``; milliseconds may end in ``ms``."""
    ms, limits = unit == "milliseconds", bounds(CheckpointSpec, field)

    def number(text: str) -> int | None:
        digits = text.removesuffix("ms").rstrip() if ms else text
        if not (digits.isascii() and digits.isdigit()):
            return None
        return count if limits.ge <= (count := int(digits)) <= limits.le else None

    def tell(count: int) -> str:
        return f"{count} {'ms' if ms else unit}"

    wants = f"a whole number of {unit} from {limits.ge} to {limits.le}"
    return Setting("checkpoint", field, wants, str(example), number, tell)


def _mode(text: str) -> CheckpointMode | None:
    return next((mode for mode in CheckpointMode if mode == text), None)


def _rate(text: str) -> int | None:
    rate = int(text) if text.isascii() and text.isdigit() else units.bytes_of(text)
    return rate if rate is not None and rate <= bounds(Policy, "mirror_rate").le else None


def rate_words(rate: int) -> str:
    """Write a rate for people."""
    return f"{units.size(rate)} per second" if rate else "unlimited"


#: By the name that operators type.
SETTINGS: Mapping[str, Setting] = {
    "checkpoint-delay": _number("delay_ms", "milliseconds", 500),
    "checkpoint-mode": Setting("checkpoint", "mode", "fixed or adaptive", "adaptive", _mode, str),
    "compare-timeout": _number("compare_timeout_ms", "milliseconds", 300),
    "expired-scan-cycle": _number("expired_scan_cycle_ms", "milliseconds", 100),
    "max-queue-size": _number("max_queue_size", "packets", 1024),
    "mirror-rate": Setting(
        "policy",
        "mirror_rate",
        f"bytes per second with a unit ({_UNITS}), or 0",
        "50MiB",
        _rate,
        rate_words,
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


def value(spec: PairSpec, name: str) -> Value:
    """Return the value of a setting in ``spec``."""
    setting = SETTINGS[name]
    found: Value = getattr(getattr(spec, setting.table), setting.field)
    return found


def by_name(spec: PairSpec) -> dict[str, Value]:
    """Return every setting of ``spec``, by the name that operators type."""
    return {name: value(spec, name) for name in SETTINGS}


def with_settings(spec: PairSpec, settings: Mapping[str, object]) -> PairSpec:
    """Return ``spec`` with ``settings``, by name and as typed or as a journal has them.

    Raises `UsageError` for a value that a setting cannot have.
    """
    tables: dict[str, dict[str, Any]] = {"checkpoint": {}, "policy": {}}
    for name, given in settings.items():
        found = read(name, given)
        tables[SETTINGS[name].table][SETTINGS[name].field] = found
    return replace(
        spec,
        checkpoint=replace(spec.checkpoint, **tables["checkpoint"]),
        policy=replace(spec.policy, **tables["policy"]),
    )


def changed(spec: PairSpec, settings: Mapping[str, object]) -> PairSpec:
    """Return ``spec`` with what an operator sets; raises `UsageError` where that cannot be set."""
    after = with_settings(spec, settings)
    if "checkpoint-delay" in settings and after.checkpoint.mode is CheckpointMode.ADAPTIVE:
        pair = spec.name
        raise UsageError(
            f"The pair {pair} chooses its checkpoint-delay itself, because its "
            "checkpoint-mode is adaptive.",
            hint=f"`coloctl set {pair} checkpoint-mode=fixed "
            f"checkpoint-delay={after.checkpoint.delay_ms}` sets both",
        )
    return after


def period(spec: PairSpec) -> tuple[int, CheckpointMode]:
    """Return the settings from which QEMU's checkpoint delay follows."""
    return spec.checkpoint.delay_ms, spec.checkpoint.mode
