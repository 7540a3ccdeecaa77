"""What coloctl does not start, because it is known to end in a crash, a hang or corrupt memory."""

from __future__ import annotations

from coloctl.colo.known_bugs import Combination, KnownBug, threatening
from coloctl.errors import UnsupportedQEMU
from coloctl.model.pair import PairSpec
from coloctl.vm import Binary

#: Told by behaviour and never survived. What a version number alone suggests is left to the
#: protection itself, which notices a migration that completes and says so.
REFUSED = ("q35-abort", "tcg-deadlock", "multifd-corruption")


def refusals(spec: PairSpec, binary: Binary, accel: str) -> list[KnownBug]:
    """The known bugs that this pair would run into for certain; ``accel`` is never ``auto``."""
    what = Combination(
        binary.dialect,
        accel,
        spec.guest.machine,
        multifd=spec.replication.multifd_channels > 0,
    )
    return [bug for bug in threatening(what) if bug.name in REFUSED]


def refuse(spec: PairSpec, binary: Binary, accel: str) -> None:
    """Nothing is known to break this pair; raises `UnsupportedQEMU` with the first that would."""
    for bug in refusals(spec, binary, accel):
        raise UnsupportedQEMU(
            f"{binary.path} ({binary.version}) is not used for this pair: {bug.verdict()}",
            missing=(bug.name,),
            hint=bug.hint,
        )
