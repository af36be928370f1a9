"""MACs in whole blocks of channels, and levels that save them, against sums by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from onnxcomp.allocation import Choice
from onnxcomp.channels import find_channels
from onnxcomp.errors import RecipeError
from onnxcomp.graph_resources import macs_of
from onnxcomp.importing import from_proto
from onnxcomp.kernel_blocks import Blocked, allocate_in_blocks, blocked_macs
from onnxcomp.resources import Product, Resource, Size, Table
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import model_of

RNG = np.random.default_rng(0)
BLOCK = 16
SIZES = {"a": 32, "b": 64, "small": 16}


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("target", "block"), [("x86-vnni", 16), ("x86-avx2", 8), ("arm64", 1), ("qdq-generic", 1)]
)
def test_channels_of_layers_with_blocks_are_rounded_up_to_them(target: str, block: int) -> None:
    model = model_of(
        """net (float[1, 3, 4, 4] x) => (float[1, 5, 8, 8] y) {
            [first] a = Conv (x, w1)  [second] b = Conv <pads = [1, 1, 1, 1]> (a, w2)
            [up] c = ConvTranspose <strides = [2, 2]> (b, w3)  [last] y = Conv (c, w4) }""",
        **{"w1": normal(32, 3, 1, 1), "w2": normal(48, 32, 3, 3)},
        **{"w3": normal(48, 64, 2, 2), "w4": normal(5, 64, 1, 1)},
    )
    graph = from_proto(model)
    infer_shapes(graph)
    channels = find_channels(graph)

    blocks = resolve_target(target).blocks
    found = blocked_macs(graph, channels, {"x": (1, 3, 4, 4)}, blocks)

    assert found.macs.value() == found.in_blocks.value()
    assert found.macs.value() == macs_of(graph, channels, {"x": (1, 3, 4, 4)}).value()
    for a, b, c in itertools.product((1, 16, 23, 32), (8, 40, 48), (17, 56, 64)):
        kept = {"first": a / 32, "second": b / 48, "up": c / 64}
        p, q, r = (-(-n // block) * block for n in (a, b, c))
        taps = 4  # each input pixel of the ConvTranspose makes 2 x 2
        by_hand = 16 * (3 * p + 9 * p * q) + 16 * taps * b * c + 64 * 5 * r
        assert found.in_blocks.value(kept) == pytest.approx(by_hand)


def choice(name: str, cost: float) -> Choice:
    """Cost grows with the square of what is removed."""
    size = SIZES[name]
    costs = cost * (np.arange(size + 1) / size) ** 2
    return Choice.of_removal(name, costs, multiple=8, max_sparsity=0.75)


def chain() -> Blocked:
    """Layers 3 -> a -> b -> small -> 5 of one pixel."""
    a, b, small = (Size(parts={name: n}) for name, n in SIZES.items())
    pairs = [(3.0, (a,)), (1.0, (a, b)), (1.0, (b, small)), (5.0, (small,))]
    plain = [Product(coefficient=n, sizes=sizes) for n, sizes in pairs]
    rounded = [
        Table(
            sizes=sizes,
            knots=tuple(np.asarray([0, size.at({})]) for size in sizes),
            values=n * np.prod(np.ix_(*([0, size.at({})] for size in sizes)), axis=0)
            if len(sizes) == 1
            else n * np.multiply.outer(*([0, size.at({})] for size in sizes)),
            step=BLOCK,
        )
        for n, sizes in pairs
    ]
    return Blocked(Resource(terms=tuple(plain)), Resource(terms=tuple(rounded)))


def macs(a: int, b: int, small: int) -> int:
    return 3 * a + a * b + b * small + 5 * small


def in_blocks(*levels: int) -> int:
    a, b, small = (-(-n // BLOCK) * BLOCK for n in levels)
    return macs(a, b, small)


WHOLE = macs(32, 64, 16)


@pytest.mark.parametrize("share", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
@pytest.mark.parametrize("prices", [(1, 1, 1), (5, 1, 1), (1, 5, 0.01), (0.1, 3, 1)])
def test_levels_are_near_the_cheapest_of_which_blocks_save_most_of_the_macs(
    share: float, prices: tuple[float, ...]
) -> None:
    choices = [choice(name, price) for name, price in zip(SIZES, prices, strict=True)]
    blocked = chain()

    levels, note = allocate_in_blocks(choices, blocked.macs, share * WHOLE, blocked)

    def cost(plan: tuple[int, ...]) -> float:
        return float(
            sum(c.cost[c.levels.tolist().index(n)] for c, n in zip(choices, plan, strict=True))
        )

    def keeps(plan: tuple[int, ...]) -> bool:
        saved = WHOLE - macs(*plan)
        return macs(*plan) <= share * WHOLE and WHOLE - in_blocks(*plan) >= 0.8 * saved - 1e-6

    found = tuple(levels[name] for name in SIZES)
    plans = [p for p in itertools.product(*(c.levels.tolist() for c in choices)) if keeps(p)]
    assert note == ""
    assert keeps(found)
    assert cost(found) <= 1.25 * min(map(cost, plans))


@pytest.mark.parametrize("seed", range(6))
def test_choices_of_different_sizes_keep_to_their_levels(seed: int) -> None:
    """Of many layers, most of them too narrow for two blocks: limits refuse most steps."""
    rng = np.random.default_rng(seed)
    sizes = {f"g{at}": int(n) for at, n in enumerate(rng.integers(1, 9, 12) * 8)}
    axes = [Size(parts={name: n}) for name, n in sizes.items()]
    terms = [Product(coefficient=1.0, sizes=pair) for pair in itertools.pairwise(axes)]
    macs_of_chain = Resource(terms=tuple(terms))
    knots = [
        (np.asarray([0, s.at({})]), np.asarray([0, t.at({})])) for s, t in itertools.pairwise(axes)
    ]
    tables = [
        Table(sizes=t.sizes, knots=k, values=np.multiply.outer(*k), step=BLOCK)
        for t, k in zip(terms, knots, strict=True)
    ]
    blocked = Blocked(macs_of_chain, Resource(terms=tuple(tables)))
    choices = [
        Choice.of_removal(name, rng.uniform(0.1, 9) * (np.arange(n + 1) / n) ** 2, multiple=8)
        for name, n in sizes.items()
    ]

    levels, note = allocate_in_blocks(choices, macs_of_chain, 0.6 * macs_of_chain.value(), blocked)

    assert all(levels[c.name] in c.levels for c in choices)
    kept = {c.name: levels[c.name] / c.size for c in choices}
    assert macs_of_chain.value(kept) <= 0.6 * macs_of_chain.value()
    limit, most = blocked.kept_by(0.8)
    assert note or limit.value(kept) <= most * (1 + 1e-9)


def test_where_blocks_cannot_meet_a_budget_the_note_says_how_much_saves_time() -> None:
    blocked = chain()
    choices = [choice("a", 1.0), Choice.of_removal("small", np.zeros(17), multiple=8)]

    levels, note = allocate_in_blocks(choices[1:], blocked.macs, 0.85 * WHOLE, blocked)
    assert levels == {"small": 8}
    assert "little of the MACs saved" in note

    levels, note = allocate_in_blocks(choices, blocked.macs, 0.45 * WHOLE, blocked)
    assert in_blocks(levels["a"], 64, levels["small"]) < WHOLE
    assert "at least" in note


def test_a_budget_that_nothing_meets_is_refused() -> None:
    blocked = chain()
    with pytest.raises(RecipeError, match="cannot be met"):
        allocate_in_blocks([choice("a", 1.0)], blocked.macs, 0.2 * WHOLE, blocked)
