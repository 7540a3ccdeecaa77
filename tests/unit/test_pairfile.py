"""A pair file says what it says, and whoever wrote it wrong is told where, what and what next."""

from __future__ import annotations

import inspect
import json
import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BeforeValidator
from support.pairfiles import pair_text

from coloctl import pairfile
from coloctl.errors import SpecError
from coloctl.model.bounds import RATE_MAX, Between, between
from coloctl.model.pair import (
    NODES,
    CheckpointMode,
    CheckpointSpec,
    FencingMethod,
    MigrationTransport,
    PairSpec,
)
from coloctl.pairfile import checks, values
from coloctl.pairfile.qemuargs import listening_sockets
from coloctl.pairfile.tables import PairFile, Table

pytestmark = pytest.mark.unit

WEB = pair_text(
    guest='memory = "512MiB"\nkernel = "vmlinuz"',
    nic=True,
    hosts=("netns:host-a", "netns:host-b"),
    network="10.66.0",
)
BASE = Path("/srv/pairs")
SCHEMA = Path(__file__).parents[1] / "golden" / "pairfile" / "schema.json"


def complaint(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        pairfile.parse(text, BASE)
    return caught.value


def test_defaults_and_relative_paths() -> None:
    pair = pairfile.parse(WEB, BASE)
    assert pair.name == "web"
    assert (pair.guest.memory_mib, pair.guest.cpus, pair.guest.machine) == (512, 1, "pc")
    assert pair.guest.kernel == BASE / "vmlinuz"
    assert pair.disks[0].image == {"a": BASE / "a.qcow2", "b": BASE / "b.qcow2"}
    assert pair.nics[0].tap is not None
    assert pair.nics[0].tap.ifname == {"a": "tap-a", "b": "tap-b"}
    assert pair.nodes["b"].host == "netns:host-b"
    assert pair.replication.channel is MigrationTransport.FD
    assert pair.fencing.method is FencingMethod.KILL
    assert pair.policy.auto_failover and pair.policy.auto_reprotect
    assert pair.source is None


def test_everything_can_be_said() -> None:
    text = WEB.replace('kernel = "vmlinuz"', FULL_GUEST) + FULL_REST
    pair = pairfile.parse(text, BASE)
    assert pair.guest.memory_mib == 512
    assert pair.guest.initrd == Path("/boot/initrd")
    assert pair.guest.qemu == Path("qemu-system-x86_64")
    assert pair.guest.extra_args == ("-device", "virtio-rng-pci")
    assert pair.replication.channel is MigrationTransport.TCP
    assert pair.replication.multifd_channels == 4
    assert pair.checkpoint.delay_ms == 500
    assert pair.checkpoint.mode is CheckpointMode.ADAPTIVE
    assert (pair.checkpoint.min_delay_ms, pair.checkpoint.max_delay_ms) == (200, 5000)
    assert (pair.checkpoint.pause_share, pair.checkpoint.held_ms) == (0.1, 150)
    assert pair.policy.mirror_rate == 50 << 20
    assert not pair.checkpoint.guard_first_connection
    assert pair.fencing.command == ("fence_ipmilan", "--ip", "10.0.0.9")
    assert pair.fencing.timeout_s == 20
    assert pair.fencing.options == {
        "a": {"lanplus": "1", "plug": "1"},
        "b": {"lanplus": "0", "plug": "2"},
    }
    assert pair.arbiter.path == BASE / "web.claim"
    assert not pair.policy.auto_failover


FULL_GUEST = """\
cpus = 2
machine = "pc-i440fx-7.2"
accel = "tcg"
cpu = "qemu64,kvmclock=on"
kernel = "/boot/vmlinuz"
initrd = "/boot/./initrd"
append = "console=ttyS0"
extra_args = ["-device", "virtio-rng-pci"]
qemu = "qemu-system-x86_64"
"""
FULL_REST = """
[replication]
base_port = 9100
channel = "tcp"
multifd_channels = 4
[checkpoint]
delay_ms = 500
mode = "adaptive"
min_delay_ms = 200
max_delay_ms = 5000
pause_share = 0.1
held_ms = 150
compare_timeout_ms = 200
expired_scan_cycle_ms = 50
max_queue_size = 2048
guard_first_connection = false
[detection]
heartbeat_ms = 10
suspect_after_ms = 60
[fencing]
method = "command"
command = ["fence_ipmilan", "--ip", "10.0.0.9"]
timeout_s = 20
options = {lanplus = true}
a = {plug = 1}
b = {plug = "2", lanplus = false}
[arbiter]
kind = "file"
path = "web.claim"
[policy]
auto_failover = false
auto_reprotect = false
mirror_rate = "50 MiB"
"""

#: Tables that no pair file may have, and what is said of them as in `WRONG`.
WRONG_TABLES: list[tuple[str, str, str, str]] = [
    ('[policy]\nmirror_rate = "50MB"', "policy.mirror_rate", "not a unit", "KiB, MiB"),
    ('[policy]\nmirror_rate = "50"', "policy.mirror_rate", "without a unit", '"50MiB"'),
    ("[policy]\nmirror_rate = -1", "policy.mirror_rate", "no rate that QEMU takes", '"50MiB"'),
    ("[policy]\nmirror_rate = true", "policy.mirror_rate", "bytes per second", '"50MiB"'),
    ('[tls]\nmode = "yes"', "tls.mode", "", "auto"),
    (
        '[tls]\nmode = "on"\n[replication]\nmultifd_channels = 2',
        "replication.multifd_channels",
        "not been tried over TLS",
        "off",
    ),
    ('[tls]\ncert = "/c.pem"', "tls.cert", "needs the key", "tls.key"),
    ('[tls]\nkey = "/k.pem"', "tls.key", "needs the cert", "tls.cert"),
    ('[tls]\nnames = { a = "hv 1" }', "tls.names.a", "cannot be a name", "hv1"),
    ('[tls]\nnames = { c = "hv1" }', "tls.names.c", "", ""),
    ('[tls]\nfolders = { a = "" }', "tls.folders.a", "path of a file", ""),
    ('[verify]\nevery = "1 day"', "verify.every", "length of time", '"1d"'),
    ("[verify]\nevery = 86400", "verify.every", "length of time", '"1d"'),
    ("[verify]\nevery = false", "verify.every", "length of time", '"1d"'),
    ('[verify]\nevery = "5s"', "verify.every", "between a minute and a year", '"1d"'),
    ('[verify]\nevery = "999999999w"', "verify.every", "between a minute and a year", '"1d"'),
    ('[checkpoint]\nmode = "fast"', "checkpoint.mode", "not possible", "adaptive"),
    ('[checkpoint]\npause_share = "5%"', "checkpoint.pause_share", "must be a number", ""),
    ("[checkpoint]\npause_share = 0", "checkpoint.pause_share", "too small", ""),
    (
        "[checkpoint]\nmin_delay_ms = 500\nmax_delay_ms = 400",
        "checkpoint.min_delay_ms",
        "more than the 400 ms of checkpoint.max_delay_ms",
        "between the two",
    ),
]

WRONG: list[tuple[str, str, str, str, str]] = [
    *(
        ("[node.a]", f"{table}\n[node.a]", key, words, hint)
        for table, key, words, hint in WRONG_TABLES
    ),
    # old text, new text, key, words of the sentence, words of the hint
    ('memory = "512MiB"', 'memroy = "512MiB"', "guest.memroy", "no such key", "mean memory?"),
    ('memory = "512MiB"', "", "guest.memory", "missing", "512MiB"),
    ('memory = "512MiB"', "memory = 512", "guest.memory", "less than 1 MiB", "512MiB"),
    ('memory = "512MiB"', 'memory = "512"', "guest.memory", "without a unit", "512MiB"),
    ('memory = "512MiB"', 'memory = "512MB"', "guest.memory", "not a unit", "MiB"),
    ('memory = "512MiB"', 'memory = "1.5GiB"', "guest.memory", "not a size", "512MiB"),
    ('memory = "512MiB"', "memory = true", "guest.memory", "must be a size", "512MiB"),
    ('memory = "512MiB"', "memory = 1048577", "guest.memory", "whole number of MiB", "512MiB"),
    ("[guest]", '[guest]\ncpus = "2"', "guest.cpus", 'whole number, not "2"', ""),
    ("[guest]", "[guest]\ncpus = true", "guest.cpus", "whole number, not true", ""),
    ("[guest]", "[guest]\ncpus = 0", "guest.cpus", "too small: the least is 1", ""),
    ("[guest]", '[guest]\nmachine = "virt"', "guest.machine", "not a machine type", "q35"),
    ("[guest]", '[guest]\nmachine = "pc,accel=kvm"', "guest.machine", "alone", "guest.accel"),
    ("[guest]", '[guest]\naccel = "xen"', "guest.accel", "not possible here", "'kvm'"),
    ("[guest]", '[guest]\ncpu = "a b"', "guest.cpu", "not a CPU model", "-cpu"),
    ("[guest]", '[guest]\nextra_args = "-s"', "guest.extra_args", "must be a list", ""),
    ("[guest]", "[guest]\nextra_args = [1]", "guest.extra_args[0]", "text in quotes", ""),
    ('kernel = "vmlinuz"', 'append = "x"', "guest.append", "needs a kernel", "guest.kernel"),
    ('kernel = "vmlinuz"', 'kernel = ""', "guest.kernel", "path of a file", ""),
    ('name = "web"', "", "name", "missing", "name ="),
    ('name = "web"', 'name = "../web"', "name", "folder", "letters"),
    ('name = "web"', f'name = "{"w" * 33}"', "name", "33 characters", "sockets"),
    ('id = "disk0"', 'id = "0"', "disk[0].id", "does not accept", "letter"),
    ('b = "b.qcow2"', 'c = "b.qcow2"', "disk[0].image.c", "no such key", "are a, b"),
    ('b = "b.qcow2"', 'b = "./a.qcow2"', "disk[0].image.b", "already used", "own copy"),
    ('b = "b.qcow2"', 'b = "b.qcow2", z9 = 1', "disk[0].image.z9", "no such key", "are a, b"),
    ("52:54:00:12:34:56", "52:54:00:12:34", "nic[0].mac", "not a MAC", "52:54:00"),
    ("52:54:00:12:34:56", "53:54:00:12:34:56", "nic[0].mac", "multicast", "use 52:54"),
    ("52:54:00:12:34:56", "00:00:00:00:00:00", "nic[0].mac", "zero", ""),
    ('a = "tap-a"', 'a = "a-very-long-tap0"', "nic[0].tap.a", "Linux allows 15", "shorter"),
    ('a = "tap-a"', 'a = "tap a"', "nic[0].tap.a", "cannot name", "tap-a"),
    ("tap = {", "tab = {", "nic[0].tab", "no such key", "mean tap?"),
    ('"10.66.0.1"', '"10.66.0"', "node.a.address", "not an IP address", "10.66.0.1"),
    ('"10.66.0.1"', '"0.0.0.0"', "node.a.address", "not the address of one host", ""),
    ('"10.66.0.1"', '"10.66.0.2"', "node.b.address", "Node a has", "of its own"),
    ('"10.66.0.1"', '"fd00::1"', "node.b.address", "different IP versions", ""),
    ('"10.66.0.1"', '"127.0.0.1"', "node.a.address", "cannot be reached", "replication"),
    (
        "netns:host-a",
        "ssh://-oProxyCommand=x",
        "node.a.host",
        "does not name a machine",
        "ssh://root@hv2",
    ),
    ("netns:host-a", "tcp://hv2", "node.a.host", "not a host", "ssh://NAME"),
    ("netns:host-a", "netns:", "node.a.host", "not a host", "netns:NAME"),
    ("[node.b]", "[node.c]", "node.c", "no such key", "are a, b"),
    ("[node.a]", "[replication]\nbase_port = 80\n[node.a]", "replication.base_port", "small", ""),
    ("[node.a]", '[replication]\nchannel="unix"\n[node.a]', "replication.channel", "not", "'fd'"),
    (
        "[node.a]",
        "[detection]\nheartbeat_ms = 100\n[node.a]",
        "detection.suspect_after_ms",
        "two",
        "",
    ),
    (
        "[node.a]",
        '[fencing]\nmethod = "command"\n[node.a]',
        "fencing.command",
        "no command",
        "fence",
    ),
    ("[node.a]", '[fencing]\ncommand = ["x"]\n[node.a]', "fencing.command", "never run", "method"),
    ("[node.a]", '[fencing.a]\nplug = "1"\n[node.a]', "fencing", "no agent", "command"),
    ("[node.a]", '[fencing.a]\naction = "on"\n[node.a]', "fencing.a", "coloctl sends", "remove"),
    ("[node.a]", '[fencing.options]\nIP = "x"\n[node.a]', "fencing.options", "IP", "metadata"),
    ("[node.a]", "[fencing.b]\nplug = 1.5\n[node.a]", "fencing.b.plug", "whole number", ""),
    ("[node.a]", '[fencing.b]\nplug = "1\\n2"\n[node.a]', "fencing.b.plug", "one line", ""),
    ("[node.a]", '[arbiter]\nkind = "etcd"\n[node.a]', "arbiter.kind", "not possible", "'file'"),
]


@pytest.mark.parametrize(("old", "new", "key", "words", "hint"), WRONG)
def test_complaint_names_the_key(old: str, new: str, key: str, words: str, hint: str) -> None:
    assert old in WEB
    error = complaint(WEB.replace(old, new, 1))
    assert error.key == key
    assert words in error.sentence
    assert hint in (error.hint or "")
    assert error.exit_code == 2
    assert error.sentence.rstrip(")").endswith(".") and error.sentence[0] not in "abcdefghijkl"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-qmp", "stdio"], "-qmp cannot"),
        (["--qmp", "stdio"], "-qmp cannot"),
        (["-monitor", "stdio"], "-monitor cannot"),
        (["-device", "virtio-rng-pci", "-incoming", "defer"], "-incoming cannot"),
        (["-no-shutdown"], "-no-shutdown cannot"),
        (["-action", "panic=pause"], "-action cannot"),
        (["-daemonize"], "watches the process"),
        (["-drive", "file=x"], "not be replicated"),
        (["-netdev", "user,id=x"], "not be compared"),
        (["-m", "1G"], "key of its own"),
        (["-device virtio-rng-pci"], "in one word"),
        (["-D", "a\nb"], "line break"),
    ],
)
def test_extra_args_cannot_take_qemu_away(args: list[str], words: str) -> None:
    error = complaint(WEB.replace("[guest]", f"[guest]\nextra_args = {args}".replace("'", '"'), 1))
    assert error.key == "guest.extra_args"
    assert words in error.sentence


def again(table: str, **changes: str) -> str:
    """WEB with a second [[table]] like the first, but for ``changes``."""
    begin = WEB.index(f"[[{table}]]")
    block = WEB[begin : WEB.index("\n\n", begin)]
    for old, new in changes.items():
        block = block.replace(old, new)
    return WEB + "\n" + block


def test_duplicates() -> None:
    two_disks = again("disk", **{"a.qcow2": "c.qcow2", "b.qcow2": "d.qcow2"})
    assert complaint(two_disks).key == "disk[1].id"
    two_nics = again("nic", hn0="hn1", tap="tip")
    assert complaint(two_nics.replace("tip =", "tap =")).key == "nic[1].mac"
    other_mac = again("nic", hn0="hn1", **{"34:56": "34:57"})
    assert complaint(other_mac).key == "nic[1].tap.a"
    assert "nic[0].tap.a" in complaint(other_mac).sentence


def test_the_same_tap_name_in_two_hosts_is_two_taps() -> None:
    pair = pairfile.parse(WEB.replace('"tap-b"', '"tap-a"'), BASE)
    assert pair.nics[0].tap is not None
    on_one_host = WEB.replace('"tap-b"', '"tap-a"').replace("host-b", "host-a")
    assert complaint(on_one_host).key == "nic[0].tap.b"


TAPS = 'tap = { a = "tap-a", b = "tap-b", bridge = "br0" }'


def test_a_bridge_alone_names_a_tap_of_coloctls_own_on_each_node() -> None:
    assert TAPS in WEB
    (nic,) = pairfile.parse(WEB.replace(TAPS, 'bridge = "br7"'), BASE).nics
    assert nic.tap is not None and nic.tap.made and nic.tap.bridge == "br7"
    names = set(nic.tap.ifname.values())
    assert len(names) == 2 and all(len(name) < 16 and name[:3] == "ct-" for name in names)
    assert pairfile.parse(WEB.replace(TAPS, 'bridge = "br7"'), BASE).nics == (nic,)
    other = WEB.replace(TAPS, 'bridge = "br7"').replace('name = "web"', 'name = "db"')
    (elsewhere,) = pairfile.parse(other, BASE).nics
    assert elsewhere.tap is not None and names.isdisjoint(elsewhere.tap.ifname.values())


@pytest.mark.parametrize(
    ("written", "word"), [("", "neither"), (f'{TAPS}\nbridge = "br0"', "both")]
)
def test_a_network_card_has_a_bridge_or_taps(written: str, word: str) -> None:
    error = complaint(WEB.replace(TAPS, written))
    assert error.key == "nic[0].bridge" and word in error.sentence
    assert error.hint is not None and 'bridge = "br0"' in error.hint


def test_no_wire_of_one_host_can_be_encrypted() -> None:
    both = WEB.replace("host-b", "host-a").replace("[node.a]", '[tls]\nmode = "on"\n[node.a]', 1)
    error = complaint(both)
    assert error.key == "tls.mode"
    assert "unix sockets" in error.sentence
    assert not pairfile.parse(both.replace('"on"', '"auto"'), BASE).encrypted()


def test_what_is_said_of_encryption_reaches_the_pair() -> None:
    tls = """[tls]
mode = "on"
folder = "tls"
folders = { b = "/srv/b" }
key = "/srv/key.pem"
cert = "/srv/cert.pem"
names = { a = "hv1" }
[node.a]"""
    pair = pairfile.parse(WEB.replace("[node.a]", tls, 1), BASE)
    assert pair.encrypted()
    assert pair.tls.names == {"a": "hv1"}
    own = (Path("/srv/cert.pem"), Path("/srv/key.pem"))
    assert pair.tls.files("a", Path("/x")) == (BASE / "tls/ca-cert.pem", *own)
    assert pair.tls.files("b", Path("/x")) == (Path("/srv/b/ca-cert.pem"), *own)


def test_neither_kernel_nor_disk() -> None:
    begin, end = WEB.index("[[disk]]"), WEB.index("[[nic]]")
    text = (WEB[:begin] + WEB[end:]).replace('kernel = "vmlinuz"', "")
    assert complaint(text).key == "guest.kernel"


def test_more_network_cards_than_ports() -> None:
    text = WEB
    for n in range(1, 11):
        text += f"""
[[nic]]
id = "hn{n}"
mac = "52:54:00:12:35:{n:02x}"
tap = {{ a = "ta{n}", b = "tb{n}" }}
"""
    assert complaint(text).key == "nic"


def test_all_problems_and_the_count_of_those_untold() -> None:
    text = WEB.replace('"52:54:00:12:34:56"', "1").replace("memory", "memroy")
    assert [problem.key for problem in pairfile.problems(text, BASE)] == [
        "guest.memroy",
        "nic[0].mac",
    ]
    assert "(1 more problem found.)" in complaint(text).sentence
    both = text.replace('"hn0"', '"0"')
    assert "(2 more problems found.)" in complaint(both).sentence
    assert pairfile.problems(WEB, BASE) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('name = "web"\nmemory 5\n', "line 2, column 8"),
        ("name = ", "line 1, column 8"),
        ("[node.a]\n[node.a]\n", "line 2, column 8"),
    ],
)
def test_syntax_error_has_line_and_column(text: str, place: str) -> None:
    error = complaint(text)
    assert place in error.sentence
    assert "that line reads" in (error.hint or "")


def test_load_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text(WEB)
    pair = pairfile.load(file)
    assert pair.source == file
    assert pair.disks[0].image["a"] == tmp_path / "a.qcow2"
    file.write_text("name =")
    with pytest.raises(SpecError, match=r"web\.toml is not valid TOML at line 1"):
        pairfile.load(file)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "There is no pair file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"name = '\xff'"), "not UTF-8"),
        (lambda path: path.write_bytes(b"#" * (2 << 20)), "too large"),
    ],
)
def test_unreadable_pair_file(make: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    make(tmp_path / "web.toml")
    with pytest.raises(SpecError, match=words):
        pairfile.load(tmp_path / "web.toml")


def test_check_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCTL_STATE_DIR", "/run/x")
    pair = pairfile.parse(WEB, tmp_path)
    keys = [problem.key for problem in pairfile.file_problems(pair)]
    assert keys == ["guest.kernel", "disk[0].image.a", "disk[0].image.b"]
    with pytest.raises(SpecError, match="2 more problems") as caught:
        pairfile.check_files(pair)
    assert "pair file's folder" in (caught.value.hint or "")
    for name in ("vmlinuz", "a.qcow2"):
        (tmp_path / name).touch()
    (tmp_path / "b.qcow2").mkdir()
    with pytest.raises(SpecError, match="is a folder"):
        pairfile.check_files(pair)
    (tmp_path / "b.qcow2").rmdir()
    os.link(tmp_path / "a.qcow2", tmp_path / "b.qcow2")
    with pytest.raises(SpecError, match="two names of one file"):
        pairfile.check_files(pair)
    (tmp_path / "b.qcow2").unlink()
    (tmp_path / "b.qcow2").touch()
    pairfile.check_files(pair)
    monkeypatch.setenv("COLOCTL_STATE_DIR", "/run/" + "x" * 90)
    with pytest.raises(SpecError, match="can have 107"):
        pairfile.check_files(pair)


def test_odd_paths_are_complaints_too(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    text = (
        WEB.replace("vmlinuz", "v" * 300).replace("a.qcow2", "loop").replace("b.q", "~nobody9/b.q")
    )
    pair = pairfile.parse(text, tmp_path)
    sentences = [problem.sentence for problem in pairfile.file_problems(pair)]
    assert len(sentences) == 3
    assert "File name too long" in sentences[0]


def test_qemu_by_path_must_be_executable(tmp_path: Path) -> None:
    for name in ("vmlinuz", "a.qcow2", "b.qcow2"):
        (tmp_path / name).touch()
    pair = pairfile.parse(WEB.replace("[guest]", '[guest]\nqemu = "./qemu"'), tmp_path)
    assert pair.guest.qemu == tmp_path / "qemu"
    assert [problem.key for problem in pairfile.file_problems(pair)] == ["guest.qemu"]


def test_json_schema_explains_every_key() -> None:
    schema = pairfile.json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) >= {"name", "guest", "disk", "nic", "node"}
    for table, entry in schema["$defs"].items():
        assert entry["description"], table
        assert entry["additionalProperties"] is False
        for key, field in entry["properties"].items():
            assert "description" in field or "$ref" in field, f"{table}.{key}"


def test_json_schema_is_the_one_that_editors_have() -> None:
    """A key, a default, a bound or a type that changes shows in the difference of this file.

    Written by ``python -c "import json; from coloctl import pairfile;
    print(json.dumps(pairfile.json_schema(), indent=1, sort_keys=True))"``.
    """
    assert pairfile.json_schema() == json.loads(SCHEMA.read_text())


def test_every_table_reaches_the_pair() -> None:
    """A key that is accepted and then dropped would be a lie."""
    model = pairfile.parse(WEB, BASE)
    for name in ("checkpoint", "detection", "policy", "replication", "fencing", "arbiter"):
        table = PairFile.model_fields[name].annotation
        assert table is not None
        # fencing.a and fencing.b are in its options, by node
        assert set(table.model_fields) - {"a", "b"} == set(vars(getattr(model, name))), name
    assert not get_args(PairFile.model_fields["guest"].annotation)


def bounded() -> Iterator[tuple[str, str, Between]]:
    """Table, key and bounds of each bounded field whose key holds a plain number."""
    for part in fields(PairSpec):
        owner = get_type_hints(PairSpec)[part.name]
        hints = get_type_hints(owner, include_extras=True) if is_dataclass(owner) else {}
        for name, hint in hints.items():
            limits = between(hint)
            if limits and limits.le < RATE_MAX:  # a rate is written with its unit
                yield part.name, name, limits


@pytest.mark.parametrize(("table", "key", "limits"), list(bounded()))
def test_a_number_beyond_its_bounds_is_refused_with_the_bound(
    table: str, key: str, limits: Between
) -> None:
    head = f"\n[{table}]\n" if table != "guest" else "[guest]\n"
    for value, bound in ((limits.ge - 1, limits.ge), (limits.le + 1, limits.le)):
        new = f"{head}{key} = {value}\n"
        said = complaint(WEB.replace("[guest]\n", new) if table == "guest" else WEB + new)
        assert said.key == f"{table}.{key}"
        assert said.sentence.startswith(f"{value} is too ")
        assert float(said.sentence.rpartition(" ")[2].rstrip(".")) == bound


def test_every_bounded_number_is_tried() -> None:
    tried = {(table, key) for table, key, _ in bounded()}
    assert tried >= {("guest", "cpus"), ("checkpoint", "pause_share"), ("fencing", "timeout_s")}
    assert len(tried) >= 14


@pytest.mark.parametrize(("said", "wanted"), [("mirror_rate", "policy"), ("rate", "verify")])
def test_a_rate_beyond_what_qemu_takes_is_refused(said: str, wanted: str) -> None:
    least_too_much = f'"{(RATE_MAX + 1) >> 40}TiB"'
    error = complaint(f"{WEB}\n[{wanted}]\n{said} = {least_too_much}\n")
    assert error.key == f"{wanted}.{said}"
    assert error.sentence == f"{RATE_MAX + 1} bytes per second are no rate that QEMU takes."


def test_a_field_is_a_key_with_the_text_that_stands_at_it() -> None:
    keys = pairfile.json_schema()["$defs"]["CheckpointTable"]["properties"]
    assert set(keys) == {one.name for one in fields(CheckpointSpec)}
    assert keys["max_queue_size"]["description"] == (
        "Packets that may wait per connection; further ones are dropped."
    )
    assert pairfile.json_schema()["$defs"]["CheckpointTable"]["description"] == (
        CheckpointSpec.__doc__
    )


@settings(deadline=None)
@given(mib=st.integers(1, 1 << 24), space=st.sampled_from(["", " ", "  "]))
def test_sizes_round_trip(mib: int, space: str) -> None:
    assert values.memory_mib(f"{mib}{space}MiB") == mib
    assert values.memory_mib(mib * values.MIB) == mib
    assert values.memory_mib(f"{mib * 1024}KiB") == mib
    assert values.memory_mib(f"{mib}GiB") == mib * 1024


@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_is_a_pair_or_a_sentence(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        pairfile.parse(text, BASE)
    assert caught.value.sentence


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSONISH = st.recursive(
    SCALARS.filter(lambda value: value is not None),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_accepted_or_named(data: st.DataObject) -> None:
    """Whatever stands at a key, the complaint is a `SpecError`, never another exception."""
    document = tomllib.loads(WEB)
    table, key = data.draw(
        st.sampled_from(
            [
                (document, "name"), (document, "guest"), (document, "disk"), (document, "node"),
                (document["guest"], "memory"), (document["guest"], "extra_args"),
                (document["disk"][0], "image"), (document["nic"][0], "mac"),
                (document["nic"][0], "tap"), (document["node"]["a"], "address"),
                (document["node"]["a"], "host"), (document, "policy"), (document, "checkpoint"),
            ]
        )
    )  # fmt: skip
    table[key] = data.draw(JSONISH)
    _, problems = pairfile.examine(document, BASE)
    for problem in problems:
        assert problem.sentence and not problem.sentence.startswith("Value error")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [('"1d"', 86400.0), ('"12 h"', 43200.0), ('"90s"', 90.0), ('"1w"', 604800.0), ("0", 0.0)],
)
def test_how_often_disks_are_compared(written: str, seconds: float) -> None:
    assert pairfile.parse(f"{WEB}\n[verify]\nevery = {written}\n", BASE).verify.every_s == seconds


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.toml", tmp_path / "marked.toml"
    plain.write_text(WEB)
    marked.write_bytes(b"\xef\xbb\xbf" + WEB.encode())
    assert pairfile.load(marked).name == pairfile.load(plain).name


@pytest.mark.parametrize("address", ["fe80::1", "fe80::1%eth0"])
def test_an_address_that_nothing_can_listen_at_is_refused(tmp_path: Path, address: str) -> None:
    text = WEB.replace('address = "10.66.0.1"', f'address = "{address}"')
    assert text != WEB
    (problem, *_) = pairfile.problems(text, tmp_path)
    assert problem.key == "node.a.address" and "link-local" in problem.sentence


@pytest.mark.parametrize(
    "extra",
    [
        ["-vnc", "unix:/run/v"],
        ["-serial", "unix:/run/v,server=on,wait=off"],
        ["-chardev", "socket,id=x,path=/run/v,server=on,wait=off"],
        ["-spice", "unix=on,addr=/run/v,disable-ticketing=on"],
    ],
)
def test_a_socket_that_both_qemus_would_open_is_refused(tmp_path: Path, extra: list[str]) -> None:
    words = ", ".join(f'"{word}"' for word in extra)
    text = WEB.replace("[guest]", f"[guest]\nextra_args = [{words}]")
    assert text != WEB
    (problem, *_) = pairfile.problems(text, tmp_path)
    assert problem.key == "guest.extra_args" and "/run/v" in problem.sentence


def test_a_socket_that_qemu_only_connects_to_may_stay() -> None:
    args = ["-chardev", "socket,id=x,path=/run/v,server=off", "-chardev", "pty,id=y"]
    assert listening_sockets(args) == []


def test_every_validator_of_a_key_is_a_plain_function() -> None:
    """From Python 3.12 on pydantic does not understand the signature of an enum."""
    found = [
        one.func
        for table in Table.__subclasses__()
        for info in table.model_fields.values()
        for one in info.metadata
        if isinstance(one, AfterValidator | BeforeValidator)
    ]
    assert len(found) > 10
    assert all(map(inspect.isfunction, found))


def test_a_node_has_paths_of_its_own() -> None:
    own = '[node.b]\nqemu = "qemu-b"\nkernel = "/srv/b/vmlinuz"\ninitrd = "/srv/b/initrd"'
    text = WEB.replace("[node.b]", own).replace("[guest]", '[guest]\ninitrd = "/boot/initrd"')
    pair = pairfile.parse(text, BASE)
    assert pair.guest_on("a") == pair.guest
    there = pair.guest_on("b")
    assert (there.qemu, there.kernel) == (Path("qemu-b"), Path("/srv/b/vmlinuz"))
    assert there.initrd == Path("/srv/b/initrd")
    assert replace(there, qemu=None, kernel=None, initrd=None) == replace(
        pair.guest, kernel=None, initrd=None
    )


@pytest.mark.parametrize(
    ("guest", "node", "key", "sentence"),
    [
        ("", 'kernel = "/k"', "node.b.kernel", "Node a has no kernel"),
        ('kernel = "/k"', 'initrd = "/i"', "node.b.initrd", "Node a has no initrd"),
        ("", 'initrd = "/i"', "node.b.initrd", "needs a kernel"),
    ],
)
def test_both_nodes_boot_the_same_guest(guest: str, node: str, key: str, sentence: str) -> None:
    text = WEB.replace('kernel = "vmlinuz"', guest).replace("[node.b]", f"[node.b]\n{node}")
    error = complaint(text)
    assert error.key == key
    assert sentence in error.sentence


def test_both_nodes_may_have_a_kernel_that_the_guest_table_does_not_name() -> None:
    text = WEB.replace('kernel = "vmlinuz"', 'append = "quiet"')
    for node in "ab":
        text = text.replace(f"[node.{node}]", f'[node.{node}]\nkernel = "/{node}/vmlinuz"')
    pair = pairfile.parse(text, BASE)
    assert [str(pair.guest_on(node).kernel) for node in NODES] == ["/a/vmlinuz", "/b/vmlinuz"]


def test_the_files_of_each_node_are_looked_for_by_its_own_key(tmp_path: Path) -> None:
    for name in ("vmlinuz", "a.qcow2", "b.qcow2"):
        (tmp_path / name).touch()
    text = WEB.replace("[node.b]", '[node.b]\nkernel = "no-kernel"\nqemu = "./vmlinuz"')
    found = pairfile.file_problems(pairfile.parse(text, tmp_path))
    assert {problem.key: problem.sentence for problem in found} == {
        "node.b.kernel": f"There is no file {tmp_path}/no-kernel.",
        "node.b.qemu": f"{tmp_path}/vmlinuz cannot be executed by you.",
    }


def on_another_machine(pair: PairSpec) -> PairSpec:
    return replace(pair, nodes={**pair.nodes, "b": replace(pair.nodes["b"], host="ssh://hv2")})


def test_the_files_of_another_machine_are_not_looked_for_here(tmp_path: Path) -> None:
    text = WEB.replace("[node.b]", '[node.b]\nkernel = "/nowhere"')
    pair = on_another_machine(pairfile.parse(text, tmp_path))
    keys = [problem.key for problem in pairfile.file_problems(pair)]
    assert keys == ["guest.kernel", "disk[0].image.a"]


def test_a_relative_path_begins_at_no_folder_of_another_machine() -> None:
    text = WEB.replace("[node.b]", '[node.b]\nqemu = "qemu-b"\ninitrd = "/i"') + (
        '[replication]\noverlay_dir = "over"\n'
    )
    text = text.replace("[guest]", '[guest]\ninitrd = "initrd"\nqemu = "./qemu"')
    document = tomllib.loads(text)
    pair = pairfile.parse(text, BASE)
    assert list(checks.relative_paths(document, pair)) == []
    found = list(checks.relative_paths(document, on_another_machine(pair)))
    assert [problem.key for problem in found] == [
        "guest.kernel",
        "disk[0].image.b",
        "replication.overlay_dir",
    ]
    assert 'Node b is on ssh://hv2, where "vmlinuz" begins' in found[0].sentence


def test_two_machines_may_have_an_image_at_one_path() -> None:
    text = WEB.replace('"a.qcow2"', '"/srv/web.qcow2"').replace('"b.qcow2"', '"/srv/web.qcow2"')
    assert complaint(text).key == "disk[0].image.b"
    pair = on_another_machine(pairfile.parse(WEB, BASE))
    disk = replace(pair.disks[0], image=dict.fromkeys(NODES, Path("/srv/web.qcow2")))
    assert list(checks.contradictions(replace(pair, disks=(disk,)))) == []
