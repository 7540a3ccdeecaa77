"""List the bugs that break COLO in some QEMUs, with the signs of each; pure.

Used by `colo.refuse`, `check.trial` and `check.signs`; asks `machine.device` for the type. Source:
docs/qemu.md, seen on 7.2.22, 10.0.2, 10.0.13 and 11.1.3 where it does not say otherwise. A bug is
recognized by what was found by asking (`before_11`) and by what a trial shows (`Signs`).

Invariant: version numbers only raise a suspicion, because distributions carry fixes back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coloctl.machine.device import is_q35
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.pair import GuestSpec


@dataclass(frozen=True)
class Combination:
    """A binary's dialect, an accelerator and a machine type that are about to hold COLO."""

    dialect: Dialect
    accel: str  #: "kvm" or "tcg"
    machine: str = "pc"
    multifd: bool = False

    @property
    def before_11(self) -> bool:
        """True if this QEMU does not have the repairs that 11.0 brought to COLO.

        Found by asking: from 11.0 on (161e603975) x-colo is refused without a return path. The
        repairs of TCG, q35 and multifd came with that same release, so this one is a sign of the
        others. An older build that carries a repair back counts as unrepaired, which is the safe
        mistake.
        """
        return self.dialect.return_path is ReturnPath.FORBIDDEN

    @property
    def q35(self) -> bool:
        return is_q35(GuestSpec(memory_mib=0, machine=self.machine))

    def version_within(self, *windows: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
        """Return whether its version lies in a window, both ends included; for suspicions only."""
        version = version_numbers(self.dialect.version)
        return any(first <= version <= last for first, last in windows)


@dataclass(frozen=True)
class Signs:
    """The state in which a failed pair was found, asked on both monitors of both sides."""

    primary_hangs: bool = False  #: its main loop is silent, its monitor thread answers
    secondary_hangs: bool = False
    primary_aborted: bool = False  #: it died of a signal that no process had sent
    secondary_aborted: bool = False
    migration_completed: bool = False  #: where it should have become ``colo``
    words: str = ""  #: the end of both programs' output to stderr


@dataclass(frozen=True)
class KnownBug:
    """One bug: what happens, in which versions, what helps, and the upstream commit that ends it.

    ``threatens`` holds before anything was tried, ``shows`` once a trial has failed.
    """

    name: str
    sentence: str
    versions: str
    hint: str
    commit: str
    threatens: Callable[[Combination], bool]
    shows: Callable[[Combination, Signs], bool]

    def verdict(self) -> str:
        """Return the sentence together with the versions and the commit of the fix."""
        return f"{self.sentence} This is a known bug of {self.versions} ({self.commit})."


_NEWER = "use QEMU 11.0 or newer: `coloctl lab qemu` fetches one"

KNOWN_BUGS: tuple[KnownBug, ...] = (
    KnownBug(
        name="q35-abort",
        sentence="On machine type q35 the secondary aborts while it loads the first checkpoint.",
        versions="QEMU before 11.0",
        hint='set guest.machine = "pc", or use QEMU 11.0 or newer: `coloctl lab qemu` fetches one',
        commit="fixed in 11.0 by 32603ba372",
        threatens=lambda what: what.before_11 and what.q35,
        shows=lambda what, signs: what.q35 and signs.secondary_aborted,
    ),
    KnownBug(
        name="tcg-deadlock",
        sentence="Under TCG the primary's main loop deadlocks at one of the first checkpoints.",
        versions="QEMU before 11.0",
        hint=f"{_NEWER}; older ones need KVM that really runs code",
        commit="fixed in 11.0 by 604492a991",
        threatens=lambda what: what.before_11 and what.accel == "tcg",
        shows=lambda what, signs: what.accel == "tcg" and signs.primary_hangs,
    ),
    KnownBug(
        name="multifd-corruption",
        sentence="With multifd the secondary's memory is corrupted although nothing refuses it.",
        versions="QEMU before 11.0",
        hint="leave replication.multifd_channels out, or use QEMU 11.0 or newer",
        commit="supported from 11.0 on, dd67c149e2",
        threatens=lambda what: what.before_11 and what.multifd,
        shows=lambda what, signs: what.before_11 and what.multifd,
    ),
    KnownBug(
        name="completes-instead-of-colo",
        sentence="The first migration completes like an ordinary one, and COLO is never entered.",
        versions="QEMU 10.0.0 to 10.0.6 and early 10.1",
        hint=f"{_NEWER}; 10.0.7 carries the fix as well",
        commit="4881411136, fixed in 10.2 by 0b5bf4ea76",
        threatens=lambda what: what.version_within(((10, 0, 0), (10, 0, 6)), ((10, 1), (10, 1, 2))),
        shows=lambda what, signs: signs.migration_completed,
    ),
    # Read in the source, not seen.
    KnownBug(
        name="coroutine-assertion",
        sentence="The secondary aborts when it enters COLO, because it activates its disks there.",
        versions="QEMU 8.2 and 9.0",
        hint=_NEWER,
        commit="2b3912f135, fixed in 9.1 by 2cc637f1ea",
        threatens=lambda what: what.version_within(((8, 2, 0), (9, 0, 99))),
        shows=lambda what, signs: signs.secondary_aborted and "in_coroutine" in signs.words,
    ),
)


def threatening(what: Combination) -> list[KnownBug]:
    """Return the bugs that would probably be met with this combination, the surest first."""
    return [bug for bug in KNOWN_BUGS if bug.threatens(what)]


def explain(what: Combination, signs: Signs) -> KnownBug | None:
    """Find the bug that a failed trial has met, or None: it is not a known one."""
    return next((bug for bug in _most_specific(KNOWN_BUGS) if bug.shows(what, signs)), None)


def named(name: str) -> KnownBug | None:
    """Find the bug of that name."""
    return next((bug for bug in KNOWN_BUGS if bug.name == name), None)


def _most_specific(bugs: Iterable[KnownBug]) -> list[KnownBug]:
    """Sort the bugs: an assertion that names itself is a better sign than an abort."""
    return sorted(bugs, key=lambda bug: bug.name != "coroutine-assertion")


def version_numbers(version: str) -> tuple[int, ...]:
    """Parse ``10.0.13 (Debian 1:10.0.13+ds-0)`` as ``(10, 0, 13)``; empty when it begins with no
    number.
    """
    match = re.match(r"\d+(?:\.\d+)*", version.strip())
    return tuple(int(number) for number in match[0].split(".")) if match else ()
