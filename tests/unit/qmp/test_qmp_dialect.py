"""The dialect is found by asking, and nothing asked for is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from fake_qmp import FakeQMP, Refusal, open_session

from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.qmp import dialect
from coloctl.qmp.schema import Schema

pytestmark = pytest.mark.unit

RECONNECT = "chardev-add.backend[type=socket].data.reconnect"


class Capabilities:
    """A QEMU's migration capabilities, with the rule of its version about x-colo."""

    def __init__(self, *, x_colo: str) -> None:
        self.rule = x_colo  #: "alone", "with return-path", "refused" or "absent"
        self.now = {"return-path": False, "x-colo": False, "events": False}
        if x_colo == "absent":
            del self.now["x-colo"]

    def listed(self, _: Mapping[str, Any]) -> Any:
        return [{"capability": name, "state": state} for name, state in self.now.items()]

    def set(self, arguments: Mapping[str, Any]) -> Any:
        wanted = {**self.now, **{c["capability"]: c["state"] for c in arguments["capabilities"]}}
        if wanted["x-colo"] and self.rule == "refused":
            return Refusal("COLO is not currently supported")
        if wanted["x-colo"] and self.rule == "with return-path" and not wanted["return-path"]:
            return Refusal("Capability 'x-colo' requires capability 'return-path'")
        self.now = wanted
        return {}


def discover(rule: str, *paths: str, **more: Any) -> tuple[Dialect, Capabilities]:
    capabilities = Capabilities(x_colo=rule)
    answers = {
        "qom-list-properties": [],
        **more,
        "query-migrate-capabilities": capabilities.listed,
        "migrate-set-capabilities": capabilities.set,
    }

    async def body() -> Dialect:
        schema = Schema("11.1.3", dict.fromkeys(paths, "optional int"))
        async with FakeQMP(answers) as fake, await open_session(fake) as session:
            return await dialect.discover(session, 5, schema=schema)

    return asyncio.run(body()), capabilities


@pytest.mark.parametrize(
    ("rule", "return_path", "x_colo"),
    [
        ("alone", ReturnPath.FORBIDDEN, True),
        ("with return-path", ReturnPath.REQUIRED, True),
        ("refused", ReturnPath.FORBIDDEN, False),
        ("absent", ReturnPath.FORBIDDEN, False),
    ],
)
def test_return_path_is_found_by_asking(rule: str, return_path: ReturnPath, x_colo: bool) -> None:
    found, capabilities = discover(rule, RECONNECT)
    assert (found.return_path, found.x_colo) == (return_path, x_colo)
    assert not any(capabilities.now.values())


def test_a_qemu_without_a_panic_device_gets_none() -> None:
    no_such_type = Refusal("Class 'pvpanic-pci' not found")
    answers = {"qom-list-properties": no_such_type}
    assert discover("alone", RECONNECT)[0].pvpanic
    assert not discover("alone", RECONNECT, **answers)[0].pvpanic


@pytest.mark.parametrize(
    ("paths", "word"),
    [
        ([RECONNECT], "reconnect"),
        ([f"{RECONNECT}-ms"], "reconnect-ms"),
        ([RECONNECT, f"{RECONNECT}-ms"], "reconnect-ms"),
    ],
)
def test_the_newer_word_for_reconnect_wins(paths: list[str], word: str) -> None:
    assert discover("alone", *paths)[0].reconnect == word


@pytest.mark.parametrize(
    ("package", "text"),
    [("", "10.0.13"), (" (Debian 1)", "10.0.13 ((Debian 1))"), ("v1", "10.0.13 (v1)")],
)
def test_a_version_reads_like_one(package: str, text: str) -> None:
    answer = {"qemu": {"major": 10, "minor": 0, "micro": 13}, "package": package}
    assert dialect.version_text(answer) == text
