"""The list of machines: what is written comes back, and a damaged file is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.examples import at_most

from coloctl import hostlist
from coloctl.check.link import pause_ms
from coloctl.errors import PreconditionFailed
from coloctl.host.linktest import LinkFigures
from coloctl.hostlist import ListedHost

pytestmark = pytest.mark.unit

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLOCTL_CONFIG_DIR", str(tmp_path))
    return tmp_path


@at_most(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.tuples(NAMES, st.lists(NAMES).map(tuple)), max_size=4))
def test_what_is_written_comes_back(rows: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    hosts = {name: ListedHost(name, at, addresses) for name, (at, addresses) in rows.items()}
    hostlist.save(hosts)
    assert hostlist.load() == hosts


def test_no_file_is_an_empty_list(config: Path) -> None:
    assert hostlist.load() == {}
    assert not list(config.iterdir())


@pytest.mark.parametrize(
    "text", ["hv1", "[hv1]", "hv1 = 3", '[hv1]\nat = "local"\naddresses = "x"', "[hv1]\nat = 5"]
)
def test_a_damaged_list_is_a_sentence(config: Path, text: str) -> None:
    (config / "hosts.toml").write_text(text)
    with pytest.raises(PreconditionFailed, match=r"hosts\.toml is damaged") as caught:
        hostlist.load()
    assert caught.value.hint


def test_a_slower_link_means_a_longer_pause() -> None:
    gigabit = LinkFigures(1500, True, 1500, True, 0.2, 115.0)
    ten_gigabit = LinkFigures(9000, True, 9000, True, 0.1, 1150.0)
    assert 12 < pause_ms(ten_gigabit, 0) < pause_ms(ten_gigabit, 16) < pause_ms(gigabit, 16)
    assert 160 < pause_ms(gigabit, 16) < 180
