"""Harm what is written about a node's disks: the companion beside the image, its registry entry.

A power failure, a full disk or a person does that to a pair that is down; what the next start makes
of it is judged. Invariant: the disks themselves are never touched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from coloctl import pairfile, paths
from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Params
from coloctl.chaos.scenario.values import Planned
from coloctl.colo import registry
from coloctl.model.pair import NODES, PairSpec


class CompanionHarmed(Params):
    """In which of its two places the word is harmed, and how."""

    where: Literal["beside", "registry", "both"] = "beside"
    how: Literal["lost", "emptied", "garbled"] = "emptied"


def strike(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """Remove the word about the target's disks, or overwrite it."""
    pair = pairfile.load(ground.home / f"{ground.name}.toml")
    where, how = fault.params["where"], fault.params["how"]
    found = [path for path in _places(pair, fault.target, where) if path.is_file()]
    at_s = time.monotonic()
    for path in found:
        _harm(path, how)
    missed = "" if found else f"nothing is written about the disks of node {fault.target}"
    names = ", ".join(path.name for path in found)
    return Blow(at_s, nodes=(fault.target,), note=f"{how}: {names}", missed=missed)


def _places(pair: PairSpec, node: str, where: str) -> Iterator[Path]:
    if where != "registry":
        images = pair.disks[0].image.items()
        yield from (registry.beside(image) for name, image in images if name == node)
    if where != "beside":
        yield from (path for path in paths.registry_dir().glob("*.json") if _is_about(path, node))


def _is_about(path: Path, node: str) -> bool:
    """Whether the entry is that node's; the registry of a run holds no other pair's."""
    try:
        return bool(json.loads(path.read_bytes())["node"] == node)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _harm(path: Path, how: str) -> None:
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "emptied" else b"\0" * 4096)


FAULTS: Mapping[str, FaultKind] = {
    "companion-harmed": FaultKind(
        "What is written about a node's disks is lost, empty or garbled.",
        strike,
        NODES,
        CompanionHarmed,
    ),
}
