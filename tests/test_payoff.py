"""Levels that pay, by tables of numbers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.allocation import Choice
from onnxcomp.payoff import that_pay
from onnxcomp.resources import Product, Resource, Size, Table

INPUTS = 64


def channels(name: str, count: int) -> Size:
    return Size(parts={name: count})


def macs(*names: str) -> Resource:
    """Of one layer for each group of 32, beside a large layer that nothing shrinks."""
    terms = [Product(coefficient=INPUTS, sizes=(channels(name, 32),)) for name in names]
    return Resource(terms=tuple(terms), constant=1e6)


def times(name: str, milliseconds: dict[int, float], step: int = 0) -> Table:
    return Table(
        sizes=(channels(name, 32),),
        knots=(np.asarray(list(milliseconds)),),
        values=np.asarray(list(milliseconds.values())),
        step=step,
    )


def choice(name: str) -> Choice:
    return Choice.of_removal(name, np.arange(33.0), multiple=8)


def test_parts_of_blocks_do_not_pay() -> None:
    latency = Resource(terms=(times("a", {16: 0.5, 32: 1.0}, step=16),), constant=100.0)

    found, reasons = that_pay({"a": choice("a")}, latency, macs("a"))

    assert found["a"].levels.tolist() == [16, 32]  # 8 take as long as 16, but less than 32
    assert found["a"].cost.tolist() == [16, 0]
    assert reasons == {
        "a": "removing 8 of 32 saves no time on this target: 0 % of what its layers take"
    }


@pytest.mark.parametrize(
    ("at_8", "pays"),
    [(1.0, False), (0.85, False), (0.80, True), (0.25, True), (1.3, False)],
)
def test_a_level_pays_by_a_quarter_of_the_share_of_its_macs(at_8: float, pays: bool) -> None:
    """8 of 32 channels left save 75 % of the MACs: 18.75 % of the time are the least."""
    latency = Resource(terms=(times("a", {8: at_8, 32: 1.0}),))

    found, reasons = that_pay({"a": choice("a")}, latency, macs("a"))

    assert (8 in found["a"].levels) == pays == (not reasons)
    assert found["a"].levels[-1] == 32


def test_groups_are_judged_by_their_own_layers_with_the_others_whole() -> None:
    shared = Table(
        sizes=(channels("a", 32), channels("b", 32)),
        knots=(np.asarray([8, 32]), np.asarray([8, 32])),
        values=np.asarray([[0.1, 0.2], [1.0, 1.0]]),  # time falls with a alone
    )
    terms = (Product(coefficient=1.0, sizes=(channels("a", 32), channels("b", 32))),)

    found, reasons = that_pay(
        {"a": choice("a"), "b": choice("b")}, Resource(terms=(shared,)), Resource(terms=terms)
    )

    assert found["a"].levels.tolist() == [8, 16, 24, 32]
    assert found["b"].levels.tolist() == [32]
    assert list(reasons) == ["b"]


def test_groups_without_measured_layers_keep_their_levels() -> None:
    found, reasons = that_pay({"a": choice("a")}, Resource(terms=(), constant=3.0), macs("a"))
    assert found["a"].levels.tolist() == [8, 16, 24, 32]
    assert not reasons
