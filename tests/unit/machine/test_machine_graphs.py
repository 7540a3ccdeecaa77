"""Filters, chardevs, disks and slots: the same facts for the command line and for QMP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_pairs import disk, make_pair, nic

from coloctl.errors import SpecError
from coloctl.machine import blockdev, chardev, device, netfilter
from coloctl.machine.chardev import SocketChardev
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.pair import GuestSpec, NicSpec
from coloctl.model.wires import Endpoint, SocketFile

pytestmark = pytest.mark.unit

RUNDIR = Path("/run/coloctl/web/a")
OLD = Dialect("7.2.22", ReturnPath.FORBIDDEN, "reconnect")
NEW = Dialect("11.1.3", ReturnPath.REQUIRED, "reconnect-ms")


def primary_filters(pair: Any, index: int = 0, **how: Any) -> dict[str, dict[str, Any]]:
    filters = netfilter.primary_filters(pair, index, **({"status": False} | how))
    return {one["id"]: dict(one) for one in filters}


def test_a_chardev_says_the_same_to_both() -> None:
    server = SocketChardev("mirror0", Endpoint("10.66.0.1", 9003), server=True)
    assert server.option() == (
        "socket,id=mirror0,host=10.66.0.1,port=9003,nodelay=on,server=on,wait=off"
    )
    assert server.backend() == {
        "type": "socket",
        "data": {
            "addr": {"type": "inet", "data": {"host": "10.66.0.1", "port": "9003"}},
            "server": True,
            "nodelay": True,
            "wait": False,
        },
    }


def test_a_client_says_that_it_is_no_server() -> None:
    """QMP takes a socket for a server unless told, the command line for a client."""
    client = SocketChardev("compare0-0", SocketFile(Path("/run/x.sock")), server=False)
    assert client.option() == "socket,id=compare0-0,path=/run/x.sock"
    assert client.backend()["data"]["server"] is False


@pytest.mark.parametrize(("dialect", "value"), [(OLD, 1), (NEW, 1000)])
def test_the_secondary_connects_again_in_the_dialect(dialect: Dialect, value: int) -> None:
    for one in chardev.secondary(make_pair(), 0, "b", RUNDIR, dialect):
        assert one.option().endswith(f",{dialect.reconnect}={value}")
        assert one.backend()["data"][dialect.reconnect] == value


def test_what_goes_away_is_what_was_made() -> None:
    pair = make_pair(nics=(nic(), nic(1)))
    for i in (0, 1):
        made = [one.id for one in chardev.primary(pair, i, "a", RUNDIR)]
        assert sorted(chardev.ids_primary(i)) == sorted(made)
        assert set(chardev.peer_ids_primary(i)) < set(made)
        followers = [one.id for one in chardev.secondary(pair, i, "b", RUNDIR, NEW)]
        assert sorted(chardev.ids_secondary(i)) == sorted(followers)
        assert sorted(netfilter.primary_ids_teardown(i)) == sorted(primary_filters(pair, i))
        kept = {one["id"] for one in netfilter.secondary_filters(pair, i)} - set(
            netfilter.secondary_ids_teardown(i)
        )
        assert kept == {("rew0", "rew0-n1")[i]}
        with_status = {name for name, one in primary_filters(pair, i).items() if "status" in one}
        assert set(netfilter.engage_order(i)) == with_status


def test_nics_share_no_id_and_no_port() -> None:
    pair = make_pair(nics=tuple(nic(i) for i in range(5)))
    ids: list[str] = []
    addresses: list[object] = []
    for i, _ in enumerate(pair.nics):
        ids += primary_filters(pair, i)
        chardevs = chardev.primary(pair, i, "a", RUNDIR)
        ids += [one.id for one in chardevs]
        addresses += [one.address for one in chardevs if one.server]
    ports = [one.port for one in addresses if isinstance(one, Endpoint)]
    ports += [pair.replication.nbd_port(), pair.replication.migration_port()]
    assert len(set(ids)) == len(ids)
    assert len(set(addresses)) == len(addresses)
    assert len(set(ports)) == len(ports)


def test_filters_speak_through_chardevs_that_exist() -> None:
    pair = make_pair(nics=(nic(), nic(1)))
    for i in (0, 1):
        there = {one.id for one in chardev.primary(pair, i, "a", RUNDIR)}
        there |= {one.id for one in chardev.secondary(pair, i, "b", RUNDIR, NEW)}
        for one in (
            *netfilter.primary_filters(pair, i, status=True),
            *netfilter.secondary_filters(pair, i),
        ):
            ends = {
                one[key] for key in ("indev", "outdev", "primary_in", "secondary_in") if key in one
            }
            assert ends <= there


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (nic(), True),
        (nic(model="virtio-net-pci-non-transitional"), True),
        (nic(model="e1000"), False),
        (nic(tap=None), False),
    ],
)
def test_all_are_told_of_the_vnet_header_or_none(card: NicSpec, told: bool) -> None:
    pair = make_pair(nics=(card,))
    everything = (
        *netfilter.primary_filters(pair, 0, status=True),
        *netfilter.secondary_filters(pair, 0),
    )
    for one in everything:
        if one["qom-type"] != "iothread":
            assert one.get("vnet_hdr_support", False) is told


def test_a_survivor_that_rewrites_compares_in_its_clients_numbers() -> None:
    filters = primary_filters(make_pair(), behind_rewriter=True)
    for name in ("m0", "redire0", "redire1"):
        assert (filters[name]["insert"], filters[name]["position"]) == ("before", "id=rew0")
    assert "insert" not in filters["comp0"]
    assert "insert" not in primary_filters(make_pair())["m0"]


def test_comparison_has_the_pair_s_own_patience() -> None:
    compare = primary_filters(make_pair())["comp0"]
    times = {
        key: compare[key] for key in ("compare_timeout", "expired_scan_cycle", "max_queue_size")
    }
    assert times == {"compare_timeout": 300, "expired_scan_cycle": 100, "max_queue_size": 1024}


def test_the_replica_s_way_down_to_the_image() -> None:
    pair = make_pair()
    over = blockdev.overlays(pair, "b")[0]
    image, replication, quorum = blockdev.secondary_nodes(
        pair.disks[0], 0, pair.disks[0].image["b"], over
    )
    assert quorum["children"] == [replication["node-name"]]
    assert replication["top-id"] == quorum["node-name"]
    assert replication["file"]["backing"]["backing"] == image["node-name"]
    assert over.active != over.hidden


def test_devices_and_files_have_their_own_drivers() -> None:
    image, _ = blockdev.primary_nodes(disk(format="raw"), 0, Path("/dev/vg/a"))
    assert image["file"] == {"driver": "host_device", "filename": "/dev/vg/a"}
    image, _ = blockdev.primary_nodes(disk(), 0, Path("/srv/a,b=c.qcow2"))
    assert image["file"] == {"driver": "file", "filename": "/srv/a,b=c.qcow2"}
    link = Path("/srv/link-to-a-device")
    image, _ = blockdev.primary_nodes(disk(), 0, link, {link})
    assert image["file"] == {"driver": "host_device", "filename": str(link)}
    image, _ = blockdev.primary_nodes(disk(), 0, Path("/dev/shm/a.qcow2"))
    assert image["file"] == {"driver": "file", "filename": "/dev/shm/a.qcow2"}


def test_the_nbd_client_never_waits_for_a_dead_peer() -> None:
    node = blockdev.nbd_client(2, Endpoint("10.66.0.2", 9099))
    assert (node["node-name"], node["export"]) == ("nbd2", "parent2")
    assert "reconnect-delay" not in node


@given(
    models=st.lists(st.sampled_from(["virtio-blk-pci", "ide-hd", "scsi-hd"]), max_size=6),
    nics=st.integers(0, 9),
    machine=st.sampled_from(["pc", "q35", "pc-i440fx-7.2", "pc-q35-7.2"]),
)
def test_no_two_devices_share_a_place(models: list[str], nics: int, machine: str) -> None:
    guest = GuestSpec(memory_mib=64, machine=machine)
    places: list[tuple[object, ...]] = []
    try:
        made = [
            device.disk_device(guest, disk(i, model=model), i) for i, model in enumerate(models)
        ]
    except SpecError as refused:
        assert refused.key.startswith("disk[")
        return
    made += [device.nic_device(guest, nic(i), i) for i in range(nics)]
    for one in made:
        places.append(tuple(one.get(key) for key in ("bus", "addr", "unit", "scsi-id")))
    assert len(set(places)) == len(places)


def test_a_disk_keeps_its_slot_when_a_nic_is_added() -> None:
    before = device.devices(make_pair())
    after = device.devices(make_pair(nics=(nic(), nic(1))))
    assert set(map(str, before)) < set(map(str, after))


@pytest.mark.parametrize(
    ("disks", "nics", "key"),
    [
        (tuple(disk(i) for i in range(12)), (), "disk[11]"),
        (tuple(disk(i, model="ide-hd") for i in range(5)), (), "disk[4].model"),
        ((), tuple(nic(i) for i in range(14)), "nic[13]"),
    ],
)
def test_too_many_is_refused_by_name(disks: Any, nics: Any, key: str) -> None:
    with pytest.raises(SpecError) as refused:
        device.devices(make_pair(disks=disks, nics=nics))
    assert refused.value.key == key


def test_virtio_guests_finish_their_own_checksums() -> None:
    by_model = {
        model: device.nic_device(make_pair().guest, nic(model=model), 0)
        for model in ("virtio-net-pci", "e1000")
    }
    assert by_model["virtio-net-pci"]["csum"] is False
    assert "csum" not in by_model["e1000"]
