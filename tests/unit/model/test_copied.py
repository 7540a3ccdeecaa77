"""What was copied, in a sentence for people."""

from __future__ import annotations

import pytest

from coloctl.model.copied import CopyReport, Method

pytestmark = pytest.mark.unit


def test_the_sentence_names_what_was_sent_and_why_it_was_everything() -> None:
    less = CopyReport(300 << 20, 5 << 16, 4 << 30, Method.DIFFERENCE)
    assert less.sentence() == (
        "320.0 KiB of 4.0 GiB differed and were copied; 300.0 MiB were compared."
    )
    assert CopyReport(0, 0, 512, Method.DIFFERENCE).sentence().startswith("0 B of 512 B ")
    full = CopyReport(4 << 30, 4 << 30, 4 << 30, Method.FULL)
    assert full.sentence() == "4.0 GiB of 4.0 GiB were copied, in full."
    why = CopyReport(4 << 30, 4 << 30, 4 << 30, Method.FULL, "there is no python")
    assert why.sentence().endswith(", in full: there is no python.")
