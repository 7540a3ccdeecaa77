"""The command line of each role, against files that people can read.

``COLOCTL_GOLDEN=write pytest tests/unit/machine`` writes them anew; read the difference before it
is committed.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from machine_pairs import disk, make_pair, nic

from coloctl.errors import PreconditionFailed
from coloctl.machine import blockdev, cmdline
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.launch import Account, Launch, TapEnd
from coloctl.model.pair import NodeName, PairSpec
from coloctl.model.tls import TlsIds, TlsMode, TlsSpec, TlsWire

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[2] / "golden" / "argv"

DIALECTS = {
    "reconnect": Dialect("7.2.22", ReturnPath.FORBIDDEN, "reconnect"),
    "reconnect-ms": Dialect(
        "11.1.3", ReturnPath.REQUIRED, "reconnect-ms", switchover_bandwidth=True
    ),
}
NEW = DIALECTS["reconnect-ms"]
RUNDIR = Path("/run/coloctl/web")
BINARY = Path("/usr/bin/qemu-system-x86_64")


def primary(pair: PairSpec, *, accel: str = "kvm", paused: bool = False) -> Launch:
    return cmdline.primary(
        pair, "a", NEW, binary=BINARY, accel=accel, rundir=RUNDIR / "a", paused=paused
    )


def secondary(pair: PairSpec, dialect: Dialect = NEW, node: NodeName = "b") -> Launch:
    rundir = RUNDIR / node
    return cmdline.secondary(
        pair,
        node,
        dialect,
        binary=BINARY,
        accel="kvm",
        rundir=rundir,
        overlays=blockdev.overlays(pair, node),
        close_marker=blockdev.close_marker(pair, node) if pair.disks else None,
    )


def check(name: str, launch: Launch) -> None:
    """``launch`` is what the golden file says, line by line."""
    path = GOLDEN / f"{name}.txt"
    text = "\n".join(launch.lines()) + "\n"
    if os.environ.get("COLOCTL_GOLDEN") == "write":
        path.write_text(text)
    assert text.splitlines() == path.read_text().splitlines()


def values(launch: Launch, option: str) -> list[str]:
    return [
        after for word, after in zip(launch.argv, launch.argv[1:], strict=False) if word == option
    ]


def documents(launch: Launch, option: str) -> list[dict[str, object]]:
    return [json.loads(value) for value in values(launch, option)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_documented_pair(dialect: str) -> None:
    pair = make_pair(kernel=Path("/srv/vmlinuz"), initrd=Path("/srv/initrd"), append="quiet a=b")
    check("primary", primary(pair))
    check(f"secondary-{dialect}", secondary(pair, DIALECTS[dialect]))


def test_two_disks_and_two_nics_on_q35() -> None:
    pair = make_pair(
        disks=(disk(model="scsi-hd"), disk(1, format="raw")),
        nics=(nic(), nic(1, model="e1000")),
        machine="q35",
        cpus=2,
        cpu="host",
    )
    check("primary-q35-two-of-each", primary(pair))
    check("secondary-q35-two-of-each", secondary(pair))


def test_firmware_alone_without_taps() -> None:
    pair = make_pair(nics=(nic(tap=None),), memory_mib=64)
    check("primary-firmware-only", primary(pair, accel="tcg", paused=True))
    check("secondary-firmware-only", secondary(pair))


def test_a_pair_without_disks_and_nics() -> None:
    """Nothing but the device that tells of a panic, which some QEMUs have not got."""
    pair = make_pair(disks=(), nics=())
    for launch in (primary(pair), secondary(pair)):
        for option in ("-netdev", "-object", "-blockdev"):
            assert values(launch, option) == []
        assert [device["driver"] for device in documents(launch, "-device")] == ["pvpanic-pci"]
    assert values(secondary(pair, replace(NEW, pvpanic=False)), "-device") == []


def test_an_encrypted_pair() -> None:
    """Each node has credentials for both ends; the loops inside the primary have none."""
    pair = replace(make_pair(nics=(nic(), nic(1))), tls=TlsSpec(TlsMode.ON))
    ids = TlsIds("1f2e3d4c")
    tls = {
        node: TlsWire(ids, peer, RUNDIR / node / "tls-1f2e3d4c", ("CN=hv1", "CN=hv2"))
        for node, peer in (("a", "hv2"), ("b", "hv1"))
    }
    one = cmdline.primary(
        pair, "a", NEW, binary=BINARY, accel="kvm", rundir=RUNDIR / "a", paused=False, tls=tls["a"]
    )
    two = cmdline.secondary(
        pair,
        "b",
        NEW,
        binary=BINARY,
        accel="kvm",
        rundir=RUNDIR / "b",
        overlays=blockdev.overlays(pair, "b"),
        tls=tls["b"],
    )
    check("primary-tls", one)
    check("secondary-tls", two)
    for launch in (one, two):
        for option in values(launch, "-chardev"):
            assert ("host=" in option) == ("tls-creds=" in option)
    for build in (primary, secondary):  # nothing is opened in plain where the caller forgot it
        with pytest.raises(KeyError):
            build(pair)


def test_a_port_for_the_guest_agent() -> None:
    """The same device on both sides, behind a socket of each side's own."""
    pair = make_pair(agent=True)
    check("primary-agent", primary(pair))
    both = primary(pair), secondary(pair)
    assert len({str(documents(launch, "-device")) for launch in both}) == 1
    (a, b) = ([v for v in values(launch, "-chardev") if "id=agent0" in v] for launch in both)
    assert a != b


def test_the_primary_speaks_no_dialect() -> None:
    """Only clients connect again, and the primary's clients never leave their QEMU."""
    lines = [
        cmdline.primary(
            make_pair(), "a", dialect, binary=BINARY, accel="kvm", rundir=RUNDIR, paused=False
        )
        for dialect in DIALECTS.values()
    ]
    assert lines[0] == lines[1]


def test_both_sides_are_the_same_machine() -> None:
    pair = make_pair(
        disks=(disk(), disk(1)),
        nics=(nic(), nic(1)),
        kernel=Path("/srv/vmlinuz"),
        extra_args=("-device", "virtio-balloon-pci"),
    )
    one, two = primary(pair), secondary(pair)
    for option in ("-machine", "-cpu", "-m", "-smp", "-accel", "-device", "-kernel", "-vga"):
        assert values(one, option) == values(two, option)
    switched = secondary(pair, node="a")
    assert values(switched, "-device") == values(two, "-device")


def test_the_guest_s_own_devices_come_before_extra_ones() -> None:
    launch = primary(make_pair(extra_args=("-device", "virtio-balloon-pci")))
    assert launch.argv[-2:] == ("-device", "virtio-balloon-pci")


def test_paused_is_the_only_difference_it_makes() -> None:
    running, paused = primary(make_pair()), primary(make_pair(), paused=True)
    assert [word for word in paused.argv if word != "-S"] == list(running.argv)
    assert "-S" in paused.argv


def test_an_unprotected_guest_is_not_silenced() -> None:
    filters = [o for o in documents(primary(make_pair()), "-object") if "netdev" in o]
    assert {o["id"]: o["status"] for o in filters} == {
        "m0": "off",
        "redire0": "off",
        "redire1": "off",
    }


def test_monitors_are_two_inherited_listeners() -> None:
    launch = primary(make_pair())
    assert launch.sockets == {
        "qmp": RUNDIR / "a" / "qmp.sock",
        "rescue": RUNDIR / "a" / "rescue.sock",
    }
    for name in launch.sockets:
        assert sum(f"{{fd:{name}}}" in word for word in launch.argv) == 1
    assert {launch.argv[i] for i in launch.numbered} == {
        word for word in launch.argv if "{fd:" in word
    }
    assert values(launch, "-qmp") == ["chardev:qmp0", "chardev:rescue0"]


def test_what_a_pair_file_has_in_that_form_stays_as_it_is() -> None:
    strange = make_pair(
        machine="pc,x={fd:qmp}", append="quiet {fd:qmp}", extra_args=("-foo", "{fd:rescue}")
    )
    strange = replace(strange, guest=replace(strange.guest, kernel=Path("/boot/{fd:qmp}")))
    launch = primary(strange)
    theirs = [
        i for i, word in enumerate(launch.argv) if "{fd:" in word and i not in launch.numbered
    ]
    assert [launch.argv[i] for i in theirs] == [
        "pc,x={fd:qmp}", "/boot/{fd:qmp}", "quiet {fd:qmp}", "{fd:rescue}",
    ]  # fmt: skip
    assert len(launch.numbered) == 2


def test_every_server_stands_before_its_client() -> None:
    launch = primary(make_pair(nics=(nic(), nic(1))))
    seen: set[str] = set()
    for option in values(launch, "-chardev"):
        fields = dict(item.split("=", 1) for item in option.split(",") if "=" in item)
        if not option.startswith("socket") or "path" not in fields:
            continue
        if fields.get("server") == "on":
            seen.add(fields["path"])
        else:
            assert fields["path"] in seen


def test_filters_follow_the_netdev_that_they_sit_on() -> None:
    for launch in (primary(make_pair()), secondary(make_pair())):
        assert launch.argv.index("-netdev") < launch.argv.index("-object")


def test_names_with_commas_stay_whole() -> None:
    launch = primary(replace(make_pair(), name="we,b"))
    assert values(launch, "-name") == ["guest=we,,b,process=we,,b-a"]


def test_a_run_directory_too_deep_for_sockets_is_refused() -> None:
    with pytest.raises(PreconditionFailed, match="unix socket"):
        cmdline.primary(
            make_pair(),
            "a",
            NEW,
            binary=BINARY,
            accel="tcg",
            rundir=Path("/" + "x" * 110),
            paused=False,
        )


def test_a_node_boots_the_kernel_of_its_own_machine() -> None:
    pair = make_pair(kernel=Path("/srv/vmlinuz"), initrd=Path("/srv/initrd"), append="quiet a=b")
    own = replace(pair.nodes["b"], kernel=Path("/b/vmlinuz"), initrd=Path("/b/initrd"))
    there = replace(pair, nodes={**pair.nodes, "b": own})
    assert primary(there) == primary(pair)
    words = ["/srv/vmlinuz", "/srv/initrd"], ["/b/vmlinuz", "/b/initrd"]
    moved = dict(zip(*words, strict=True))
    assert secondary(there).argv == tuple(moved.get(word, word) for word in secondary(pair).argv)
    assert values(secondary(there), "-kernel") == ["/b/vmlinuz"]


def test_a_qemu_of_another_user_has_a_sandbox_and_gets_its_taps_opened() -> None:
    pair, account = make_pair(), Account("coloctl-qemu", 998, 997)
    own = primary(pair)
    other = cmdline.primary(
        pair,
        "a",
        NEW,
        binary=BINARY,
        accel="kvm",
        rundir=RUNDIR / "a",
        paused=False,
        plugin=Path("/cache/fresh-code.so"),
        account=account,
    )
    assert (own.account, own.owned, own.reads, own.taps) == (None, (), (), {})
    assert not values(own, "-sandbox")
    assert values(other, "-sandbox") == [cmdline.SANDBOX]
    assert other.account == account
    assert other.owned == tuple(one.image["a"] for one in pair.disks)
    assert {BINARY, Path("/cache/fresh-code.so")} <= set(other.reads)
    first = pair.nics[0]
    assert first.tap is not None
    assert other.taps[f"tap-{first.id}"] == TapEnd(first.tap.ifname["a"], vnet_header=True)
    nets = [json.loads(word) for word in values(other, "-netdev")]
    assert nets[0] == {
        "type": "tap",
        "id": first.id,
        "fd": f"{{fd:tap-{first.id}}}",
        "vhost": False,
    }
    assert other.numbered is not None
    marked = {i for i, word in enumerate(other.argv) if "{fd:" in word}
    assert marked <= other.numbered
    assert {other.argv[i - 1] for i in other.numbered} == {"-chardev", "-netdev"}


def test_a_secondary_of_another_user_owns_all_that_it_writes_to() -> None:
    pair = make_pair()
    over = blockdev.overlays(pair, "b")
    marker = blockdev.close_marker(pair, "b")
    launch = cmdline.secondary(
        pair,
        "b",
        NEW,
        binary=BINARY,
        accel="kvm",
        rundir=RUNDIR / "b",
        overlays=over,
        close_marker=marker,
        account=Account("61234", 61234, 61234),
    )
    images = {disk.image["b"] for disk in pair.disks}
    written = {path for one in over for path in (one.active, one.hidden)}
    assert set(launch.owned) == images | written | {marker, blockdev.merge_log(marker)}
