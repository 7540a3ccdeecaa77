"""A supervisor that follows gets the pair and the facts of the start, whatever changed since."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import at_most
from support.fakes import make_spec

from coloctl import pairfile
from coloctl.colo.ground import Facts, NodeFacts, placed, same_on_both
from coloctl.errors import PreconditionFailed
from coloctl.host.records import Machine
from coloctl.model.dialect import Dialect, ReturnPath
from coloctl.model.pair import (
    NODES,
    DiskSpec,
    FencingSpec,
    GuestSpec,
    NicSpec,
    NodeSpec,
    PairSpec,
    TapSpec,
)
from coloctl.model.tls import TlsSpec
from coloctl.supervisor.started import (
    PAIR_FILE,
    SOURCE,
    STARTED,
    Started,
    remember,
    remembered,
    write,
)
from coloctl.vm import Binary

pytestmark = pytest.mark.unit

PAIR = """
name = "web"
[guest]
memory = "64MiB"
[[disk]]
id = "disk0"
image = { a = "a.qcow2", b = "b.qcow2" }
[node.a]
address = "127.0.0.1"
[node.b]
address = "127.0.0.2"
"""

#: A file name of any bytes, as Python holds it: those that are no UTF-8 are surrogates.
RAW = st.binary(min_size=1, max_size=9).filter(lambda raw: not set(raw) & {0, 47})
PATHS = RAW.map(lambda raw: Path("/srv") / os.fsdecode(raw))


def each(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, Any]]:
    return st.fixed_dictionaries(dict.fromkeys(NODES, values))


def some(kind: type, **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw any value of a dataclass; numbers are finite, because JSON has no others."""
    hints = get_type_hints(kind)
    by_type = {
        float: st.floats(allow_nan=False, allow_infinity=False),
        Path: PATHS,
        Path | None: st.none() | PATHS,
        frozenset[Path]: st.frozensets(PATHS, max_size=2),
    }
    drawn = {
        one.name: by_type.get(hints[one.name], st.from_type(hints[one.name]))
        for one in fields(kind)
    }
    return st.builds(kind, **{**drawn, **fixed})


TAPS = some(TapSpec, ifname=each(st.text(max_size=4)))
PAIRS = some(
    PairSpec,
    guest=some(GuestSpec),
    disks=st.lists(some(DiskSpec, image=each(PATHS)), max_size=2).map(tuple),
    nics=st.lists(some(NicSpec, tap=st.none() | TAPS), max_size=2).map(tuple),
    nodes=each(some(NodeSpec)),
    fencing=some(FencingSpec, options=each(st.dictionaries(st.text(), st.text(), max_size=2))),
    tls=some(
        TlsSpec, folders=st.just({}) | each(PATHS), names=st.just({}) | each(st.text(max_size=4))
    ),
    **{
        name: some(get_type_hints(PairSpec)[name])
        for name in ("replication", "checkpoint", "detection", "arbiter", "policy", "verify")
    },
)
BINARIES = some(
    Binary, dialect=some(Dialect), machines=st.dictionaries(st.text(), st.text(), max_size=2)
)
MACHINES = st.none() | some(Machine)
FACTS = some(Facts, nodes=each(some(NodeFacts, binary=BINARIES, machine=MACHINES)))


@at_most(60)
@given(pair=PAIRS, facts=st.none() | FACTS)
def test_any_pair_is_read_back_as_it_was(
    pair: PairSpec, facts: Facts | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    write(folder, Started(pair, facts))
    found = placed(pair, facts) if facts else pair
    assert remembered(folder) == Started(found, facts)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "etc" / "web.toml"
    source.parent.mkdir()
    source.write_text(PAIR)
    return source


def test_a_pair_file_that_was_changed_since_changes_nothing(tmp_path: Path, source: Path) -> None:
    pair = pairfile.load(source)
    remember(tmp_path, Started(pair))
    source.write_text("something else")
    (tmp_path / PAIR_FILE).write_text("and here too")
    assert remembered(tmp_path) == Started(pair)


def test_the_files_are_for_their_user_alone(tmp_path: Path, source: Path) -> None:
    umask = os.umask(0)
    try:
        remember(tmp_path, Started(pairfile.load(source)))
    finally:
        os.umask(umask)
    for name in (PAIR_FILE, STARTED):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600, name


def test_the_folder_of_an_earlier_coloctl_has_a_copy_of_the_pair_file(
    tmp_path: Path, source: Path
) -> None:
    remember(tmp_path, Started(pairfile.load(source)))
    (tmp_path / STARTED).unlink()
    source.write_text("something else")
    found = remembered(tmp_path)
    assert found is not None and found.facts is None
    assert found.pair.source == source
    assert found.pair.disks[0].image["a"] == source.parent / "a.qcow2"
    (tmp_path / SOURCE).unlink()
    assert remembered(tmp_path) is None


def test_a_pair_without_a_file_is_known_too(tmp_path: Path) -> None:
    remember(tmp_path, Started(make_spec()))
    assert remembered(tmp_path) == Started(make_spec())
    assert not (tmp_path / PAIR_FILE).exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "Expecting value"),
        (lambda text: text[: len(text) // 2], "is damaged: "),
        (lambda text: "[1]", r"the document is \[1\]"),
        (lambda text: text.replace('"name": "web"', '"name": 4'), "pair.name is 4"),
        (lambda text: text.replace('"channel": "fd"', '"channel": "owl"'), "'owl'"),
        (lambda text: text.replace("disks", "discs"), "pair.disks is missing"),
        (lambda text: "\xff\xfe", "is damaged: "),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, source: Path, damage: Any, words: str) -> None:
    remember(tmp_path, Started(pairfile.load(source)))
    file = tmp_path / STARTED
    file.write_text(damage(file.read_text()), encoding="latin-1")
    with pytest.raises(PreconditionFailed, match=words) as raised:
        remembered(tmp_path)
    assert str(file) in raised.value.message
    assert raised.value.hint == f"`rm {file}`: pair.toml beside it is read then"
    file.unlink()
    assert remembered(tmp_path) == Started(pairfile.load(source))


def test_keys_of_another_version_are_no_damage(tmp_path: Path, source: Path) -> None:
    pair = pairfile.load(source)
    remember(tmp_path, Started(pair))
    file = tmp_path / STARTED
    document = json.loads(file.read_text())
    document["pair"]["guest"]["colour"] = "blue"
    del document["pair"]["verify"]
    file.write_text(json.dumps(document))
    assert remembered(tmp_path) == Started(pair)


def test_a_coloctl_that_wants_to_know_more_of_the_binary_asks_it(tmp_path: Path) -> None:
    dialect = Dialect("11.1.3", ReturnPath.FORBIDDEN, "reconnect-ms", pvpanic=False)
    facts = same_on_both(Binary(Path("/opt/qemu"), dialect), "tcg")
    write(tmp_path, Started(make_spec(), facts))
    file = tmp_path / STARTED
    document = json.loads(file.read_text())
    there = document["facts"]["nodes"]["b"]["binary"]["dialect"]
    there["colour"] = "blue"  # of a newer one
    file.write_text(json.dumps(document))
    assert remembered(tmp_path) == Started(make_spec(), facts)
    del there["pvpanic"]
    file.write_text(json.dumps(document))
    assert remembered(tmp_path) == Started(make_spec())


#: What a coloctl wrote that had one QEMU for both nodes, with its dialect as it was then.
EARLIER_FACTS: dict[str, Any] = {
    "binary": {
        "path": "/usr/bin/qemu-system-x86_64",
        "dialect": {
            "version": "10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)",
            "return_path": "forbidden",
            "reconnect": "reconnect-ms",
            "switchover_bandwidth": True,
            "x_colo": True,
            "pvpanic": True,
        },
    },
    "accel": "kvm",
    "devices": ["/dev/vg0/web"],
}


@pytest.mark.parametrize("facts", [EARLIER_FACTS, {**EARLIER_FACTS, "devices": None}])
def test_facts_of_one_qemu_for_both_nodes_are_found_anew(
    tmp_path: Path, source: Path, facts: Any
) -> None:
    pair = pairfile.load(source)
    remember(tmp_path, Started(pair))
    file = tmp_path / STARTED
    file.write_text(json.dumps(json.loads(file.read_text()) | {"facts": facts}))
    assert remembered(tmp_path) == Started(pair)
