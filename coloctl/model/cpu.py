"""Decide whether a CPU model runs on the machines of both nodes, and choose one that does; pure.

Called by `colo.cpu_models`, which asks each machine's QEMU, and by `check.processors`.

Rules: a guest has the same processor on both nodes, because it goes on in the other one without
noticing. QEMU leaves a feature out that the machine does not have, with a warning on its log only.
So a model that misses features on one machine is refused. `host` and `max` are what a machine has:
they run on both only where both machines have the same vendor and features. Example: hv1 has avx2
and hv2 has not; `host` is refused, `qemu64` is not, and `Nehalem-v2` is offered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Models that are what the machine has.
OWN = ("host", "max")
#: Models that no guest is offered: QEMU calls them a base for others.
_NEVER = {*OWN, "base"}
#: Names in a sentence; of more, the rest is counted.
_NAMED_MAX = 4


@dataclass(frozen=True)
class CpuFacts:
    """The CPU models of one machine, as its QEMU reports them."""

    vendor: str
    features: frozenset[str]  #: of the processor itself, under the accelerator that was asked
    #: Every model by name, and the features of it that the machine does not have.
    models: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def missing(self, cpu: str) -> frozenset[str]:
        """Return the features that ``cpu``, a value of ``-cpu``, would miss on this machine.

        A model that QEMU does not know misses none: QEMU itself refuses it.
        """
        name, added, removed = parts(cpu)
        wanted = frozenset() if name in OWN else self.models.get(name, frozenset())
        return (wanted - removed) | (added & _ever(self) - self.features)


def _ever(facts: CpuFacts) -> frozenset[str]:
    """Return every feature that is known to be one: options such as kvmclock are none."""
    return facts.features.union(*facts.models.values())


def parts(cpu: str) -> tuple[str, frozenset[str], frozenset[str]]:
    """Return the model of a value of ``-cpu``, the features that it adds, and those it removes."""
    name, *flags = cpu.split(",")
    added: set[str] = set()
    removed: set[str] = set()
    for flag in flags:
        key, equals, value = flag.partition("=")
        if flag[:1] in "+-":
            (added if flag[0] == "+" else removed).add(_plain(flag[1:]))
        elif equals and value in ("on", "off"):
            (added if value == "on" else removed).add(_plain(key))
    return name, frozenset(added), frozenset(removed)


def facts(own: Mapping[str, Any], definitions: Sequence[Mapping[str, Any]]) -> CpuFacts:
    """Read the answers to `query-cpu-model-expansion` of `OWN` and `query-cpu-definitions`."""
    properties = own["model"]["props"]
    return CpuFacts(
        str(properties.get("vendor", "")),
        enabled(own),
        {
            str(one["name"]): frozenset(map(_plain, one.get("unavailable-features", ())))
            for one in definitions
        },
    )


def enabled(expansion: Mapping[str, Any]) -> frozenset[str]:
    """Return the features that are on in an answer to `query-cpu-model-expansion`."""
    properties = expansion["model"]["props"].items()
    return frozenset(_plain(name) for name, value in properties if value is True)


def _plain(feature: str) -> str:
    """Return one spelling of a feature: QEMU knows some with both signs."""
    return feature.replace("_", "-")


def trouble(cpu: str, machines: Mapping[str, CpuFacts]) -> str:
    """Return why ``cpu`` does not run on both machines, a sentence; "" where it does."""
    name, _, removed = parts(cpu)
    for machine, one in machines.items():
        if missing := one.missing(cpu):
            return f"The processor of {machine} has no {listed(missing)}, which {cpu} needs."
    if name not in OWN:
        return ""
    (first, one), (second, two) = machines.items()
    if one.vendor != two.vendor:
        return (
            f"The processor of {first} is of {one.vendor} and that of {second} of {two.vendor}: "
            f"{name} would be two different ones."
        )
    for less, has_less, more, has_more in ((second, two, first, one), (first, one, second, two)):
        if missing := has_more.features - has_less.features - removed:
            return (
                f"The processor of {less} has no {listed(missing)}, which that of {more} has: "
                f"{name} would be two different ones."
            )
    return ""


def listed(features: Collection[str]) -> str:
    """Return the features as words, some of them where there are many."""
    names = sorted(features)
    shown, rest = names[:_NAMED_MAX], len(names) - _NAMED_MAX
    if rest > 0:
        return f"{', '.join(shown)} and {rest} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def candidates(machines: Collection[CpuFacts]) -> list[str]:
    """Return the models that miss no feature on any of the machines, with their version."""
    first, *others = machines
    names = [
        name
        for name, missing in first.models.items()
        if not missing and all(one.models.get(name) == frozenset() for one in others)
    ]
    versioned = {name.rpartition("-v")[0] for name in names if name.rpartition("-v")[2].isdecimal()}
    return [name for name in names if name not in _NEVER | versioned]


def richest(features: Mapping[str, Collection[str]]) -> str | None:
    """Return the model with the most features; of two equals the last by name."""
    return max(features, key=lambda name: (len(features[name]), name), default=None)
