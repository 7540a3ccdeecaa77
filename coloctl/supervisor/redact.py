"""Secrets taken out of what is written down for other people's eyes; pure.

What is taken out: the values of everything that is called a password, passphrase, secret, token or
key of an API, at any depth; the data of QEMU's ``secret`` objects, in QMP and on command lines;
passwords in URLs; what a fence agent is told. Ids of secret objects stay: ``password-secret=sec0``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

REDACTED = "[redacted]"

_WORD = r"(?:passw(?:or)?d|passphrase|passcode|secret|token|credentials?|api[-_]?key)"
_SECRET_NAME = re.compile(rf"(?:.*[-_.])?(?:{_WORD})|.*passw(?:or)?ds?", re.IGNORECASE)
#: QEMU's options that name a secret object: ``password-secret``, ``key-secret``.
_ID_NAME = re.compile(r".+-secret", re.IGNORECASE)
#: An option of a command line whose next word is a secret; fence agents take ``-p``.
_SECRET_OPTION = re.compile(rf"--?(?:[\w-]*{_WORD}|p)", re.IGNORECASE)
#: ``password=...`` and ``"password": "..."`` inside a text.
_ASSIGNED = re.compile(
    rf"(?<![\w-])([\w-]*{_WORD})([\"']?\s*[=:]\s*)"
    r"(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;&\"'}\])]+)",
    re.IGNORECASE,
)
#: The data of a secret object: ``secret,id=sec0,data=...``; a doubled comma is one of the value.
_SECRET_DATA = re.compile(r"((?:^|,|\s)data=)((?:[^,\s]|,,)*)")
_SECRET_OBJECT = re.compile(r"(?<![\w-])(?:qom-type=)?(?:secret|secret_keyring|tls-cipher)(?:,|\b)")
_URL = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]*(?=@)")
#: Commands for people that take a password as a word.
_SPOKEN = re.compile(r"((?:set_password|change)\s+\S+(?:\s+password)?\s+)\S.*")
#: Keys of the pair file's [fencing] that say nothing to anybody else.
_FENCING_PLAIN = frozenset({"method", "timeout_s"})


def value(found: Any) -> Any:
    """``found``, a JSON value, without the secrets in it; the original is left alone."""
    if isinstance(found, str):
        return text(found)
    if isinstance(found, Mapping):
        return _object(found)
    if isinstance(found, Sequence) and not isinstance(found, bytes):
        return words(found) if _is_words(found) else [value(one) for one in found]
    return found


def _object(found: Mapping[str, Any]) -> dict[str, Any]:
    is_secret = any(
        str(found.get(key, "")).startswith("secret") for key in ("qom-type", "qom_type")
    )
    clean: dict[str, Any] = {}
    for name, inside in found.items():
        if (is_secret and name == "data") or (inside is not None and _named_secret(name, inside)):
            clean[name] = REDACTED
        elif name == "props" and str(found.get("qom-type", "")).startswith("secret"):
            clean[name] = REDACTED  # the shape of object-add before QEMU 6.0
        elif name == "fencing" and isinstance(inside, Mapping):
            clean[name] = _fencing(inside)
        else:
            clean[name] = value(inside)
    return clean


def _named_secret(name: str, inside: Any) -> bool:
    if isinstance(inside, bool) or _ID_NAME.fullmatch(name):
        return False
    return _SECRET_NAME.fullmatch(name) is not None


def _fencing(table: Mapping[str, Any]) -> dict[str, Any]:
    """The pair file's table: what an agent is told is between it and the operator."""
    clean: dict[str, Any] = {}
    for name, inside in table.items():
        if name == "command" and isinstance(inside, Sequence) and not isinstance(inside, str):
            clean[name] = [*map(str, inside[:1]), *(REDACTED for _ in inside[1:])]
        elif name in _FENCING_PLAIN or not inside:
            clean[name] = inside
        elif isinstance(inside, Mapping):
            clean[name] = dict.fromkeys(inside, REDACTED)
        else:
            clean[name] = REDACTED
    return clean


def _is_words(found: Sequence[Any]) -> bool:
    return bool(found) and all(isinstance(one, str) for one in found)


def secrets_in(found: Any) -> Iterator[str]:
    """Every secret that `value` would take out because of its name or place.

    For looking them up in texts that do not name them.
    """
    if isinstance(found, str):
        yield from (match[3].strip("\"'") for match in _ASSIGNED.finditer(found))
        if "data=" in found and _SECRET_OBJECT.search(found):
            yield from (match[2].replace(",,", ",") for match in _SECRET_DATA.finditer(found))
    elif isinstance(found, Mapping):
        for name, inside in found.items():
            if isinstance(inside, str) and _named_secret(name, inside):
                yield inside
            else:
                yield from secrets_in(inside)
    elif isinstance(found, Sequence) and not isinstance(found, bytes):
        for i, one in enumerate(found):
            yield from secrets_in(one)
            if isinstance(one, str) and i and _SECRET_OPTION.fullmatch(str(found[i - 1])):
                yield one


def words(found: Sequence[str]) -> list[str]:
    """A command line; the word after ``--password`` and its like is a secret as well."""
    clean: list[str] = []
    hidden = False
    for word in found:
        clean.append(REDACTED if hidden else text(word))
        hidden = _SECRET_OPTION.fullmatch(word) is not None
    return clean


def text(found: str) -> str:
    """A line of a log, an option, a sentence."""
    if found.startswith(("{", "[")):
        try:
            return json.dumps(value(json.loads(found)), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    if "data=" in found and _SECRET_OBJECT.search(found):
        found = _SECRET_DATA.sub(rf"\1{REDACTED}", found)
    if "://" in found:
        found = _URL.sub(rf"\1:{REDACTED}", found)
    found = _SPOKEN.sub(rf"\1{REDACTED}", found)
    return _ASSIGNED.sub(_without, found)


def _without(match: re.Match[str]) -> str:
    name, between, inside = match.groups()
    if _ID_NAME.fullmatch(name):
        return match[0]
    quote = inside[0] if inside[0] in "\"'" else ""
    return f"{name}{between}{quote}{REDACTED}{quote}"
