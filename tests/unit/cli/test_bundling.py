"""A bundle of a pair whose files are full of secrets holds none of them, and is still of use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import make_spec

from coloctl.cli.bundling import collect
from coloctl.model.pair import FencingMethod, FencingSpec, NodeName
from coloctl.supervisor.started import PAIR_FILE, STARTED, Started, write

pytestmark = pytest.mark.unit

#: Each is a word of its own, so that finding it anywhere tells which got through.
SECRETS = {number: f"zq{number}-hunter-7k{number}" for number in range(1, 19)}

PAIR = f"""
name = "web"
[guest]
memory = "64MiB"
append = 'console=ttyS0 root=/dev/vda wifi.psk={SECRETS[1]} ds={SECRETS[2]} quiet'
extra_args = [
  "-object", "secret,id=s0,data={SECRETS[3]}",
  "-object", '{{"qom-type": "secret", "id": "s1", "data": "{SECRETS[4]}"}}',
  "-drive", "file=https://admin:{SECRETS[5]}@srv/img,if=none,id=d1",
  "-blockdev", '{{"driver":"luks","node-name":"l","key":"{SECRETS[6]}","key-secret":"s0"}}',
  "-iscsi", "user=u,password={SECRETS[7]}",
  "-fw_cfg", "name=opt/org.example/key,string={SECRETS[8]}",
  "-smbios", "type=11,value=io.systemd.credential:x={SECRETS[9]}",
  "-device", "foo,pass={SECRETS[10]}",
]
[fencing]
method = "command"
command = ["fence_ipmilan", "--password", "{SECRETS[11]}"]
options = {{ passwd = "{SECRETS[12]}" }}
"""

LOGS = {
    "supervisor.log": f"the agent said: DB_PASSWORD={SECRETS[13]}\nfenced with {SECRETS[11]}\n",
    "a/qemu.log": f"qemu: could not open https://u:{SECRETS[14]}@srv/x?sig={SECRETS[15]}\n",
    "b/qemu.log": f'blockdev-add {{"key":"{SECRETS[6]}"}} failed, and so did {SECRETS[3]}\n',
    "a/console.log": (
        f"Command line: console=ttyS0 wifi.psk={SECRETS[1]} ds={SECRETS[2]}\n"
        f"wpa: psk={SECRETS[16]}\nexport AWS_SECRET_ACCESS_KEY={SECRETS[17]}\n"
        f"-----BEGIN PRIVATE KEY-----\n{SECRETS[18]}\n-----END PRIVATE KEY-----\n"
        "Welcome to the guest\n"
    ),
    "b/console.log": f"fw_cfg says {SECRETS[8]}, and smbios {SECRETS[9]}\n",
    "journal.jsonl": f'{{"kind": "note", "data": {{"why": "said {SECRETS[5]} to it"}}}}\n',
}


def test_nothing_that_was_planted_is_found(tmp_path: Path) -> None:
    (tmp_path / PAIR_FILE).write_text(PAIR)
    options: dict[NodeName, dict[str, str]] = {"a": {"passwd": SECRETS[12]}, "b": {}}
    fencing = FencingSpec(FencingMethod.COMMAND, ("agent", SECRETS[11]), options=options)
    write(tmp_path, Started(replace(make_spec(), fencing=fencing)))
    assert SECRETS[11] in (tmp_path / STARTED).read_text()
    for name, text in LOGS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    parts = collect("web", tmp_path, None, "nobody answers")
    assert set(LOGS) < set(parts.files)
    assert STARTED not in parts.files  # pair.json is the pair file, without its secrets
    whole = "\n".join(data.decode() for data in parts.files.values())
    assert [secret for secret in SECRETS.values() if secret in whole] == []
    pair = json.loads(parts.files["pair.json"])
    assert pair["name"] == "web"
    assert pair["guest"]["append"].startswith("console=ttyS0 root=/dev/vda wifi.psk=[redacted]")
    assert pair["guest"]["extra_args"][1] == "secret,id=s0,data=[redacted]"
    assert pair["guest"]["extra_args"][4] == "-drive"
    assert "Welcome to the guest" in parts.files["a/console.log"].decode()
