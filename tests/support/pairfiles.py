"""Pair files as text, for tests that read one and need nothing of what it names."""

from __future__ import annotations

PAIR_TEXT = """\
name = "{name}"

[guest]
{guest}

[[disk]]
id = "disk0"
image = {{ a = "a.qcow2", b = "b.qcow2" }}
{nic}
[node.a]
host = "{host_a}"
address = "{network}.1"

[node.b]
host = "{host_b}"
address = "{network}.2"
"""
NIC = """
[[nic]]
id = "hn0"
mac = "52:54:00:12:34:56"
tap = { a = "tap-a", b = "tap-b", bridge = "br0" }
"""


def pair_text(
    name: str = "web",
    *,
    guest: str = 'memory = "64MiB"',
    nic: bool = False,
    hosts: tuple[str, str] = ("local", "local"),
    network: str = "127.0.0",
) -> str:
    """Build the pair file of a small pair; ``guest`` are the lines of its table."""
    return PAIR_TEXT.format(
        name=name,
        guest=guest,
        nic=NIC if nic else "",
        host_a=hosts[0],
        host_b=hosts[1],
        network=network,
    )
