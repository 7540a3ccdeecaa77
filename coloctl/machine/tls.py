"""Build the TLS objects of a QEMU, as ``-object`` and ``object-add`` take them, and name its files.

Called by `machine.cmdline` for a QEMU that starts, and by `colo.tls_plan` for one that runs;
`colo.tls` writes the files. Each QEMU is the server of some wires and the client of others, and
roles change: it has credentials for both, made from one certificate and key.

Invariant: a server demands a certificate of the pair's authority, and lets in the subjects of this
pair's two machines alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coloctl.model.tls import TlsFiles, TlsWire

Properties = Mapping[str, Any]

#: One cipher on every wire. With 16 MB dirtied per checkpoint the pause was 40 ms with AES-256-GCM,
#: 45 ms with AES-128-GCM and 115 ms with ChaCha20, which GnuTLS may choose (11.1.3, AES-NI).
#: TLS 1.2: GnuTLS renews the keys of a TLS 1.3 session after 2^24 records, and that broke the first
#: migration, which one thread sends and another answers (docs/qemu.md, "TLS").
PRIORITY = "NORMAL:-CIPHER-ALL:+AES-128-GCM:-VERS-ALL:+VERS-TLS1.2"

#: QEMU's names of the files in the folder of its credentials. It reads those of its endpoint alone.
CA = "ca-cert.pem"
CERTS = ("server-cert.pem", "client-cert.pem")
KEYS = ("server-key.pem", "client-key.pem")


def objects(wire: TlsWire) -> tuple[Properties, ...]:
    """Build both credentials and the list of peers, in creation order.

    The list has both nodes: the programs that compare disks connect from either machine.
    """
    return (
        _credentials(wire, wire.ids.server, "server"),
        _credentials(wire, wire.ids.client, "client"),
        {
            "qom-type": "authz-list",
            "id": wire.ids.peers,
            "policy": "deny",
            "rules": [
                {"match": subject, "policy": "allow", "format": "exact"}
                for subject in wire.subjects
            ],
        },
    )


def _credentials(wire: TlsWire, name: str, endpoint: str) -> Properties:
    return {
        "qom-type": "tls-creds-x509",
        "id": name,
        "dir": str(wire.folder),
        "endpoint": endpoint,
        "verify-peer": True,
        "priority": PRIORITY,
    }


def contents(ca: bytes, cert: bytes, key: bytes) -> dict[str, bytes]:
    """Return what the files of that folder hold, by name."""
    return {CA: ca, **dict.fromkeys(CERTS, cert), **dict.fromkeys(KEYS, key)}


def files(where: Path, name: str) -> TlsFiles:
    """Name the files of that folder for a program of coloctl that connects to machine ``name``."""
    return TlsFiles(where / CA, where / CERTS[1], where / KEYS[1], name)
