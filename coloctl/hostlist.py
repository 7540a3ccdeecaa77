"""Keep the list of machines that pairs run on: `hosts.toml` in the configuration's folder.

Called by `cli.verbs.host`. Each entry is the address of a machine for ssh, and its addresses for
replication. Invariant: the file is replaced as a whole, and a damaged one is a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from coloctl import paths, wholefile
from coloctl.errors import PreconditionFailed
from coloctl.reading import read_toml


@dataclass(frozen=True, slots=True)
class ListedHost:
    """A machine of the list."""

    name: str  #: its certificate is made for this name
    at: str  #: as a pair file has it: ``ssh://root@hv2``, or ``local``
    addresses: tuple[str, ...] = ()  #: for replication


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
    path = file()
    tables = {
        name: {"at": one.at, "addresses": list(one.addresses)}
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
    return ListedHost(name, table["at"], tuple(addresses))
