"""Remove secrets from what is written for other people's eyes; pure.

Called by `supervisor.recorder` and `cli.bundling`. On a command line, and in a command of the pair
file, all that is not known to be harmless is removed (`supervisor.harmless`): no list of names of
secrets is complete. In other texts and in messages, all that is named like a secret: a password,
passphrase, key, token and their like at any depth, also in the names of environment variables; the
data of QEMU's secret objects; the part before the @ of a URL, and its query; private keys in PEM.
The arguments of a fence agent are its own affair. Ids of secret objects stay:
``password-secret=sec0``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coloctl.supervisor import harmless

REDACTED = "[redacted]"

_WORD = (
    r"(?:passw(?:or)?d|passwd|passphrase|passcode|pass|pwd|pw|psk|pin|secret|token|ticket|cookie"
    r"|credentials?|(?:api|auth|access|private|luks|chap|encryption|signing|ssh|shared|master"
    r"|account|license|wep|wpa)[-_.]?key|chap[-_]?(?:secret|response)?|bearer|authorization)"
)
_SECRET_NAME = re.compile(
    rf"(?:.*[-_.])?(?:{_WORD})|.*passw(?:or)?ds?|.*(?:secret|token)s?"
    r"|(?-i:[A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASS|PWD|AUTH|CREDENTIALS?)[A-Z0-9_]*)|key",
    re.IGNORECASE,
)
#: Names like these that are no secrets: a public key, the id of a secret object, a predicate.
_PLAIN_NAME = re.compile(
    r".+-secret|.*public[-_]?key|(?:has|is|use)[-_].*|key-?(?:name|id|type|file|size|length|code)s?"
    r"|keys|auth|author|keyboard|monkey|hotkey|token-?type|pass-?(?:count|number)|bypass|compass"
    r"|migration-pass|keyslots?|keyval|keymap|k8s|.*passthrough.*|.*[-_.]?keyboard.*",
    re.IGNORECASE,
)
#: Names of secrets that may be numbers.
_NUMBER_NAME = re.compile(r"passw|passcode|pin$|secret", re.IGNORECASE)
#: An option of a program whose next word is a secret; fence agents take ``-p``.
_SECRET_OPTION = re.compile(rf"--?(?:[\w.-]*{_WORD}|p|u|user)", re.IGNORECASE)
#: ``password=...`` and ``"password": "..."`` inside a text.
_ASSIGNED = re.compile(
    rf"(?<![\w./-])([\w.-]*(?:{_WORD}|key|auth)[\w-]*)(\\?[\"']?\s*[=:]\s*)"
    r"(\\\"(?:[^\"\\]|\\[^\"])*\\\"|\"(?:[^\"\\]|\\.)*\"|'[^']*'"
    r"|(?:(?:Bearer|Basic|Digest)\s+)?[^\s,;&\"'}\])]+(?:,,[^\s,;&\"'}\])]*)*)",
    re.IGNORECASE,
)
#: The data of a secret object: ``secret,id=sec0,data=...``; a doubled comma is one of the value.
_SECRET_DATA = re.compile(r"((?:^|[,\s\"'])data(?:=|\\?[\"']\s*:\s*\\?[\"']))((?:[^,\s\"'\\]|,,)*)")
_SECRET_OBJECT = re.compile(r"(?<![\w-])(?:secret|secret_keyring|tls-cipher\w*)(?=[,\"'\\]|\b)")
#: The words before the host of a URL; the last @ ends them, because a password may have one.
_URL = re.compile(r"(?<=://)[^\s\"'<>,|]+(?=@[^\s@\"'<>,|/]*)")
_QUERY = re.compile(r"((?:\w+://)[^\s\"'<>?]*\?)([^\s\"'<>]+)")
#: ``-fw_cfg name=opt/x,string=...`` and ``-smbios type=11,value=...`` inside a text.
_FIRMWARE = re.compile(r"((?:opt/[^\s,]*|\btype=\d+)(?:,\w+=[^,\s]*)*,(?:string|value)=)(\S+)")
#: Commands for people that take a password as a word.
_SPOKEN = re.compile(r"((?:set_password|change)\s+\S+(?:\s+password)?\s+)\S.*")
_PEM = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_OPTION_IN_TEXT = re.compile(
    r"(?<!\S)(-{1,2}(?:object|fw_cfg|smbios|iscsi|append))[ ]+"
    r"('[^']*'|\"(?:[^\"\\]|\\.)*\"|\S+)"
)
#: Keys of the pair file's [fencing] whose values are no secrets.
_FENCING_PLAIN = frozenset({"method", "timeout_s"})
#: A shorter value that is hidden only because nothing is known of it is not looked for elsewhere:
#: it may be a word like any other.
_UNKNOWN_MIN = 8


def value(found: Any) -> Any:
    """Return ``found``, a JSON value, without the secrets in it; the original is left alone."""
    return _Pen().value(found)


def text(found: str) -> str:
    """Return a line of a log, an option, a sentence without the secrets in it."""
    return _Pen().text(found)


def lines(found: str) -> str:
    """Return a whole log without secrets, line by line, and without keys of several lines."""
    if "PRIVATE KEY" in found:
        found = _PEM.sub(rf"\1{REDACTED}", found)
    return "\n".join(text(line) for line in found.split("\n"))


def secrets_in(found: Any) -> Iterator[str]:
    """List every secret that `value` would remove, for looking it up in texts without names."""
    pen = _Pen()
    pen.value(found)
    yield from dict.fromkeys(pen.taken)


class _Pen:
    """Removes secrets, and remembers them."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def value(self, found: Any) -> Any:
        if isinstance(found, str):
            return self.text(found)
        if isinstance(found, Mapping):
            return self._object(found)
        if isinstance(found, Sequence) and not isinstance(found, bytes):
            if found and all(isinstance(one, str) for one in found):
                return self.words(found)
            return [self.value(one) for one in found]
        return found

    def _object(self, found: Mapping[str, Any]) -> dict[str, Any]:
        kind = str(found.get("qom-type", found.get("qom_type", "")))
        is_secret = kind.startswith(("secret", "tls-cipher"))
        clean: dict[str, Any] = {}
        for name, inside in found.items():
            if is_secret and name in ("data", "props"):  # props: object-add before QEMU 6.0
                clean[name] = self._hide(inside)
            elif name == "fencing" and isinstance(inside, Mapping):
                clean[name] = self._fencing(inside)
            elif name == "append" and isinstance(inside, str):
                clean[name] = self._kernel(inside)
            elif _names_secret(name) and _may_be_secret(name, inside):
                clean[name] = self._hide(inside)
            else:
                clean[name] = self.value(inside)
        return clean

    def _fencing(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Redact the pair file's table: an agent's arguments are between it and the operator."""
        clean: dict[str, Any] = {}
        for name, inside in table.items():
            if name == "command" and isinstance(inside, Sequence) and not isinstance(inside, str):
                self.words(inside)  # for what they name as a secret
                clean[name] = [*map(str, inside[:1]), *(REDACTED for _ in inside[1:])]
            elif name in _FENCING_PLAIN or not inside:
                clean[name] = inside
            elif isinstance(inside, Mapping):
                self.value(inside)
                clean[name] = dict.fromkeys(inside, REDACTED)
            else:
                clean[name] = REDACTED
        return clean

    def words(self, found: Sequence[str]) -> list[str]:
        clean: list[str] = []
        before = ""
        for word in found:
            option = before.lstrip("-") if before.startswith("-") else ""
            if option in harmless.KERNELS:
                clean.append(self._kernel(word))
            elif option in harmless.LISTS and not word.startswith("-"):
                clean.append(self._list(word))
            elif _SECRET_OPTION.fullmatch(before) and not (
                before in ("-u", "--user") and ":" not in word
            ):
                clean.append(self._hide(word))
            else:
                clean.append(self.text(word))
            before = word
        return clean

    def _list(self, word: str) -> str:
        """Redact the value of an option of QEMU's.

        All that is not known to be harmless is hidden.
        """
        if word.lstrip().startswith("{"):
            try:
                return json.dumps(self._known(json.loads(word)), ensure_ascii=False)
            except (ValueError, RecursionError):
                return self._hide(word)
        clean = []
        for part in re.split(r"(?<!,),(?!,)", word):
            name, equals, inside = part.partition("=")
            if not equals or _harmless(name):
                clean.append(self.text(part))
            else:
                clean.append(f"{name}={self._hide(inside.replace(',,', ','), known=name)}")
        return ",".join(clean)

    def _known(self, found: Any, name: str = "id") -> Any:
        if isinstance(found, Mapping):
            return {key: self._known(inside, key) for key, inside in found.items()}
        if isinstance(found, list):
            return [self._known(one, name) for one in found]
        if isinstance(found, str):
            return self.text(found) if _harmless(name) else self._hide(found, known=name)
        return found

    def _kernel(self, line: str) -> str:
        """Redact a kernel's command line, word by word; a switch without a value says nothing."""
        clean = []
        for word in re.findall(r"(?:[^\s\"]|\"[^\"]*\")+|\s+", line):
            name, equals, inside = word.partition("=")
            plain = name in harmless.KERNEL or name.startswith(harmless.KERNEL_PREFIXES)
            if not equals or (plain and not _names_secret(name)):
                clean.append(self.text(word))
            else:
                clean.append(f"{name}={self._hide(inside.strip(chr(34)), known=name)}")
        return "".join(clean)

    def text(self, found: str) -> str:
        if found.startswith(("{", "[")):
            try:
                return json.dumps(self.value(json.loads(found)), ensure_ascii=False)
            except (ValueError, RecursionError):
                pass
        if "PRIVATE KEY" in found:
            found = _PEM.sub(rf"\1{REDACTED}", found)
        if " -" in found or found.startswith("-"):
            found = _OPTION_IN_TEXT.sub(self._option, found)
        if "data" in found and _SECRET_OBJECT.search(found):
            found = _SECRET_DATA.sub(self._second, found)
        if "opt/" in found or "type=" in found:
            found = _FIRMWARE.sub(self._second, found)
        if "://" in found:
            found = _URL.sub(self._before_host, found)
            found = _QUERY.sub(self._query, found)
        found = _SPOKEN.sub(rf"\1{REDACTED}", found)
        return _ASSIGNED.sub(self._assigned, found)

    def _option(self, match: re.Match[str]) -> str:
        quote = match[2][0] if match[2][0] in "\"'" else ""
        inside = match[2].strip(quote) if quote else match[2]
        name = match[1].lstrip("-")
        clean = self._kernel(inside) if name in harmless.KERNELS else self._list(inside)
        return f"{match[1]} {quote}{clean}{quote}"

    def _second(self, match: re.Match[str]) -> str:
        return match[1] + self._hide(match[2].replace(",,", ","))

    def _before_host(self, match: re.Match[str]) -> str:
        """Redact the part of a URL before its host.

        The user's name stays where a password follows it.
        """
        user, colon, secret = match[0].partition(":")
        if colon:
            self._hide(secret)
        elif "%" in user:  # iSCSI's way
            user, _, secret = user.partition("%")
            self._hide(secret)
        elif "/" in user or "?" in user:  # the @ is not of the host
            return match[0]
        else:
            return REDACTED if len(user) >= _UNKNOWN_MIN else user
        return f"{user}:{REDACTED}"

    def _query(self, match: re.Match[str]) -> str:
        names = [part.partition("=") for part in match[2].split("&")]
        clean = [f"{name}{equals}{REDACTED if equals else ''}" for name, equals, _ in names]
        return match[1] + "&".join(clean)

    def _assigned(self, match: re.Match[str]) -> str:
        name, between, inside = match.groups()
        number = int(inside) if inside.isdecimal() and len(inside) < 20 else inside
        if not _names_secret(name) or inside == REDACTED or not _may_be_secret(name, number):
            return match[0]
        quote = next((one for one in ('\\"', '"', "'") if inside.startswith(one)), "")
        self._hide(inside.removeprefix(quote).removesuffix(quote).replace(",,", ","))
        return f"{name}{between}{quote}{REDACTED}{quote}"

    def _hide(self, secret: Any, *, known: str | None = None) -> str:
        """Record every text in ``secret``, so that it is found elsewhere; return `REDACTED`.

        ``known`` is the name of a value that was hidden for being unknown. Where that names no
        secret, only a long text is recorded.
        """
        if isinstance(secret, str):
            sure = known is None or _names_secret(known) or known in ("data", "string")
            if secret and (sure or len(secret) >= _UNKNOWN_MIN):
                # A part that follows a name of its own inside it may be found without that name.
                parts = [one for one in re.split(r"[=:]", secret) if len(one) >= _UNKNOWN_MIN]
                self.taken += [secret, *parts] if len(parts) > 1 else [secret]
        elif isinstance(secret, Mapping):
            for one in secret.values():
                self._hide(one)
        elif isinstance(secret, Sequence):
            for one in secret:
                self._hide(one)
        return REDACTED


def _names_secret(name: str) -> bool:
    return _SECRET_NAME.fullmatch(name) is not None and not _PLAIN_NAME.fullmatch(name)


def _may_be_secret(name: str, inside: Any) -> bool:
    """Return whether ``inside`` could be one: a count is called ``pass`` too."""
    if isinstance(inside, bool) or inside is None:
        return False
    return not isinstance(inside, int | float) or _NUMBER_NAME.search(name) is not None


def _harmless(name: str) -> bool:
    last = name.rpartition(".")[2]
    return (name in harmless.KEYS or last in harmless.KEYS) and not _names_secret(name)
