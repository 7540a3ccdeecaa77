"""Every sequence, against files that people can read and against every stored schema.

``COLOCTL_GOLDEN=write pytest tests/unit/colo`` writes the files anew; read the difference before it
is committed.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support import schemas
from support.fakes import DIALECTS, make_spec, on_one_host

from coloctl import paths
from coloctl.colo import difference_plan, mirror_plan, overlay_plan, plan, retune, tls_plan
from coloctl.colo.plan import Plan
from coloctl.model.dialect import Dialect
from coloctl.model.pair import MigrationTransport, NodeName, PairSpec, ReplicationSpec
from coloctl.model.tls import TlsIds, TlsMode, TlsSpec, TlsWire
from coloctl.model.wires import Wires
from coloctl.qmp import schema as qmp_schema
from coloctl.qmp.sequence import Step

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[2] / "golden" / "plan"
RUNDIR = Path("/run/coloctl/web")
SCHEMAS = [
    qmp_schema.load(path) for path in sorted(paths.data_dir("qmp_schemas").glob("qemu-*.json"))
]

#: What each node's QEMU has where the pair is encrypted: one object was made from each certificate.
TLS = {
    "a": TlsWire(TlsIds("0a0a0a0a"), "hv2", RUNDIR / "a/tls-0a0a0a0a", ("CN=hv1", "CN=hv2")),
    "b": TlsWire(TlsIds("0b0b0b0b"), "hv1", RUNDIR / "b/tls-0b0b0b0b", ("CN=hv1", "CN=hv2")),
}

Dialogue = list[tuple[NodeName, Plan]]

#: A primary a with a disk and a NIC, its secondary b.
SPECS = {
    "documented": make_spec(),
    "two-of-each": make_spec(disks=2, nics=2),
    "tcp": replace(make_spec(), replication=ReplicationSpec(channel=MigrationTransport.TCP)),
    "multifd": replace(make_spec(), replication=ReplicationSpec(multifd_channels=2)),
    "tls": replace(make_spec(nics=2), tls=TlsSpec(TlsMode.ON)),
    "one-host": on_one_host(make_spec(nics=2)),
    "one-host-multifd": on_one_host(
        replace(make_spec(), replication=ReplicationSpec(multifd_channels=2))
    ),
}


def protect(spec: PairSpec, dialect: Dialect, join: Dialogue, hold: Plan = ()) -> Dialogue:
    wires = Wires(spec, RUNDIR, TLS if spec.encrypted() else {})
    return [
        ("b", plan.prepare_secondary(wires, "b", dialect)),
        ("a", plan.connect_replicas(wires, "b")),
        *join,
        ("b", plan.receive(wires, "b")),
        ("a", plan.start_migration(wires, "b", dialect, 1000)),
        ("a", hold),
        ("a", plan.engage_filters(spec)),
        ("a", plan.set_checkpoint_delay(1000)),
    ]


def sequences(spec: PairSpec, dialect: Dialect) -> dict[str, Dialogue]:
    """Everything that coloctl says to a pair, by what it is said for."""
    primary, secondary = plan.peer_instances_primary(spec), plan.peer_instances_secondary(spec)
    disks = range(len(spec.disks))
    mirrored: Dialogue = [
        ("a", mirror_plan.mirror_disks(spec)),
        *(("a", mirror_plan.finish_mirror(i)) for i in disks),
        ("a", plan.attach_replicas(spec)),
    ]
    compared: Dialogue = [
        ("a", difference_plan.begin(spec, RUNDIR / "a" / "resync.sock", 65536)),
        *(
            ("a", steps)
            for i in disks
            for steps in (
                difference_plan.take_turn(i, 1, 65536),
                difference_plan.close_export(i, 1),
                difference_plan.remove_bitmap(i, 1),
            )
        ),
        *(("a", difference_plan.take_turn(i, 2, 65536)) for i in disks),
        ("a", plan.attach_replicas(spec)),
        ("a", difference_plan.drop(spec)),
    ]
    return {
        "compare": compared,
        "protect-held": protect(spec, dialect, [("a", plan.attach_replicas(spec))]),
        "protect-running": protect(spec, dialect, mirrored, plan.hold_guest()),
        "failover-to-primary": [
            ("a", plan.yank_peer(primary, primary)),
            ("a", plan.release_primary(spec)),
            ("a", plan.clear_primary(spec)),
        ],
        "failover-to-secondary": [
            ("b", plan.yank_peer(secondary, secondary)),
            ("b", plan.note_merges(spec)),
            ("b", plan.release_secondary(spec)),
            ("b", plan.clear_secondary(spec)),
        ],
        "abandon": [
            ("a", plan.yank_peer(primary, primary)),
            ("a", difference_plan.drop(spec)),
            *(("a", mirror_plan.drop_mirror(i)) for i in disks),
            ("a", plan.release_primary(spec)),
            ("a", plan.clear_primary(spec)),
        ],
        "rebuild-primary": [
            (
                "a",
                plan.rebuild_filters(spec, "a", RUNDIR / "a", behind_rewriter=False, tls=TLS["a"]),
            )
        ],
        "rebuild-promoted": [
            ("b", plan.rebuild_filters(spec, "b", RUNDIR / "b", behind_rewriter=True, tls=TLS["b"]))
        ],
        "renew-certificate": [
            ("a", tls_plan.add(TLS["a"], TLS["a"].ids.all)),
            ("a", plan.clear_primary(spec)),
            (
                "a",
                plan.rebuild_filters(spec, "a", RUNDIR / "a", behind_rewriter=False, tls=TLS["a"]),
            ),
            ("a", tls_plan.remove(TlsIds("01d01d01").all)),
        ],
        "set-checkpoint-delay": [("a", plan.set_checkpoint_delay(500))],
        "set-limits": [
            ("a", retune.limit_comparison(spec)),
            ("a", retune.limit_mirrors(spec, 1 << 20)),
        ],
    }


def every_step() -> list[tuple[str, Dialect, Step]]:
    return [
        (f"{kind} {name}", dialect, step)
        for kind, spec in SPECS.items()
        for dialect in DIALECTS.values()
        for name, dialogue in sequences(spec, dialect).items()
        for _, steps in dialogue
        for step in steps
    ]


def rendered(dialogue: Dialogue) -> str:
    lines = [
        json.dumps({"node": node, **step.command.wire()} | ({"why": step.why} if step.why else {}))
        for node, steps in dialogue
        for step in steps
    ]
    return "\n".join(lines) + "\n"


GOLDENS = [
    (kind, dialect, name)
    for kind in SPECS
    for dialect in DIALECTS
    for name in sequences(SPECS[kind], DIALECTS[dialect])
    # What does not differ between dialects, and what other channels do not touch, is told once.
    if (dialect == "reconnect-ms" or name.startswith("protect"))
    and (
        (kind in ("documented", "two-of-each") and name != "renew-certificate")
        or (kind == "tls" and name in ("protect-running", "rebuild-promoted", "renew-certificate"))
        or name == "protect-held"
    )
]


@pytest.mark.parametrize(("kind", "dialect", "name"), GOLDENS)
def test_a_sequence_is_what_its_file_says(kind: str, dialect: str, name: str) -> None:
    path = GOLDEN / f"{kind}-{name}-{dialect}.txt"
    text = rendered(sequences(SPECS[kind], DIALECTS[dialect])[name])
    if os.environ.get("COLOCTL_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text.splitlines() == path.read_text().splitlines()


def test_no_file_is_left_over() -> None:
    wanted = {f"{kind}-{name}-{dialect}.txt" for kind, dialect, name in GOLDENS}
    assert {path.name for path in GOLDEN.iterdir()} == wanted


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.qemu)
def test_every_command_of_every_sequence_fits_every_stored_schema(
    schema: qmp_schema.Schema,
) -> None:
    # A QEMU is told of a parameter only where its dialect has it.
    has = schema.has("migrate-set-parameters.avail-switchover-bandwidth")
    wrong = {
        f"{name}: {sentence}"
        for name, dialect, step in every_step()
        if has or not dialect.switchover_bandwidth
        for sentence in schemas.check(step.command, schema)
    }
    assert not wrong


def test_what_does_not_depend_on_the_dialect_is_the_same_in_all() -> None:
    for spec in SPECS.values():
        old, new = (sequences(spec, dialect) for dialect in DIALECTS.values())
        differ = {name for name in old if old[name] != new[name]}
        assert differ == {"protect-held", "protect-running"}


def test_a_mirror_is_held_back_only_where_that_was_asked_for() -> None:
    (free,), (slow,) = (
        mirror_plan.mirror_disks(make_spec()),
        mirror_plan.mirror_disks(make_spec(), 1000),
    )
    assert "speed" not in free.command.arguments
    assert slow.command.arguments["speed"] == 1000


def test_a_bitmap_begins_before_the_disk_can_be_read_and_before_the_last_one_ends() -> None:
    begin = names(difference_plan.begin(make_spec(), RUNDIR / "s", 65536))
    assert begin.index("block-dirty-bitmap-add") < begin.index("block-export-add")
    for turn in (1, 2):
        first, second, _ = (step.command for step in difference_plan.take_turn(0, turn, 65536))
        assert first.execute == "block-dirty-bitmap-add"
        assert second.execute == "block-dirty-bitmap-disable"
        assert first.arguments["name"] != second.arguments["name"]


def names(steps: Plan) -> list[str]:
    return [step.command.execute for step in steps]


def test_capabilities_come_before_the_stream_on_both_sides() -> None:
    for dialect in DIALECTS.values():
        said = [
            step for _, steps in sequences(make_spec(), dialect)["protect-held"] for step in steps
        ]
        order = [step.command.execute for step in said]
        assert order.index("migrate-set-capabilities") < order.index("migrate-incoming")
        assert order.index("migrate-incoming") < order.index("migrate")
        assert order.index("block-export-add") < order.index("migrate-incoming")
        set_by = [s.command for s in said if s.command.execute == "migrate-set-capabilities"]
        assert len(set_by) == 2
        assert set_by[0] == set_by[1]


def test_the_way_out_of_the_comparison_opens_before_the_way_in() -> None:
    paths = [step.command.arguments["path"] for step in plan.engage_filters(make_spec())]
    assert paths.index("/objects/redire0") < paths.index("/objects/redire1")


def test_a_promotion_keeps_the_rewriter() -> None:
    said = rendered(sequences(make_spec(), DIALECTS["reconnect"])["failover-to-secondary"])
    assert "rew0" not in said
    assert "f1" in said


def test_only_instances_that_exist_are_yanked_and_none_is_not_asked_for() -> None:
    ours = plan.peer_instances_primary(make_spec())
    assert plan.yank_peer([], ours) == ()
    assert plan.yank_peer([{"type": "chardev", "id": "compat_monitor0"}], ours) == ()
    (step,) = plan.yank_peer([{"type": "migration"}, {"type": "chardev", "id": "x"}], ours)
    assert step.command.oob
    assert list(map(dict, step.command.arguments["instances"])) == [{"type": "migration"}]


def test_what_drains_the_dead_comes_after_the_yank_alone() -> None:
    """The rescue road is the only one that a dead peer cannot block."""
    for name in ("failover-to-primary", "failover-to-secondary", "abandon"):
        (_, first), *rest = sequences(make_spec(), DIALECTS["reconnect"])[name]
        assert names(first) == ["yank"]
        assert not [step for _, steps in rest for step in steps if step.command.oob]


def test_clean_up_tolerates_what_is_gone() -> None:
    spec = make_spec()
    for step in (*plan.clear_primary(spec), *plan.clear_secondary(spec)):
        announces = step.command.execute == "announce-self"
        assert announces or "not found" in step.tolerate
    lost = [step for step in plan.release_primary(spec) if "lost" in step.command.execute]
    assert lost[0].tolerate


def test_the_close_marker_is_marked_before_any_overlay_gets_its_sign() -> None:
    """Without a mark on it a killed QEMU would be taken for one that ended in order."""
    first, *rest = overlay_plan.mark_overlays(make_spec(disks=2))
    assert "witness" in first.command.arguments["command-line"]
    assert [step.command.arguments["node"] for step in rest] == ["active0", "active1"]
    assert all(step.command.arguments["persistent"] for step in rest)
    assert overlay_plan.mark_overlays(make_spec(disks=0)) == ()


def test_every_wire_of_an_encrypted_pair_is_encrypted_and_no_other_one() -> None:
    """The wires between the nodes, and not the loops inside a primary."""
    said = sequences(SPECS["tls"], DIALECTS["reconnect-ms"])
    secured, plain = set(), set()
    for dialogue in (said["protect-held"], said["rebuild-primary"], said["rebuild-promoted"]):
        for _, steps in dialogue:
            for one in (step.command for step in steps):
                if one.execute == "chardev-add":
                    data = one.arguments["backend"]["data"]
                    (secured if "tls-creds" in data else plain).add(one.arguments["id"])
                    assert ("tls-authz" in data) == ("tls-creds" in data)
                elif one.execute in ("nbd-server-start", "blockdev-add"):
                    assert one.arguments["tls-creds"]
                    secured.add(one.execute)
    assert secured == {"nbd-server-start", "blockdev-add"} | {
        f"{name}{suffix}" for name in ("mirror0", "compare1") for suffix in ("", "-n1")
    }
    assert {name.partition("-n1")[0] for name in plain} == {
        "compare0", "compare0-0", "compare_out", "compare_out0",
    }  # fmt: skip
    order = [step.command.execute for _, steps in said["protect-held"] for step in steps]
    streams = [i for i, name in enumerate(order) if name in ("migrate-incoming", "migrate")]
    secured_by = [
        i
        for i, step in enumerate(step for _, steps in said["protect-held"] for step in steps)
        if "tls-creds" in step.command.arguments
        and step.command.execute == "migrate-set-parameters"
    ]
    assert secured_by[0] < streams[0] < secured_by[1] < streams[1]


def test_no_wire_of_an_encrypted_pair_is_described_without_its_tls() -> None:
    spec, dialect = SPECS["tls"], DIALECTS["reconnect-ms"]
    wires = Wires(spec, RUNDIR)
    for build in (
        lambda: plan.prepare_secondary(wires, "b", dialect),
        lambda: plan.connect_replicas(wires, "b"),
        lambda: plan.start_migration(wires, "b", dialect, 1000),
        lambda: plan.rebuild_filters(spec, "a", RUNDIR / "a", behind_rewriter=False),
    ):
        with pytest.raises(KeyError):
            build()
