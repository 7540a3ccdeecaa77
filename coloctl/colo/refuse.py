"""Refuse a pair that is known to end in a crash, a hang or corrupt memory.

Called by `colo.inspect` before a pair starts, and by `check.command` and `check.doctor`; the bugs
are those of `colo.known_bugs`, the facts about a binary those of `vm`.
"""

from __future__ import annotations

from coloctl.colo.known_bugs import Combination, KnownBug, threatening
from coloctl.errors import UnsupportedQEMU
from coloctl.model.pair import PairSpec
from coloctl.vm import Binary

#: Recognized by behaviour and never survived. A bug that a version number alone suggests is left to
#: the protection itself, which notices a migration that completes and reports it.
REFUSED = ("q35-abort", "tcg-deadlock", "multifd-corruption")


def refusals(spec: PairSpec, binary: Binary, accel: str) -> list[KnownBug]:
    """Return the known bugs that this pair would certainly meet; ``accel`` is never ``auto``."""
    what = Combination(
        binary.dialect,
        accel,
        spec.guest.machine,
        multifd=spec.replication.multifd_channels > 0,
    )
    return [bug for bug in threatening(what) if bug.name in REFUSED]


def refuse(spec: PairSpec, binary: Binary, accel: str) -> None:
    """Raise `UnsupportedQEMU` with the first known bug that would break this pair."""
    for bug in refusals(spec, binary, accel):
        raise UnsupportedQEMU(
            f"{binary.path} ({binary.version}) is not used for this pair: {bug.verdict()}",
            missing=(bug.name,),
            hint=bug.hint,
        )
