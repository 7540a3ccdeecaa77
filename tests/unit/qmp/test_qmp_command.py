"""Commands are values: frozen, compared by what goes over the wire."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from coloctl.model.wires import Endpoint
from coloctl.qmp import command as qmp
from coloctl.qmp.command import Command

pytestmark = pytest.mark.unit


def test_equal_by_value_whatever_the_container() -> None:
    one = Command("yank", {"instances": [{"type": "migration"}]}, oob=True)
    two = qmp.yank({"type": kind} for kind in ["migration"])
    assert one == two
    assert hash(one) == hash(two)
    assert one != qmp.yank([{"type": "chardev", "id": "mirror0"}])
    assert one != Command("yank", one.arguments)


def test_hash_does_not_depend_on_the_order_of_arguments() -> None:
    one = Command("qom-get", {"path": "/", "property": "type"})
    two = Command("qom-get", {"property": "type", "path": "/"})
    assert one == two
    assert hash(one) == hash(two)


def test_nothing_can_be_changed_afterwards() -> None:
    node = {"driver": "qcow2", "file": {"driver": "file"}}
    command = qmp.blockdev_add(node)
    node["driver"] = "raw"
    assert command.arguments["driver"] == "qcow2"
    with pytest.raises(TypeError):
        command.arguments["file"]["driver"] = "nbd"
    with pytest.raises(FrozenInstanceError):
        command.execute = "blockdev-del"  # type: ignore[misc]


def test_the_wire_form_is_plain_json() -> None:
    command = qmp.migrate_set_capabilities([("x-colo", True)])
    assert command.wire() == {
        "execute": "migrate-set-capabilities",
        "arguments": {"capabilities": [{"capability": "x-colo", "state": True}]},
    }
    assert json.loads(str(command)) == command.wire()


def test_oob_says_so_on_the_wire() -> None:
    assert qmp.query_yank().wire() == {"exec-oob": "query-yank"}
    assert qmp.query_yank(oob=False).wire() == {"execute": "query-yank"}


def test_arguments_left_out_are_not_sent() -> None:
    assert qmp.x_blockdev_change("colo-disk0", node="nbd0").wire()["arguments"] == {
        "parent": "colo-disk0",
        "node": "nbd0",
    }
    assert qmp.stop().wire() == {"execute": "stop"}


def test_false_and_zero_are_sent() -> None:
    assert qmp.blockdev_mirror("resync", "colo-disk0", "nbd0", speed=0).arguments["speed"] == 0
    assert qmp.block_job_cancel("resync", force=False).arguments["force"] is False


def test_a_value_of_none_reaches_qom_set() -> None:
    assert qmp.qom_set("/objects/m0", "x", None).arguments["value"] is None


def test_parameters_are_spelled_with_dashes() -> None:
    command = qmp.migrate_set_parameters(x_checkpoint_delay=500)
    assert command.arguments == {"x-checkpoint-delay": 500}


def test_the_port_of_an_nbd_server_is_text() -> None:
    data = qmp.nbd_server_start(Endpoint("10.66.0.2", 9099)).arguments["addr"]["data"]
    assert data == {"host": "10.66.0.2", "port": "9099"}
