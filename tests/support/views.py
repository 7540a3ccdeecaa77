"""Documents of `query-pair`, as tests of the verbs need them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coloctl.cli.reach import Looked
from coloctl.model.pair import Role
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, RunState
from coloctl.model.view import (
    ActProgress,
    CheckpointView,
    Degradation,
    Fencing,
    NodeView,
    PairView,
    Presence,
)

A = NodeView(
    "a", "netns:host-a", Role.PRIMARY, Presence.ALIVE, 4711, RunState.RUNNING,
    MigrationStatus.COLO, COLOMode.PRIMARY, qemu_version="11.1.3", user="coloctl-qemu",
)  # fmt: skip
B = NodeView(
    "b", "netns:host-b", Role.SECONDARY, Presence.ALIVE, 4712, RunState.RUNNING,
    MigrationStatus.COLO, COLOMode.SECONDARY, qemu_version="11.1.3", user="coloctl-qemu",
)  # fmt: skip
PROTECTED = PairView(
    name="web",
    protection=Protection.COLO,
    generation=2,
    reason="The first checkpoint is complete.",
    since_s=192.4,
    exposed_s=None,
    nodes={"a": A, "b": B},
    checkpoints=CheckpointView(187, 1000, 10.9, 11.2, 14.8, 1003.0, 1001.6),
    supervisor_pid=4710,
    spec_path="/etc/coloctl/web.toml",
)
LOST = replace(
    PROTECTED,
    protection=Protection.UNPROTECTED,
    reason="The guest runs on node b alone since node a was lost.",
    since_s=10.0,
    exposed_s=12.0,
    nodes={
        "a": NodeView("a", "netns:host-a", presence=Presence.DEAD, fencing=Fencing.FENCED),
        "b": replace(B, role=Role.PRIMARY, colo_mode=COLOMode.NONE),
    },
)
RESYNC = replace(
    LOST,
    protection=Protection.RESYNC,
    since_s=3.0,
    exposed_s=90000.0,
    progress=ActProgress("start", "mirror", 512, 2048, "bytes"),
)
FROZEN = replace(PROTECTED, nodes={"a": replace(A, impairments=(Degradation.MONITOR,)), "b": B})


def pair_view(**nodes: tuple[str, int]) -> PairView:
    """A pair in COLO whose nodes have these roles, and QEMUs of these pids; 0 for none."""
    shown = {
        name: NodeView(name, "", Role(role), Presence.ALIVE, pid or None)  # type: ignore[arg-type]
        for name, (role, pid) in nodes.items()
    }
    return replace(PROTECTED, nodes=shown)  # type: ignore[arg-type]


def document(view: PairView = PROTECTED) -> dict[str, Any]:
    """As it comes over the control socket."""
    return view.to_json()


def looked(view: PairView | None = PROTECTED, **changes: Any) -> Looked:
    """Build an item of `reach.survey`."""
    shown = None if view is None else document(view)
    return Looked(
        **{"name": "web", "supervisor": "running", "document": shown, "view": view, **changes}
    )
