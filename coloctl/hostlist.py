"""Keep the list of machines that pairs run on: `hosts.toml` in the configuration's folder.

Called by `cli.verbs.host`, and by `colo.inspect` for the QEMU of a machine. Each entry is the
address of a machine for ssh, its addresses for replication, and its QEMU. Invariant: the file is
replaced as a whole, and a damaged one is a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coloctl import paths, wholefile
from coloctl.errors import PreconditionFailed
from coloctl.reading import read_toml


@dataclass(frozen=True, slots=True)
class ListedHost:
    """A machine of the list."""

    name: str  #: its certificate is made for this name
    at: str  #: as a pair file has it: ``ssh://root@hv2``, or ``local``
    addresses: tuple[str, ...] = ()  #: for replication
    qemu: str = ""  #: the QEMU of pairs that name none, as a path there; empty: the one on its PATH


def file() -> Path:
    """Return the path of the list; raises as `paths.config_dir`."""
    return paths.config_dir() / "hosts.toml"


def load() -> dict[str, ListedHost]:
    """Read the list by name; empty where there is none. Raises `PreconditionFailed`."""
    path = file()
    try:
        document = read_toml(path.read_text())
        return {name: _read(name, table) for name, table in sorted(document.items())}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PreconditionFailed(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise PreconditionFailed(
            f"{path} is damaged: {error}.", hint="correct it, or remove it and add the hosts again"
        ) from None


def save(hosts: Mapping[str, ListedHost]) -> None:
    """Replace the list; raises `PreconditionFailed`."""
    import tomli_w  # a supervisor only reads the list

    path = file()
    tables = {
        name: {"at": one.at, "addresses": list(one.addresses)}
        | ({"qemu": one.qemu} if one.qemu else {})
        for name, one in sorted(hosts.items())
    }
    paths.make_private(path.parent, variable=paths.CONFIG)
    try:
        wholefile.replace(path, tomli_w.dumps(tables).encode())
    except OSError as error:
        raise PreconditionFailed(f"{path} cannot be written: {error.strerror}.") from None


def _read(name: str, table: object) -> ListedHost:
    if not isinstance(table, dict) or not isinstance(table.get("at"), str):
        raise ValueError(f'"{name}" has no address "at"')
    addresses = table.get("addresses", [])
    if not isinstance(addresses, list) or not all(isinstance(one, str) for one in addresses):
        raise ValueError(f'the addresses of "{name}" are no list of texts')
    qemu = table.get("qemu", "")
    if not isinstance(qemu, str):
        raise ValueError(f'the qemu of "{name}" is no text')
    return ListedHost(name, table["at"], tuple(addresses), qemu)


def qemu_at(host: str) -> Path | None:
    """Return the QEMU of the listed machine that a pair file calls ``host``; None for none.

    A user in the address makes no difference. Raises `PreconditionFailed` for a damaged list.
    """
    for one in load().values():
        if one.qemu and _place(one.at) == _place(host):
            return Path(one.qemu)
    return None


def _place(at: str) -> str:
    """Return an address without the user."""
    scheme, _, rest = at.rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
