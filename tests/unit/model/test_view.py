"""The document of `status -f json` is stable; QEMU's words and the pair's ports are as expected."""

from __future__ import annotations

import ast
import json
from dataclasses import fields
from enum import StrEnum

import pytest
from support import house

from coloctl import paths
from coloctl.model import qapi
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.pair import (
    NODES,
    MigrationTransport,
    NodeSpec,
    PairSpec,
    ReplicationSpec,
    Role,
    other,
)
from coloctl.model.protection import Protection
from coloctl.model.qapi import COLOMode, MigrationStatus, QapiEnum, RunState
from coloctl.model.view import (
    STATUS_SCHEMA,
    ActProgress,
    CheckpointView,
    Degradation,
    Fencing,
    NodeView,
    PairView,
    Presence,
)
from coloctl.qmp import schema as qmp_schema

pytestmark = pytest.mark.unit

ENUMS = [RunState, MigrationStatus, COLOMode, qapi.JobStatus]

PAIR = PairView(
    name="web",
    protection=Protection.COLO,
    generation=3,
    reason="The first checkpoint is complete.",
    since_s=12.5,
    exposed_s=None,
    nodes={
        "b": NodeView("b", "netns:host-b", Role.SECONDARY, Presence.ALIVE, 12),
        "a": NodeView(
            "a",
            "netns:host-a",
            Role.PRIMARY,
            Presence.ALIVE,
            11,
            RunState.RUNNING,
            MigrationStatus.COLO,
            COLOMode.PRIMARY,
            Fencing.CLEAR,
            (Degradation.REPLICA_DISK,),
            qemu_version="11.1.3",
            user="coloctl-qemu",
        ),
    },
    checkpoints=CheckpointView(7, 500, 11.2, 12.0, 16.1, 503.4, 502.0),
    progress=ActProgress("start", "mirror", 1, 2, "bytes", 98.5e6, 12.5),
    supervisor_pid=10,
    spec_path="/srv/web.toml",
)

#: Names that scripts rely on. One that goes or changes its meaning needs another STATUS_SCHEMA.
DOCUMENT = {
    "schema": 1,
    "name": "web",
    "protection": "colo",
    "generation": 3,
    "reason": "The first checkpoint is complete.",
    "since_s": 12.5,
    "exposed_s": None,
    "nodes": [
        {
            "name": "a",
            "host": "netns:host-a",
            "role": "primary",
            "presence": "alive",
            "pid": 11,
            "run_state": "running",
            "migration": "colo",
            "colo_mode": "primary",
            "fencing": "clear",
            "impairments": ["replica-disk"],
            "merge": "none",
            "qemu_version": "11.1.3",
            "user": "coloctl-qemu",
            "fresh_code": None,
            "reach": "",
            "left": "",
            "late": "",
            "unit": "",
        },
        {
            "name": "b",
            "host": "netns:host-b",
            "role": "secondary",
            "presence": "alive",
            "pid": 12,
            "run_state": None,
            "migration": None,
            "colo_mode": None,
            "fencing": "clear",
            "impairments": [],
            "merge": "none",
            "qemu_version": "",
            "user": "",
            "fresh_code": None,
            "reach": "",
            "left": "",
            "late": "",
            "unit": "",
        },
    ],
    "checkpoints": {
        "count": 7,
        "delay_ms": 500,
        "last_pause_ms": 11.2,
        "pause_p50_ms": 12.0,
        "pause_p99_ms": 16.1,
        "last_period_ms": 503.4,
        "period_p50_ms": 502.0,
    },
    "progress": {
        "act": "start",
        "step": "mirror",
        "done": 1,
        "total": 2,
        "unit": "bytes",
        "bytes_per_s": 98.5e6,
        "left_s": 12.5,
    },
    "supervisor_pid": 10,
    "spec_path": "/srv/web.toml",
}


def test_the_document_of_status_is_stable() -> None:
    document = json.loads(json.dumps(PAIR.to_json()))
    assert document["schema"] == STATUS_SCHEMA
    assert {name: document[name] for name in DOCUMENT} == DOCUMENT


def test_nothing_of_a_view_is_kept_from_scripts() -> None:
    assert set(PAIR.to_json()) == {"schema", *(field.name for field in fields(PairView))}


def test_the_primary_of_a_view() -> None:
    primary = PAIR.primary()
    assert primary is not None
    assert primary.name == "a"


@pytest.mark.parametrize("enum", ENUMS)
def test_words_of_a_newer_qemu_do_not_hurt(enum: type[QapiEnum]) -> None:
    assert enum("a word from the future") is enum["UNKNOWN"]
    assert all(enum(member.value) is member for member in enum)


@pytest.mark.parametrize(
    ("enum", "path"),
    [
        (RunState, "query-status().status"),
        (MigrationStatus, "query-migrate().status"),
        (COLOMode, "query-colo-status().mode"),
        (qapi.JobStatus, "query-jobs()[].status"),
    ],
)
def test_every_word_of_every_stored_qemu_is_known(enum: type[StrEnum], path: str) -> None:
    for stored in paths.data_dir("qmp_schemas").glob("qemu-*.json"):
        schema = qmp_schema.load(stored)
        found = schema.find(path)
        assert found is not None, stored.name
        # COLO excludes postcopy, whose states read as unknown.
        words = {word for word in schema.values(found) if not word.startswith("postcopy")}
        assert words
        assert words <= {str(member) for member in enum} - {"unknown"}, stored.name


def test_ports_are_those_of_the_document_and_never_meet() -> None:
    replication = ReplicationSpec(base_port=9000)
    assert (replication.mirror_port(0), replication.compare_port(0)) == (9003, 9004)
    ports = [replication.nbd_port(), replication.migration_port()]
    for nic in range(9):
        ports += [replication.mirror_port(nic), replication.compare_port(nic)]
    assert len(set(ports)) == len(ports)
    assert set(ports) <= set(range(9000, 9100))


def test_several_connections_are_opened_by_qemu_itself() -> None:
    assert ReplicationSpec(channel=MigrationTransport.FD).stream is MigrationTransport.FD
    assert ReplicationSpec(channel=MigrationTransport.TCP).stream is MigrationTransport.TCP
    assert (
        ReplicationSpec(channel=MigrationTransport.FD, multifd_channels=2).stream
        is MigrationTransport.TCP
    )


def test_a_pair_has_two_sides() -> None:
    assert [other(node) for node in NODES] == ["b", "a"]


def test_hosts_are_shared_by_name() -> None:
    def pair(a: str, b: str) -> PairSpec:
        nodes = {"a": NodeSpec("a", a, "127.0.0.1"), "b": NodeSpec("b", b, "127.0.0.2")}
        return PairSpec("web", None, (), (), nodes)  # type: ignore[arg-type]

    assert pair("local", "local").shares_host()
    assert not pair("netns:a", "netns:b").shares_host()


def test_a_dialect_spells_both_sides_the_same() -> None:
    old = Dialect("7.2.22", ReturnPath.FORBIDDEN, "reconnect")
    new = Dialect("11.1.3", ReturnPath.REQUIRED, "reconnect-ms")
    assert old.capabilities() == (("events", True), ("x-colo", True))
    assert new.capabilities()[0] == ("return-path", True)
    assert old.reconnect_option(2) == ("reconnect", 2)
    assert new.reconnect_option(2) == ("reconnect-ms", 2000)


def test_the_surface_reads_a_view_as_a_value_and_not_by_keys(product: house.Tree) -> None:
    """Goal: mypy checks every field that a verb or the Python API reads of a pair's status."""
    modules = [module for module in product.values() if module.part in ("cli", "api")]
    assert len(modules) > 40
    found = [
        f"{module.name}:{node.lineno}"
        for module in modules
        for node in module.nodes
        if _reads_by_key(node)
    ]
    assert not found


def _reads_by_key(node: ast.AST) -> bool:
    """Return whether ``node`` is ``view["key"]`` or ``view.get("key")``."""
    by_key = isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    by_get = isinstance(node, ast.Attribute) and node.attr == "get"
    return (by_key or by_get) and isinstance(node.value, ast.Name) and node.value.id == "view"


def test_a_read_by_key_would_be_found() -> None:
    for bad in ('view["name"]', 'view.get("name")'):
        assert any(map(_reads_by_key, ast.walk(ast.parse(bad))))
    for fine in ("view.name", "view[name]", 'record["name"]'):
        assert not any(map(_reads_by_key, ast.walk(ast.parse(fine))))
