"""`coloctl certs`, as an operator types it: files, documents, exit codes and refusals."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from coloctl.certs import issue
from coloctl.cli.verbs import cli
from coloctl.errors import ColoctlError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLOCTL_CONFIG_DIR", str(tmp_path))
    return tmp_path


def certs(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["certs", *words], standalone_mode=False)
    assert result.exception is None, result.exception
    assert (result.return_value or 0) == code
    return result


def refusal(*words: str) -> ColoctlError:
    error = CliRunner().invoke(cli, ["certs", *words], standalone_mode=False).exception
    assert isinstance(error, ColoctlError)
    assert error.hint
    return error


def test_init_makes_a_ca_once_and_installs_this_machines_own(config: Path) -> None:
    here = socket.gethostname().partition(".")[0]
    first = json.loads(certs("init", f"{here}=10.66.0.1", "hv9=10.66.0.2", "-f", "json").output)
    assert first["ca_made"] and [one["made"] for one in first["machines"]] == [True, True]
    assert [one["installed"] for one in first["machines"]] == [str(config / "tls"), None]
    installed = {one.name: one.read_bytes() for one in (config / "tls").iterdir()}
    assert installed == {
        one.name: one.read_bytes() for one in (config / "ca/machines" / here).iterdir()
    }
    again = json.loads(certs("init", "hv9=10.66.0.2", "-f", "json").output)
    assert not again["ca_made"] and not again["machines"][0]["made"]
    assert again["machines"][0]["serial"] == first["machines"][1]["serial"]


def test_renew_makes_those_that_are_named_or_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    certs("init", "hv1=10.66.0.1", "hv2=10.66.0.2")
    assert "No certificate ends soon" in certs("renew").output
    by_name = json.loads(certs("renew", "hv2", "-f", "json").output)["machines"]
    assert [one["name"] for one in by_name] == ["hv2"]
    assert by_name[0]["addresses"] == ["10.66.0.2"]
    ending = json.loads(certs("renew", "--before", "10000h", "-f", "json").output)["machines"]
    assert [one["name"] for one in ending] == ["hv1", "hv2"]


def test_show_ends_with_3_for_one_that_ends_soon_and_1_for_one_that_ended(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certs("init", "hv1=10.66.0.1")
    assert "addresses 10.66.0.1" in certs("show").output
    for days, code, words in ((20, 3, "days left"), (-1, 1, "(ended)")):
        monkeypatch.setattr(issue.new_machine, "__defaults__", (days,))
        certs("renew", "hv1")
        assert words in certs("show", str(config / "ca/machines/hv1"), code=code).output


def test_what_does_not_fit_is_refused_with_a_hint(tmp_path: Path) -> None:
    assert "There is no certificate here" in refusal("show").message
    assert "There is no CA in" in refusal("renew").message
    assert "is named twice" in refusal("init", "hv1", "hv1=10.0.0.1").message
    assert not (tmp_path / "ca").exists()
    certs("init", "hv1")
    assert "has made no certificate for hv2" in refusal("renew", "hv2").message
