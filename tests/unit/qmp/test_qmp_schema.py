"""Every command that coloctl can build fits every stored schema, and the check would notice."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import schemas

from coloctl import paths
from coloctl.errors import UsageError
from coloctl.model.wires import Endpoint, SocketFile
from coloctl.qmp import command as qmp
from coloctl.qmp import ram, tracing
from coloctl.qmp import schema as qmp_schema
from coloctl.qmp.command import Command
from coloctl.qmp.schema import Requirement, Schema

pytestmark = pytest.mark.unit

STORED = sorted(paths.data_dir("qmp_schemas").glob("qemu-*.json"))
SCHEMAS = {path.stem: qmp_schema.load(path) for path in STORED}
REQUIRED = qmp_schema.load_required(paths.data_dir("qmp_schemas") / "required.toml")

NBD = {
    "driver": "nbd",
    "node-name": "nbd0",
    "server": {"type": "inet", "host": "10.66.0.2", "port": "9099"},
    "export": "parent0",
    "detect-zeroes": "on",
}
QUORUM = {
    "driver": "quorum",
    "node-name": "colo-disk0",
    "read-pattern": "fifo",
    "vote-threshold": 1,
    "children": ["childs0"],
}
REPLICATION = {
    "driver": "replication",
    "node-name": "childs0",
    "mode": "secondary",
    "top-id": "colo-disk0",
    "file": {
        "driver": "qcow2",
        "node-name": "active0",
        "file": {"driver": "file", "filename": "/a"},
        "backing": {
            "driver": "qcow2",
            "node-name": "hidden0",
            "file": {"driver": "file", "filename": "/h"},
            "backing": "parent0",
        },
    },
}
COMPARE = {
    "qom-type": "colo-compare",
    "id": "comp0",
    "primary_in": "compare0-0",
    "secondary_in": "compare1",
    "outdev": "compare_out0",
    "iothread": "iothread1",
    "compare_timeout": 300,
    "expired_scan_cycle": 100,
    "max_queue_size": 1024,
    "vnet_hdr_support": True,
}
MIRROR = {
    "qom-type": "filter-mirror",
    "id": "m0",
    "netdev": "hn0",
    "queue": "tx",
    "outdev": "mirror0",
    "status": "off",
    "insert": "before",
    "position": "id=rew0",
    "vnet_hdr_support": True,
}
LISTENING = {
    "type": "socket",
    "data": {
        "addr": {"type": "inet", "data": {"host": "10.66.0.1", "port": "9003"}},
        "server": True,
        "wait": False,
        "nodelay": True,
    },
}

#: What each constructor of command.py, ram.py and tracing.py is called with here.
EXAMPLES: dict[Callable[..., Command], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    qmp.qmp_capabilities: [((), {}), ((), {"oob": True})],
    qmp.migrate_set_capabilities: [(([("events", True), ("x-colo", True)],), {})],
    qmp.migrate_set_parameters: [((), {"x_checkpoint_delay": 500})],
    qmp.migrate: [(("fd:mig",), {})],
    qmp.migrate_incoming: [(("fd:mig",), {})],
    qmp.query_yank: [((), {}), ((), {"oob": False})],
    qmp.yank: [
        (
            (
                [
                    {"type": "block-node", "node-name": "nbd0"},
                    {"type": "chardev", "id": "mirror0"},
                    {"type": "migration"},
                ],
            ),
            {},
        )
    ],
    qmp.announce_self: [((), {"initial": 50, "max_": 1000, "rounds": 5, "step": 100})],
    qmp.getfd: [(("mig",), {})],
    qmp.blockdev_add: [((NBD,), {}), ((QUORUM,), {}), ((REPLICATION,), {})],
    qmp.blockdev_del: [(("nbd0",), {})],
    qmp.x_blockdev_change: [
        (("colo-disk0",), {"node": "nbd0"}),
        (("colo-disk0",), {"child": "children.1"}),
    ],
    qmp.nbd_server_start: [
        ((Endpoint("10.66.0.2", 9099),), {}),
        ((SocketFile(Path("/run/coloctl/web/a/resync.sock")),), {}),
    ],
    qmp.block_export_add: [
        (("exp0", "parent0", "parent0"), {}),
        (("resync0", "colo-disk0", "resync0"), {"writable": False, "bitmaps": ["resync0.a"]}),
    ],
    qmp.block_dirty_bitmap_add: [
        (("colo-disk0", "resync0.a"), {"granularity": 65536}),
        (("active0", "closed"), {"granularity": 65536, "persistent": True}),
    ],
    qmp.block_dirty_bitmap_disable: [(("colo-disk0", "resync0.a"), {})],
    qmp.block_dirty_bitmap_remove: [(("colo-disk0", "resync0.a"), {})],
    qmp.block_export_del: [(("exp0",), {"mode": "hard"})],
    qmp.blockdev_mirror: [
        (("resync", "colo-disk0", "nbd0"), {"speed": 1, "copy_mode": "write-blocking"})
    ],
    qmp.block_job_cancel: [(("resync",), {"force": True})],
    qmp.block_job_set_speed: [(("resync", 1), {})],
    qmp.mark_written: [(("witness",), {})],
    qmp.set_action: [((), {"shutdown": "pause"})],
    qmp.job_dismiss: [(("resync",), {})],
    qmp.object_add: [
        ((COMPARE,), {}),
        ((MIRROR,), {}),
        (({"qom-type": "iothread", "id": "iothread1"},), {}),
    ],
    qmp.object_del: [(("m0",), {})],
    qmp.qom_set: [(("/objects/m0", "status", "on"), {})],
    qmp.qom_list: [(("/objects",), {})],
    qmp.qom_list_properties: [(("colo-compare",), {})],
    qmp.chardev_add: [(("mirror0", LISTENING), {})],
    qmp.chardev_remove: [(("red0",), {})],
    ram.pmemsave: [((0x100000, 1 << 20, "/proc/self/fd/7"), {})],
    tracing.set_log_file: [(("/srv/b.merge.log",), {})],
    tracing.trace_event_set_state: [(("job_state_transition",), {"enable": True})],
    ram.add_fd: [((7301,), {})],
    ram.remove_fd: [((7301,), {})],
}


def constructors() -> list[Callable[..., Command]]:
    return [
        function
        for module in (qmp, ram, tracing)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    ]


def examples(constructor: Callable[..., Command]) -> list[Command]:
    """The commands of EXAMPLES; a constructor that takes nothing needs no example."""
    calls = EXAMPLES.get(constructor, [((), {})])
    return [constructor(*args, **kwargs) for args, kwargs in calls]


def test_three_schemas_are_stored() -> None:
    assert list(SCHEMAS) == ["qemu-10.0", "qemu-11.1", "qemu-7.2"]


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("constructor", constructors(), ids=lambda function: function.__name__)
def test_every_command_fits_every_stored_schema(
    constructor: Callable[..., Command], name: str
) -> None:
    for command in examples(constructor):
        assert schemas.check(command, SCHEMAS[name]) == []


@pytest.mark.parametrize("constructor", constructors(), ids=lambda function: function.__name__)
def test_every_command_is_among_what_is_required(constructor: Callable[..., Command]) -> None:
    name = examples(constructor)[0].execute
    named = {path for need in REQUIRED for path in need.any_of}
    assert any(
        path == name or path.startswith((f"{name}.", f"{name}[", f"{name}(")) for path in named
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_stored_schema_has_all_that_is_required(name: str) -> None:
    assert qmp_schema.required_missing(SCHEMAS[name], REQUIRED) == []


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (Command("no-such-command"), "has no command no-such-command"),
        (Command("COLO_EXIT"), "has no command COLO_EXIT"),
        (Command("stop", oob=True), "out of band"),
        (Command("stop", {"now": True}), "stop.now is unknown"),
        (Command("blockdev-del"), "blockdev-del.node-name is missing"),
        (Command("migrate", {"uri": 9998}), "migrate.uri is 9998"),
        (Command("migrate", {"uri": "u", "resume": 1}), "migrate.resume is 1"),
        (qmp.migrate_set_capabilities([("x-cola", True)]), '"x-cola"'),
        (Command("migrate-set-capabilities", {"capabilities": {}}), "expects list"),
        (qmp.migrate_set_parameters(x_checkpoint_delay=True), "x-checkpoint-delay is true"),
        (qmp.migrate_set_parameters(x_checkpoint_delai=1), "x-checkpoint-delai is unknown"),
        (qmp.blockdev_add({**NBD, "export": 1}), "blockdev-add[driver=nbd].export is 1"),
        (qmp.blockdev_add({**QUORUM, "mode": "secondary"}), "blockdev-add.mode is unknown"),
        (qmp.blockdev_add({**QUORUM, "children": [7]}), "children[] is 7"),
        (
            qmp.blockdev_add({**REPLICATION, "file": {"driver": "qcow2"}}),
            "blockdev-add[driver=qcow2].file is missing",
        ),
        (qmp.blockdev_add({**NBD, "server": {"type": "inet", "host": "h"}}), "port is missing"),
        (qmp.object_add({**COMPARE, "iothread": 1}), "iothread is 1"),
        (qmp.chardev_add("c", {"type": "socket", "data": {}}), "data.addr is missing"),
        (qmp.yank([{"type": "chardev"}]), "[type=chardev].id is missing"),
        (qmp.yank([{"type": "migration", "id": "x"}]), "yank.instances[].id is unknown"),
    ],
)
@pytest.mark.parametrize("name", SCHEMAS)
def test_the_check_notices(command: Command, part: str, name: str) -> None:
    wrong = schemas.check(command, SCHEMAS[name])
    assert len(wrong) == 1
    assert part in wrong[0]


def test_the_dialects_differ_where_they_are_known_to() -> None:
    path = "chardev-add.backend[type=socket].data.reconnect"
    has = {name: (s.has(path), s.has(f"{path}-ms")) for name, s in SCHEMAS.items()}
    assert has == {
        "qemu-7.2": (True, False),
        "qemu-10.0": (True, True),
        "qemu-11.1": (False, True),
    }


def test_a_path_is_found_behind_a_type_spelled_out_elsewhere() -> None:
    schema = SCHEMAS["qemu-7.2"]
    path = "blockdev-add[driver=quorum].children[][driver=nbd].export"
    assert path not in schema.paths
    assert schema.find(path) == "blockdev-add[driver=nbd].export"
    assert not schema.has("blockdev-add[driver=quorum].children[][driver=nbd].exports")


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_masked_type_number_is_left(name: str) -> None:
    words = {"str", "int", "number", "bool", "null", "any", "enum", "object", "list"}
    for kind in SCHEMAS[name].paths.values():
        for one in qmp_schema.kinds(kind):
            target = qmp_schema.like(one)
            if target is None:
                assert one in words | {"command", "event", "value"}
            else:
                assert target in SCHEMAS[name].paths


def test_an_enum_lists_its_words() -> None:
    schema = SCHEMAS["qemu-11.1"]
    assert set(schema.values("COLO_EXIT.reason")) == {"none", "request", "error", "processing"}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_files_are_written_as_dump_writes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    paths = list(json.loads(text)["paths"])
    assert paths == sorted(paths)
    assert len(text) < 420_000


ANSWER: list[dict[str, Any]] = [
    {"name": "stop", "meta-type": "command", "arg-type": "0", "ret-type": "0"},
    {
        "name": "walk",
        "meta-type": "command",
        "arg-type": "1",
        "ret-type": "[str]",
        "allow-oob": True,
        "features": ["unstable"],
    },
    {"name": "0", "meta-type": "object", "members": []},
    {
        "name": "1",
        "meta-type": "object",
        "members": [
            {"name": "how", "type": "2"},
            {"name": "next", "type": "3", "default": None},
        ],
        "tag": "how",
        "variants": [{"case": "fast", "type": "4"}, {"case": "slow", "type": "0"}],
    },
    {
        "name": "2",
        "meta-type": "enum",
        "values": ["fast", "slow"],
        "members": [{"name": "fast"}, {"name": "slow", "features": ["deprecated"]}],
    },
    {"name": "3", "meta-type": "alternate", "members": [{"type": "str"}, {"type": "1"}]},
    {"name": "4", "meta-type": "object", "members": [{"name": "km/h", "type": "int"}]},
    {"name": "[str]", "meta-type": "array", "element-type": "str"},
    {"name": "str", "meta-type": "builtin", "json-type": "string"},
    {"name": "int", "meta-type": "builtin", "json-type": "int"},
    {"name": "ARRIVED", "meta-type": "event", "arg-type": "4"},
]


def test_a_schema_becomes_paths() -> None:
    assert qmp_schema.distill(ANSWER, "1.0").paths == {
        "ARRIVED": "event",
        "ARRIVED.km/h": "int",
        "stop": "command",
        "walk": "command (oob, unstable)",
        "walk()": "list",
        "walk()[]": "str",
        "walk.how": "enum",
        "walk.how=fast": "value",
        "walk.how=slow": "value (deprecated)",
        "walk.next": "optional like walk or str",
        "walk[how=fast].km/h": "int",
    }


def dumped(answer: list[Any]) -> str:
    return qmp_schema.text(qmp_schema.distill(answer, "1.0"))


def test_dump_and_load_agree(tmp_path: Path) -> None:
    stored = tmp_path / "s.json"
    stored.write_text(dumped(ANSWER))
    assert qmp_schema.load(stored) == qmp_schema.distill(ANSWER, "1.0")
    assert dumped(list(reversed(ANSWER))) == stored.read_text()


def test_renumbered_types_make_no_difference() -> None:
    renumbered = json.loads(json.dumps(ANSWER).replace('"1"', '"71"').replace('"4"', '"3x"'))
    assert dumped(renumbered) == dumped(ANSWER)


def test_a_difference_names_the_whole_and_not_its_parts() -> None:
    old = Schema(
        "1",
        {
            "a": "command",
            "a.x": "str",
            "b": "command",
            "b.kind": "enum",
            "b.kind=one": "value",
            "b[kind=one].n": "int",
        },
    )
    new = Schema("2", {"b": "command (deprecated)", "b.kind": "enum", "c": "event", "c.y": "int"})
    assert qmp_schema.diff(old, new) == [
        "- a: command",
        "~ b: command -> command (deprecated)",
        "- b.kind=one: value",
        "+ c: event",
    ]
    assert qmp_schema.diff(old, old) == []


def test_a_missing_requirement_says_what_and_why() -> None:
    needs = [Requirement(("a.y", "a.z"), "For the walk."), Requirement(("a.x", "nope"), "Met.")]
    schema = Schema("1", {"a": "command", "a.x": "str"})
    assert qmp_schema.required_missing(schema, needs) == [needs[0]]
    assert needs[0].sentence() == "a.y or a.z is missing: For the walk."


@pytest.mark.parametrize("text", ["", "[]", '{"form": 99}', '{"paths": {}}', "{", '{"form": 1}'])
def test_a_file_that_is_no_schema_is_a_sentence(tmp_path: Path, text: str) -> None:
    stored = tmp_path / "s.json"
    stored.write_text(text)
    with pytest.raises(UsageError, match=r"s\.json"):
        qmp_schema.load(stored)


def test_an_absent_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        qmp_schema.load(tmp_path / "absent.json")
    with pytest.raises(UsageError, match="cannot be read"):
        qmp_schema.load_required(tmp_path / "absent.toml")


@pytest.mark.parametrize("text", ["need = 1", "[[need]]\nany = ['x']", "x ="])
def test_a_file_that_lists_no_requirements_is_a_sentence(tmp_path: Path, text: str) -> None:
    stored = tmp_path / "required.toml"
    stored.write_text(text)
    with pytest.raises(UsageError, match=r"required\.toml"):
        qmp_schema.load_required(stored)


def test_every_command_that_is_required_is_sent() -> None:
    strings = set()
    for file in Path(qmp.__file__).parents[1].rglob("*.py"):
        strings |= set(re.findall(r'"([\w-]+)"', file.read_text()))
    commands = {
        re.split(r"[.([]", path)[0]
        for need in REQUIRED
        for path in need.any_of
        if not path[0].isupper()  # an event
    }
    assert len(commands) > 40
    assert commands <= strings
