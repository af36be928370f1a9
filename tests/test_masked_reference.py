"""The oracle of pruning, checked on models that were pruned by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from masked_reference import Contradiction, contradictions, masked_reference, pruned_shapes
from onnxcomp.testing import model_of

Arrays = dict[str, npt.NDArray[Any]]
Cuts = list[tuple[str, int, list[int]]]


def drawn(seed: int = 0, /, **shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def report(constants: Cuts, activations: Cuts) -> list[dict[str, Any]]:
    places = [
        {"tensor": tensor, "axis": axis, "indices": indices, "constant": number == 0}
        for number, cuts in enumerate((constants, activations))
        for tensor, axis, indices in cuts
    ]
    return [{"group": "hidden", "places": places}]


def answer(model: onnx.ModelProto, seed: int = 1) -> npt.NDArray[np.float32]:
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feed = {
        value.name: rng.normal(size=[d if isinstance(d, int) else 2 for d in value.shape])
        for value in session.get_inputs()
    }
    (found,) = session.run(None, {name: value.astype(np.float32) for name, value in feed.items()})
    return np.asarray(found)


def cut(arrays: Arrays, cuts: Cuts) -> Arrays:
    for tensor, axis, indices in cuts:
        arrays = arrays | {tensor: np.delete(arrays[tensor], indices, axis)}
    return arrays


@dataclass(frozen=True)
class Case:
    """A model's text, its constants, and what is removed of constants and activations."""

    text: str
    arrays: Arrays
    constants: Cuts
    activations: Cuts
    after: Callable[[str], str] = lambda text: text


def conv() -> Case:
    lost = [1, 4]
    arrays = drawn(
        w1=(6, 3, 3, 3), b1=(6,), s=(6,), t=(6,), m=(6,), dw=(6, 1, 3, 3), w2=(4, 6, 1, 1)
    )
    arrays["v"] = np.linspace(0.5, 1.5, 6, dtype=np.float32)
    return Case(
        """g (float[2, 3, 7, 7] x) => (float[N, 4, 3, 3] y) {
            c1 = Conv (x, w1, b1) n = BatchNormalization (c1, s, t, m, v) a = Sigmoid (n)
            d = Conv <group = 6> (a, dw) y = Conv (d, w2) }""",
        arrays,
        [(name, 0, lost) for name in ("w1", "b1", "s", "t", "m", "v", "dw")] + [("w2", 1, lost)],
        [(name, 1, lost) for name in ("c1", "n", "a", "d")],
        lambda text: text.replace("group = 6", "group = 4"),
    )


def layer_norm() -> Case:
    lost = [0, 5, 6]
    return Case(
        """g (float[2, 3, 4] x) => (float[2, 3, 4] y) {
            h = MatMul (x, w1) hb = Add (h, b1) n = LayerNormalization (hb, s, t)
            y = MatMul (n, w2) }""",
        drawn(w1=(4, 8), b1=(8,), s=(8,), t=(8,), w2=(8, 4)),
        [("w1", 1, lost), ("b1", 0, lost), ("s", 0, lost), ("t", 0, lost), ("w2", 0, lost)],
        [("h", 2, lost), ("hb", 2, lost), ("n", 2, lost)],
    )


def root_mean_square() -> Case:
    """As exporters write it; the exponential makes ones of removed zeros."""
    lost = [2, 3]
    return Case(
        """g (float[2, 4] x) => (float[2, 5] y) {
            h = MatMul (x, w1) e = Exp (h) q = Pow (e, two) m = ReduceMean <axes = [-1]> (q)
            r = Sqrt (m) d = Div (e, r) n = Mul (d, s) y = MatMul (n, w2) }""",
        drawn(w1=(4, 7), s=(7,), w2=(7, 5)) | {"two": np.float32([2])},
        [("w1", 1, lost), ("s", 0, lost), ("w2", 0, lost)],
        [(name, 1, lost) for name in ("h", "e", "q", "d", "n")],
    )


def group_norm() -> Case:
    """The second and the first channel of the two groups of three."""
    lost = [1, 3]
    return Case(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[2, 3, 5] x) => (float[2, 4, 5] y) {
            c = Conv (x, w1, b1) n = GroupNormalization <num_groups = 2> (c, s, t)
            y = Conv (n, w2) }""",
        drawn(w1=(6, 3, 1), b1=(6,), s=(6,), t=(6,), w2=(4, 6, 1)),
        [(name, 0, lost) for name in ("w1", "b1", "s", "t")] + [("w2", 1, lost)],
        [("c", 1, lost), ("n", 1, lost)],
    )


def group_norm_of_instances() -> Case:
    lost, rows = [1, 4], [*range(5, 10)]
    return Case(
        """g (float[2, 3, 5] x) => (float[2, 4, 5] y) {
            c = Conv (x, w1, b1) r = Reshape (c, split) i = InstanceNormalization (r, one, zero)
            n = Reshape (i, joined) k = Mul (n, s) y = Conv (k, w2) }""",
        drawn(w1=(6, 3, 1), b1=(6,), one=(2,), zero=(2,), s=(6, 1), w2=(4, 6, 1))
        | {"split": np.asarray([0, 2, -1]), "joined": np.asarray([2, -1, 5])},
        [("w1", 0, lost), ("b1", 0, lost), ("s", 0, lost), ("w2", 1, lost)],
        [("c", 1, lost), ("r", 2, rows), ("i", 2, rows), ("n", 1, lost), ("k", 1, lost)],
    )


def extremes() -> Case:
    lost = [0, 2]
    return Case(
        """g (float[2, 3] x) => (float[2, 1] y) {
            p = MatMul (x, w) h = Add (p, b) top = ReduceMax <axes = [1]> (h)
            low = ReduceMin <axes = [1]> (h) mean = ReduceMean <axes = [1]> (h)
            l = ReduceLogSumExp <axes = [1]> (h) a = Add (top, mean) s = Add (a, l)
            y = Sub (s, low) }""",
        drawn(w=(3, 5)) | {"b": np.float32([9, -8, -9, -7, -6])},  # zeros would be the largest
        [("w", 1, lost), ("b", 0, lost)],
        [("p", 1, lost), ("h", 1, lost)],
    )


def attention() -> Case:
    """The sigmoid makes halves of zeros; queries and keys meet without a weight."""
    lost = [1, 2]
    return Case(
        """g (float[2, 3, 4] x) => (float[2, 3, 3] y) {
            q = MatMul (x, wq) sq = Sigmoid (q) k = MatMul (x, wk) sk = Sigmoid (k)
            t = Transpose <perm = [0, 2, 1]> (sk) a = MatMul (sq, t) y = Softmax (a) }""",
        drawn(wq=(4, 6), wk=(4, 6)),
        [("wq", 1, lost), ("wk", 1, lost)],
        [("q", 2, lost), ("sq", 2, lost), ("k", 2, lost), ("sk", 2, lost), ("t", 1, lost)],
    )


def einsum() -> Case:
    case = attention()
    text = case.text.replace(
        "t = Transpose <perm = [0, 2, 1]> (sk) a = MatMul (sq, t)",
        'a = Einsum <equation = "bic,bjc->bij"> (sq, sk)',
    )
    return Case(text, case.arrays, case.constants, case.activations[:-1])


def denominators() -> Case:
    """Neither a constant nor a computed denominator may become zero."""
    lost = [3]
    return Case(
        """g (float[2, 4] x) => (float[2, 2] y) {
            h = MatMul (x, w1) d = Div (h, c) p = MatMul (x, w2) e = Div (d, p) f = Mul (e, m)
            y = MatMul (f, w3) }""",
        drawn(w1=(4, 5), c=(5,), w2=(4, 5), m=(5,), w3=(5, 2)),
        [("w1", 1, lost), ("c", 0, lost), ("w2", 1, lost), ("m", 0, lost), ("w3", 0, lost)],
        [(name, 1, lost) for name in ("h", "d", "p", "e", "f")],
    )


def recurrent() -> Case:
    lost = [0, 3]
    gates = [gate * 4 + index for gate in range(4) for index in lost]
    both = [half * 16 + index for half in range(2) for index in gates]
    return Case(
        """g (float[5, 2, 3] x) => (float[5, 1, 2, 2] y) {
            h = LSTM <hidden_size = 4> (x, w, r, b) y = MatMul (h, head) }""",
        drawn(w=(1, 16, 3), r=(1, 16, 4), b=(1, 32), head=(4, 2)),
        [("w", 1, gates), ("r", 1, gates), ("r", 2, lost), ("b", 1, both), ("head", 0, lost)],
        [("h", 3, lost)],
        lambda text: text.replace("hidden_size = 4", "hidden_size = 2"),
    )


CASES = [
    *(conv, layer_norm, root_mean_square, group_norm, group_norm_of_instances, extremes),
    *(attention, einsum, denominators, recurrent),
]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_model_pruned_by_hand_equals_its_reference(make: Callable[[], Case]) -> None:
    case = make()
    original = model_of(case.text, **case.arrays)
    pruned = model_of(case.after(case.text), **cut(case.arrays, case.constants))
    removed = report(case.constants, case.activations)

    expected = answer(masked_reference(original, removed))

    scale = np.abs(expected).max()
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(answer(pruned) / scale, expected / scale, atol=2e-6)
    assert np.abs(answer(original) - expected).max() > 1e-2 * scale
    assert contradictions(original, removed) == []


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_other_indices_in_the_report_are_found(make: Callable[[], Case]) -> None:
    """The last constant cut at other indices: either reading finds it."""
    case = make()
    original = model_of(case.text, **case.arrays)
    pruned = answer(model_of(case.after(case.text), **cut(case.arrays, case.constants)))
    tensor, axis, indices = case.constants[-1]
    other = [(index + 1) % case.arrays[tensor].shape[axis] for index in indices]

    removed = report([*case.constants[:-1], (tensor, axis, other)], case.activations)

    told = answer(masked_reference(original, removed))
    assert contradictions(original, removed) or np.abs(told - pruned).max() > 1e-2


def test_every_reader_of_a_merged_bias_has_its_own_mask() -> None:
    """Two layers share a bias; the report lists what either loses."""
    arrays = drawn(w1=(3, 4), w2=(3, 4), b=(4,), v1=(4, 2), v2=(4, 2))
    text = """g (float[2, 3] x) => (float[2, 2] y) {
        p = MatMul (x, w1) pb = Add (p, b) pr = Relu (pb) py = MatMul (pr, v1)
        q = MatMul (x, w2) qb = Add (q, b) qr = Relu (qb) qy = MatMul (qr, v2) y = Add (py, qy) }"""
    first: Cuts = [("w1", 1, [0]), ("b", 0, [0]), ("v1", 0, [0])]
    second: Cuts = [("w2", 1, [2, 3]), ("b", 0, [2, 3]), ("v2", 0, [2, 3])]
    acts: Cuts = [(n, 1, [0]) for n in ("p", "pb", "pr")]
    acts += [(n, 1, [2, 3]) for n in ("q", "qb", "qr")]
    apart = text.replace("Add (p, b)", "Add (p, b1)").replace("Add (q, b)", "Add (q, b2)")
    sliced = cut(arrays, first[:1] + first[2:] + second[:1] + second[2:])
    b = sliced.pop("b")
    pruned = model_of(apart, **sliced, b1=b[1:], b2=b[:2])
    original = model_of(text, **arrays)

    reference = masked_reference(original, report(first + second, acts))

    np.testing.assert_allclose(answer(pruned), answer(reference), atol=1e-6)
    with pytest.raises(Contradiction, match="'b'"):
        masked_reference(original, report([*first, *second[:1], *second[2:]], acts))


def test_layers_of_a_recurrent_net_may_share_a_bias() -> None:
    """Of zeros, as exporters merge them; behind an Identity it is shared all the same."""
    arrays = drawn(w1=(1, 16, 3), w2=(1, 16, 4), r1=(1, 16, 4), r2=(1, 16, 4), b=(1, 32), v=(4, 2))
    text = """g (float[5, 2, 3] x) => (float[2, 2] y) {
        c = Identity (b) p, ph = LSTM <hidden_size = 4> (x, w1, r1, b)
        one = Constant <value_ints = [1]> ()
        s = Squeeze (p, one) q, h, state = LSTM <hidden_size = 4> (s, w2, r2, c)
        z = Constant <value_ints = [0]> () t = Squeeze (h, z) y = MatMul (t, v) }"""

    def gates(units: list[int], count: int) -> list[int]:
        return [4 * gate + unit for gate in range(count) for unit in units]

    first: Cuts = [("w1", 1, gates([0], 4)), ("r1", 1, gates([0], 4)), ("r1", 2, [0])]
    first += [("w2", 2, [0])]
    second: Cuts = [("w2", 1, gates([2, 3], 4)), ("r2", 1, gates([2, 3], 4)), ("r2", 2, [2, 3])]
    second += [("v", 0, [2, 3])]
    acts: Cuts = [("p", 3, [0]), ("ph", 2, [0]), ("s", 2, [0])]
    acts += [("q", 3, [2, 3]), ("h", 2, [2, 3]), ("state", 2, [2, 3]), ("t", 1, [2, 3])]
    acts += [("c", 1, gates([2, 3], 8))]
    sliced = cut(arrays, first + second)
    b = sliced.pop("b")
    b1, b2 = (np.delete(b, gates(units, 8), 1) for units in ([0], [2, 3]))
    apart = text.replace("c = Identity (b)", "c = Identity (b2)").replace("r1, b)", "r1, b1)")
    apart = apart.replace("4> (x", "3> (x").replace("4> (s", "2> (s")
    pruned = model_of(apart, **sliced, b1=b1, b2=b2)
    original = model_of(text, **arrays)
    merged: Cuts = [("b", 1, gates([0, 2, 3], 8))]

    removed = report(first + second + merged, acts)

    np.testing.assert_allclose(
        answer(pruned), answer(masked_reference(original, removed)), atol=1e-6
    )
    assert not contradictions(original, removed)
    wrong = report([("w1", 1, gates([1], 4)), *first[1:], *second, *merged], acts)
    assert contradictions(original, wrong)


def test_what_only_a_shape_reads_may_stay() -> None:
    text = """g (float[2, 3] x) => (float[2, 2] y) {
        h = MatMul (x, w) r = Relu (h) l = Transpose (h) n = Shape <end = 1> (l)
        z = ConstantOfShape (n) y0 = MatMul (r, v) m = ReduceSum <keepdims = 0> (z)
        y = Add (y0, m) }"""
    original = model_of(text, **drawn(w=(3, 4), v=(4, 2)))
    cuts: Cuts = [("w", 1, [0]), ("v", 0, [0])]

    assert not contradictions(original, report(cuts, [("h", 1, [0]), ("r", 1, [0])]))
    assert contradictions(original, report(cuts, [("h", 1, [0])]))


def test_readers_of_a_computed_constant_may_lose_different_indices_of_it() -> None:
    text = """g (float[2, 3] x) => (float[2, 2] y) {
        z = Neg (b) p = MatMul (x, w1) pb = Add (p, z) py = MatMul (pb, v1)
        q = MatMul (x, w2) qb = Add (q, z) qy = MatMul (qb, v2) y = Add (py, qy) }"""
    shapes = {"w1": (3, 4), "w2": (3, 4), "b": (4,), "v1": (4, 2), "v2": (4, 2)}
    original = model_of(text, **drawn(**shapes))
    first: Cuts = [("w1", 1, [0]), ("v1", 0, [0])]
    second: Cuts = [("w2", 1, [2, 3]), ("v2", 0, [2, 3])]
    acts: Cuts = [("p", 1, [0]), ("pb", 1, [0]), ("q", 1, [2, 3]), ("qb", 1, [2, 3])]

    assert not contradictions(original, report(first + second, acts))
    assert contradictions(original, report(first + second, acts[:-1]))


def test_softmax_over_a_removed_axis_is_refused() -> None:
    arrays = drawn(w=(3, 4), v=(4, 2))
    model = model_of(
        """g (float[2, 3] x) => (float[2, 2] y) {
            h = MatMul (x, w) s = Softmax (h) y = MatMul (s, v) }""",
        **arrays,
    )
    cuts = report([("w", 1, [0]), ("v", 0, [0])], [("h", 1, [0]), ("s", 1, [0])])

    with pytest.raises(Contradiction, match="Softmax"):
        masked_reference(model, cuts)


@pytest.mark.parametrize(("axis", "index"), [(2, 0), (-1, 0), (0, 4), (1, -1)])
def test_place_that_does_not_exist_is_refused(axis: int, index: int) -> None:
    model = model_of(
        "g (float[2, 3] x) => (float[2, 4] y) { y = MatMul (x, w) }", **drawn(w=(3, 4))
    )

    with pytest.raises(Contradiction, match="'w'"):
        masked_reference(model, report([("w", axis, [index])], []))


def test_pruned_shapes_are_those_of_the_pruned_model() -> None:
    case = conv()
    pruned = model_of(case.after(case.text), **cut(case.arrays, case.constants))
    inferred = onnx.shape_inference.infer_shapes(pruned).graph
    actual = {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in inferred.value_info
    }
    actual |= {t.name: numpy_helper.to_array(t).shape for t in inferred.initializer}

    told = pruned_shapes(
        model_of(case.text, **case.arrays), report(case.constants, case.activations)
    )

    assert told == {name: actual[name] for name in told}
    assert set(told) == {"w1", "b1", "s", "t", "m", "v", "dw", "w2", "c1", "n", "a", "d"}
