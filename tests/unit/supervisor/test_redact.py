"""Secrets are taken out wherever they stand, and nothing else is."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from coloctl.supervisor import redact
from coloctl.supervisor.redact import REDACTED

pytestmark = pytest.mark.unit

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
