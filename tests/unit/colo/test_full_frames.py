"""Goal: an address that is not there and a frame that gets lost are named; doubt is not.

Method: the measurement runs as on two machines, its two programs on the loopback of this one.
"""

from __future__ import annotations

import pytest

from coloctl.colo import frames
from coloctl.errors import PreconditionFailed
from coloctl.host import open_host
from coloctl.host.linktest import FrameFigures

pytestmark = pytest.mark.unit

LOST = "A frame of 9000 bytes from {} does not reach {}."


async def test_full_frames_are_tried_both_ways() -> None:
    async with open_host("local") as host:
        figures = await frames.measured(host, host, "127.0.0.1")
        assert figures.mtu == figures.back_mtu > 1500
        assert figures.full_frame and figures.back_frame
        await frames.require_address(host, "127.0.0.1", "a")


async def test_an_address_that_the_machine_does_not_have_is_named() -> None:
    async with open_host("local") as host:
        with pytest.raises(PreconditionFailed) as caught:
            await frames.require_address(host, "192.0.2.1", "b")
        name = host.machine.name
        assert caught.value.message == (
            f"{name} has no address 192.0.2.1, which node.b.address names."
        )
        with pytest.raises(PreconditionFailed, match=f"{name} has no address 192"):
            await frames.measured(host, host, "192.0.2.1")


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        (FrameFigures(9000, True, 9000, True), ""),
        (FrameFigures(9000, False, 1500, True), LOST.format("hv1", "hv2")),
        (FrameFigures(1500, True, 9000, False), LOST.format("hv2", "hv1")),
        (FrameFigures(9000, False), ""),  # not even a small one came back: a filter drops them
    ],
)  # fmt: skip
def test_a_frame_that_gets_lost_is_named_where_smaller_ones_pass(
    figures: FrameFigures, sentence: str
) -> None:
    assert frames.lost_frame("hv1", "hv2", figures) == sentence
