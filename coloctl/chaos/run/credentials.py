"""Make the certificates of a run whose pair is encrypted: one authority, one machine per node.

Called by `chaos.run.testbed` when it writes such a pair's file; makes them with `certs.issue` and
writes them with `certs.store`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coloctl.certs import issue, store
from coloctl.lab import layout

#: The name and the address of each node's machine.
MACHINES = {"a": ("hv1", layout.REPLICATION_A), "b": ("hv2", layout.REPLICATION_B)}


def encrypted(home: Path) -> Mapping[str, Any]:
    """Make the files of both machines in ``home``; return the ``[tls]`` table that names them."""
    now = datetime.now(UTC)
    authority = issue.new_authority("coloctl run", now)
    folders = {}
    for node, (name, address) in MACHINES.items():
        folders[node] = home / "tls" / name
        made = issue.new_machine(authority, name, [address], now)
        store.install(folders[node], authority.cert, made)
    return {
        "mode": "on",
        "folders": {node: str(folder) for node, folder in folders.items()},
        "names": {node: name for node, (name, _) in MACHINES.items()},
    }
