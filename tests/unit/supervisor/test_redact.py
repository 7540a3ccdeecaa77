"""Secrets are taken out wherever they stand, and nothing else is."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from coloctl.supervisor import redact
from coloctl.supervisor.redact import REDACTED

pytestmark = pytest.mark.unit

ARGV = Path(__file__).parents[2] / "golden" / "argv"

#: Unlike any word of a command, so that finding it anywhere is a leak.
SECRET = "hunter2,,x9"


@pytest.mark.parametrize(
    "text",
    [
        f"secret,id=sec0,data={SECRET},format=raw",
        f"qom-type=secret,data={SECRET},id=sec0",
        f'{{"qom-type": "secret", "id": "sec0", "data": "{SECRET}"}}',
        f'error: login failed: "passwd": "{SECRET}"',
        "passphrase='hunter2 x9'",
        "console=ttyS0 luks_password=hunter2 quiet",
        "rbd://admin:hunter2@ceph/image",
        "set_password vnc hunter2 keep",
        "change vnc password hunter2",
        "the agent was called with ipmi-password=hunter2;action=off",
        "API_KEY: hunter2",
        "DB_PASS=hunter2",
        "export AWS_SECRET_ACCESS_KEY=hunter2",
        'GITHUB_TOKEN="hunter2"',
        "wpa_psk=hunter2",
        "  psk: hunter2",
        "luks-key=hunter2",
        "chap_secret = hunter2",
        "Authorization: Bearer hunter2",
        "pwd=hunter2;",
        'said {"qom-type": "secret", "id": "s", "data": "hunter2"} to it',
        'said "{\\"qom-type\\": \\"secret\\", \\"data\\": \\"hunter2\\"}" to it',
        "{'qom-type': 'secret', 'data': 'hunter2'}",
        "rbd:pool/image:id=admin:key=hunter2",
        "opened https://x:p@ss/hunter2@srv/image",
    ],
)
def test_a_text_loses_its_secrets(text: str) -> None:
    clean = redact.text(text)
    assert "hunter2" not in clean
    assert REDACTED in clean


@pytest.mark.parametrize(
    "text",
    [
        "",
        "virtio-blk-pci,drive=colo-disk0,addr=0x4",
        "driver=luks,key-secret=sec0,file.password-secret=sec1",
        "The password of node a is wrong.",
        "nbd://10.66.0.1:9099/colo-disk0",
        '{"execute": "query-status"}',
        "[not JSON",
        "data=1",
    ],
)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert redact.text(text) == text


@pytest.mark.parametrize(
    "arguments",
    [
        {"qom-type": "secret", "id": "sec0", "data": SECRET},
        {"qom-type": "secret", "id": "sec0", "props": {"data": SECRET}},
        {"protocol": "vnc", "password": SECRET},
        {"command-line": f"object_add secret,id=sec0,data={SECRET}"},
        {"deep": [{"deeper": {"auth-token": SECRET}}]},
        {"words": ["fence_ipmilan", "--password", SECRET, "-p", SECRET]},
    ],
)
def test_a_message_loses_its_secrets_and_the_original_keeps_them(arguments: Any) -> None:
    message = {"execute": "whatever", "arguments": arguments}
    before = copy.deepcopy(message)
    clean = redact.value(message)
    assert "hunter2" not in str(clean)
    assert message == before
    assert clean["execute"] == "whatever"


#: What people have on the command line of a guest, by the forms in which they have it.
PLANTED = {
    "a secret object": ["-object", "secret,id=s0,data=hunter2"],
    "a secret object in JSON": ["-object", '{"qom-type":"secret","id":"s0","data":"hunter2"}'],
    "a keyring's": ["-object", '{"qom-type": "secret_keyring", "serial": "hunter2"}'],
    "a pre-shared key": ["-object", "tls-creds-psk,id=t,psk=hunter2"],
    "a LUKS key": ["-blockdev", '{"driver":"luks","key":"hunter2","node-name":"l0"}'],
    "a password in a URL": ["-drive", "file=https://admin:hunter2@srv/img,if=none,id=d"],
    "one with a slash and an at": ["-drive", "file=https://u:a/b@hunter2@srv/img,if=none"],
    "iSCSI's URL": ["-drive", "file=iscsi://user%hunter2@10.0.0.1/iqn/0"],
    "a CHAP key": ["-iscsi", "user=u,password=hunter2"],
    "a CHAP key by another name": ["-iscsi", "initiator-name=iqn,chap-key=hunter2"],
    "ceph's key": ["-drive", "file=rbd:pool/image:id=admin:key=hunter2==:mon_host=m,if=none"],
    "a query": ["-cdrom", "https://srv/install.iso?sig=hunter2&x=hunter2"],
    "fw_cfg": ["-fw_cfg", "name=opt/org.example/token,string=hunter2"],
    "a credential of systemd": ["-smbios", "type=11,value=io.systemd.credential:root=hunter2"],
    "an asset's number": ["-smbios", "type=1,serial=hunter2"],
    "pass=": ["-device", "foo,pass=hunter2"],
    "psk=": ["-netdev", "foo,id=n,psk=hunter2"],
    "what nobody has heard of": ["-chardev", "socket,id=c,frobnicate=hunter2"],
    "a kernel's pass=": ["-append", "console=ttyS0 wifi.psk=hunter2 quiet"],
    "a kernel's own word": ["-append", "root=/dev/vda ds=hunter2 ro"],
    "a quoted one": ["-append", 'console=ttyS0 x="hunter2 hunter2" quiet'],
    "a user's": ["curl", "-u", "admin:hunter2"],
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED.keys())
def test_a_command_line_shows_what_is_known_to_be_harmless(planted: list[str]) -> None:
    argv = ["qemu-system-x86_64", "-name", "guest=web", *planted, "-m", "64M"]
    clean = redact.value(argv)
    assert "hunter2" not in " ".join(clean)
    assert clean[:3] == argv[:3]
    assert clean[-2:] == argv[-2:]
    assert [word for word in clean if word.startswith("-")] == [
        word for word in argv if word.startswith("-")
    ]
    document = {"guest": {"extra_args": planted}}
    assert "hunter2" not in str(redact.value(document))
    line = f"QEMU was started: {shlex.join(argv)}"
    assert "hunter2" not in redact.text(line) or planted[0] not in STATED


#: Options that a log shows with what belongs to them.
STATED = {"-object", "-fw_cfg", "-smbios", "-iscsi", "-append"}


@pytest.mark.parametrize("file", sorted(ARGV.glob("*")), ids=lambda path: path.name)
def test_our_own_command_lines_stay_readable(file: Path) -> None:
    argv = shlex.split(file.read_text().replace("\\\n", " "))
    clean = redact.value(argv)
    # A word of the guest's own kernel that the list does not know.
    clean = ["quiet a=b" if word == f"quiet a={REDACTED}" else word for word in clean]
    assert [one for one in zip(argv, clean, strict=True) if one[0] != one[1] and not (
        one[0].startswith("{") and json.loads(one[0]) == json.loads(one[1])
    )] == []  # fmt: skip


def test_a_key_of_several_lines_goes_as_a_whole() -> None:
    log = (
        "before\n-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\nhunter2\n"
        "-----END OPENSSH PRIVATE KEY-----\nafter\n-----BEGIN PRIVATE KEY-----\nhunter2"
    )
    clean = redact.lines(log)
    assert "hunter2" not in clean
    assert clean.startswith("before\n-----BEGIN OPENSSH PRIVATE KEY-----[redacted]\nafter\n")


def test_numbers_and_switches_with_such_names_stay() -> None:
    document = {"pass": 3, "token": 7, "password": True, "key-size": "256", "keys": ["ret"]}
    assert redact.value(document) == document
    assert redact.value({"password": 1234}) == {"password": REDACTED}


def test_what_a_fence_agent_is_told_is_its_own_affair() -> None:
    table = {
        "method": "command",
        "command": ["fence_ipmilan", "--lanplus", "-p", "x"],
        "timeout_s": 60,
        "options": {"ip": "10.0.0.9", "username": "admin"},
        "a": {},
    }
    assert redact.value({"fencing": table}) == {
        "fencing": {
            "method": "command",
            "command": ["fence_ipmilan", REDACTED, REDACTED, REDACTED],
            "timeout_s": 60,
            "options": {"ip": REDACTED, "username": REDACTED},
            "a": {},
        }
    }


def test_ids_of_secrets_and_predicates_about_them_stay() -> None:
    document = {"password-secret": "sec0", "key-secret": "sec1", "has-password": True, "n": 3}
    assert redact.value(document) == document


def test_the_secrets_of_a_document_can_be_looked_for_elsewhere() -> None:
    document = {
        "guest": {"extra_args": ["-object", "secret,id=s,data=a,,b"], "append": "password=cd"},
        "fencing": {"options": {"password": "ef"}, "command": ["agent", "--password", "gh"]},
    }
    assert set(redact.secrets_in(document)) == {"a,b", "cd", "ef", "gh"}
