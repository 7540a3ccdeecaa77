"""Check single values of a pair file: each function returns the value or raises a `complaint`.

Called by `pairfile.tables` and, for a scenario's tables, by `chaos.scenario.tables`.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

from coloctl.model import sshaddress
from coloctl.model.bounds import RATE_MAX
from coloctl.model.units import MIB, SIZE, UNITS

#: As `certs.store` takes it: a DNS name that needs no quoting in a subject.
_MACHINE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_PAIR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_QEMU_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MACHINE = re.compile(r"pc|q35|pc-(i440fx|q35)-[0-9]+(\.[0-9]+)*")
_CPU = re.compile(r"[A-Za-z0-9._,=+-]+")
_DEVICE = re.compile(r"[a-z0-9][a-z0-9._-]*")
_OPTION = re.compile(r"[a-z][a-z0-9_-]*")
_IFNAME_MAX = 15  # IFNAMSIZ is 16 with the closing NUL (linux/if.h)
_PAIR_NAME_MAX = 32


_PERIOD = re.compile(r"([0-9]{1,9})\s*([smhdw])")
_PERIOD_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
#: Disks are read from end to end each time.
PERIOD_MIN_S, PERIOD_MAX_S = 60, 366 * 86_400


def complaint(sentence: str, hint: str | None = None) -> PydanticCustomError:
    """Make a validation error that carries ``sentence`` and ``hint`` to `pairfile` unchanged."""
    return PydanticCustomError("pair_file", "{sentence}", {"sentence": sentence, "hint": hint})


def memory_mib(value: object) -> int:
    """Read a size in MiB; whole numbers without quotes are bytes."""
    return _mib(value, 'write it like memory = "512MiB"')


def memory_max_mib(value: object) -> int | None:
    """Read a limit in MiB, as `memory_mib` reads a size; None is no limit."""
    return None if value is None else _mib(value, 'write it like memory_max = "2GiB"')


def _mib(value: object, hint: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise complaint("This must be a size, such as 512MiB in quotes.", hint)
    size = value if isinstance(value, int) else _size(value.strip(), hint)
    if size < MIB:
        raise complaint(f"{size} bytes are less than 1 MiB.", hint)
    if size % MIB:
        raise complaint(f"{size} bytes are not a whole number of MiB.", hint)
    return size // MIB


def rate(value: object) -> int:
    """Read bytes per second; whole numbers without quotes are bytes, 0 is no limit."""
    hint = 'write it like mirror_rate = "50MiB"'
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise complaint("This must be bytes per second, such as 50MiB in quotes.", hint)
    speed = value if isinstance(value, int) else _size(value.strip(), hint)
    if not 0 <= speed <= RATE_MAX:
        raise complaint(f"{speed} bytes per second are no rate that QEMU takes.", hint)
    return speed


def period(value: object) -> float:
    """Read the seconds between two times; 0 is never."""
    hint = 'write it like every = "1d"; the units are s, m, h, d, w'
    if value == 0 and not isinstance(value, bool):
        return 0.0
    match = _PERIOD.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        raise complaint("This must be a length of time in quotes, such as 12h or 1d.", hint)
    seconds = int(match[1]) * _PERIOD_S[match[2]]
    if not PERIOD_MIN_S <= seconds <= PERIOD_MAX_S:
        raise complaint(f'"{value}" is not between a minute and a year.', hint)
    return float(seconds)


def _size(text: str, hint: str) -> int:
    match = SIZE.fullmatch(text)
    if not match:
        raise complaint(f'"{text}" is not a size.', hint)
    if not match[2]:
        raise complaint(f'"{text}" is a number without a unit.', hint)
    if match[2] not in UNITS:
        raise complaint(f'"{match[2]}" is not a unit of size.', "the units are KiB, MiB, GiB, TiB")
    return int(match[1]) * UNITS[match[2]]


def pair_name(name: str) -> str:
    """Check that ``name`` can be a folder of the state folder, short enough for socket paths."""
    if not _PAIR_NAME.fullmatch(name):
        raise complaint(
            f'"{name}" cannot name a folder safely.',
            "use letters, digits, dot, dash and underscore, and begin with a letter or digit",
        )
    if len(name) > _PAIR_NAME_MAX:
        raise complaint(
            f"This name has {len(name)} characters and may have {_PAIR_NAME_MAX}.",
            "unix sockets live in a folder of that name, and their addresses are short",
        )
    return name


def qemu_id(name: str) -> str:
    """Check that ``name`` is well formed as QEMU sees it (id_wellformed in util/id.c)."""
    if not _QEMU_ID.fullmatch(name):
        raise complaint(
            f'QEMU does not accept "{name}" as an id.',
            "begin with a letter; then letters, digits, dot, dash and underscore",
        )
    return name


def mac(text: str) -> str:
    """Read the MAC address of one card, in small letters."""
    small = text.lower()
    if not _MAC.fullmatch(small):
        raise complaint(f'"{text}" is not a MAC address.', "write it like 52:54:00:12:34:56")
    first = int(small[:2], 16)
    if first & 1:
        raise complaint(
            f'"{text}" is a multicast address: the lowest bit of its first byte is set.',
            f"use {first & 0xFE:02x}{small[2:]}",
        )
    if small == "00:00:00:00:00:00":
        raise complaint("A network card cannot have the MAC address zero.", "try 52:54:00:...")
    return small


def machine(name: str) -> str:
    """Check a machine type of the pc or q35 family, without options."""
    if "," in name:
        raise complaint(
            "This must be the machine type alone, without options.",
            "the accelerator has its own key, guest.accel",
        )
    if not _MACHINE.fullmatch(name):
        raise complaint(
            f'"{name}" is not a machine type that COLO pairs can use.',
            "use pc, q35, or one of their versions such as pc-i440fx-7.2",
        )
    return name


def cpu(model: str) -> str:
    """Check a CPU model with its flags, as ``-cpu`` takes it."""
    if not _CPU.fullmatch(model):
        raise complaint(f'"{model}" is not a CPU model.', "write it as for QEMU's -cpu")
    return model


def user(value: object) -> str:
    """Check the name or number of a user; raises for what cannot be one."""
    text = str(value) if isinstance(value, str) or type(value) is int else ""
    if not re.fullmatch(r"[a-zA-Z_][\w.-]{0,31}\$?|[0-9]{1,10}", text, re.ASCII) or (
        text.isdecimal() and int(text) >= 2**32 - 1
    ):
        raise complaint(f"{value!r} cannot be a user.", 'write "auto", "root", a name or a number')
    return text


def device(model: str) -> str:
    """Check a device name, without options."""
    if not _DEVICE.fullmatch(model):
        raise complaint(
            f'"{model}" is not a device name.', "write it as for QEMU's -device, without options"
        )
    return model


def ifname(name: str) -> str:
    """Check that ``name`` can be the name of a Linux network interface."""
    if len(name.encode()) > _IFNAME_MAX:
        raise complaint(
            f'"{name}" has {len(name.encode())} characters and Linux allows {_IFNAME_MAX}.',
            "give the interface a shorter name",
        )
    if name in {"", ".", ".."} or re.search(r"[\s/:%]", name):
        raise complaint(f'"{name}" cannot name a network interface.', "name it like tap-a")
    return name


def one_of_both(bridge: str | None, info: ValidationInfo) -> str | None:
    """Check that a network card has a bridge or taps; a table of taps that is wrong counts too."""
    if "tap" in info.data and (bridge is None) == (info.data["tap"] is None):
        both = "both" if bridge else "neither"
        raise complaint(
            f"A network card has a bridge or taps, and this one has {both}.",
            'write bridge = "br0", and coloctl makes the taps; or name yours: '
            'tap = { a = "tap-a", b = "tap-b" }',
        )
    return bridge


def host(host: str) -> str:
    """Check a host: ``local``, ``netns:NAME``, or ``ssh://[user@]name[:port]``."""
    kind, _, rest = host.partition(":")
    if kind == "ssh":
        try:
            sshaddress.parse(host)
        except ValueError as error:
            raise complaint(str(error), "write it like ssh://root@hv2") from None
        return host
    if host == "local" or (kind == "netns" and _PAIR_NAME.fullmatch(rest)):
        return host
    raise complaint(f'"{host}" is not a host.', "use local, netns:NAME or ssh://NAME")


def machine_name(name: str) -> str:
    """Check a name that a certificate may be valid for."""
    if not _MACHINE_NAME.fullmatch(name):
        raise complaint(
            f'"{name}" cannot be a name in a certificate.',
            "use letters, digits, dots and dashes, at most 64, such as hv1",
        )
    return name


def address(text: str) -> str:
    """Read the IP address of one host, in its usual spelling."""
    try:
        parsed = ip_address(text)
    except ValueError:
        raise complaint(f'"{text}" is not an IP address.', "write it like 10.66.0.1") from None
    if parsed.version == 6 and (parsed.scope_id or parsed.is_link_local):
        raise complaint(
            f"{text} is a link-local address, and QEMU cannot listen at one.",
            "give the link addresses of its own, like fd00::1 and fd00::2",
        )
    if parsed.is_unspecified or parsed.is_multicast:
        raise complaint(
            f"{text} is not the address of one host.", "name the address of the replication link"
        )
    return str(parsed)


def path(text: str, info: ValidationInfo) -> Path:
    """Make a path absolute, without dot segments: it is the same from every working folder.

    A relative one begins at the folder ``base`` of the validation's context.
    """
    if not text or "\0" in text:
        raise complaint("This must be the path of a file.")
    home = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises for unknown users
    base: Path = info.context["base"]  # type: ignore[index]
    return Path(os.path.abspath(base / home))  # noqa: PTH100 - Path.resolve follows symlinks


def program(text: str, info: ValidationInfo) -> Path:
    """Make the path of a program absolute; a bare name stays one, for PATH."""
    return Path(text) if text and "/" not in text else path(text, info)


def command(words: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """Read a program and its arguments."""
    if not words:
        return ()
    return str(program(words[0], info)), *words[1:]


def agent_value(value: object) -> str:
    """Check that a fence agent can read the value from a line of its standard input."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if not isinstance(value, (str, int)):
        raise complaint("This must be text, a whole number, true or false.")
    if "\n" in (text := str(value)) or "\0" in text:
        raise complaint("A fence agent reads one line per option, so this must be one line.")
    return text


def agent_options(options: dict[str, str]) -> dict[str, str]:
    """Check options of a fence agent by name, without those that are coloctl's to say."""
    for name in options:
        if name == "action":
            raise complaint(
                '"action" is what coloctl sends to the agent: off, then status.', "remove it"
            )
        if not _OPTION.fullmatch(name):
            raise complaint(
                f'"{name}" cannot be an option of a fence agent.',
                "its names are those of the agent's metadata, in small letters",
            )
    return options
