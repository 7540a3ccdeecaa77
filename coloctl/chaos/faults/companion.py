"""Harm the records of a node's disks: the companion beside the image, and its registry entry.

Registered in `chaos.faults`; calls `colo.registry` for the places. A power failure, a full disk or
a person does that to a pair that is down. The next start has to cope with it.

Invariant: the disks themselves are never touched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from coloctl import paths
from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, fault
from coloctl.chaos.scenario.tables import Params
from coloctl.colo import registry
from coloctl.model.pair import NODES, PairSpec


class CompanionParams(Params):
    """In which of its two places the record is harmed, and how."""

    where: Literal["beside", "registry", "both"] = "beside"
    how: Literal["lost", "emptied", "garbled"] = "emptied"


def _places(pair: PairSpec, node: str, where: str) -> Iterator[Path]:
    if where != "registry":
        images = pair.disks[0].image.items()
        yield from (registry.beside(image) for name, image in images if name == node)
    if where != "beside":
        yield from (path for path in paths.registry_dir().glob("*.json") if _is_about(path, node))


def _is_about(path: Path, node: str) -> bool:
    """Return whether the entry is that node's; the registry of a run holds no other pair's."""
    try:
        return bool(json.loads(path.read_bytes())["node"] == node)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _harm(path: Path, how: str) -> None:
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "emptied" else b"\0" * 4096)


@fault("companion-harmed")
class CompanionHarmed(Fault[CompanionParams]):
    """A lost, empty or garbled record of a node's disks."""

    targets = NODES
    sites = ("lab",)
    params = CompanionParams

    def begin(self) -> Injected:
        """Remove the record of the target's disks, or overwrite it.

        Raises `NothingToHit` when the target has no such record.
        """
        how, places = self.given.how, _places(self.pair.spec(), self.target, self.given.where)
        found = [one for one in places if one.is_file()]
        if not found:
            raise NothingToHit(f"nothing is written about the disks of node {self.target}")
        at_s = time.monotonic()
        for path in found:
            _harm(path, how)
        names = ", ".join(path.name for path in found)
        return Injected(at_s, (self.target,), note=f"{how}: {names}")
