"""Fidelity against exact figures, and evaluators that fail in one line."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcomp.errors import CalibrationError, OnnxcompError, UnsupportedModel
from onnxcomp.evaluation import Reference, load_evaluator, score, sqnr_db
from onnxcomp.report import OutputFidelity
from onnxcomp.testing import open_any, small_mlp

EXACT = math.inf


class Answers:
    """A session whose answers are given: what is compared is the arithmetic, not a model."""

    def __init__(self, *answers: list[Any]) -> None:
        self.inputs = ["x"]
        self.outputs = [f"y{i}" for i in range(len(answers[0]))]
        self._answers = list(answers)

    def run(self, feed: dict[str, Any], outputs: Any = None) -> list[Any]:
        return list(self._answers[int(feed["x"])])


def fidelity(a: list[Any], b: list[Any]) -> OutputFidelity:
    """Of one output whose answers to sample after sample are ``a`` and ``b``."""
    feeds = [{"x": np.array(i)} for i in range(len(a))]
    one, other = (Answers(*([value] for value in values)) for values in (a, b))
    reference = Reference.of(one, feeds, synthetic=False)  # type: ignore[arg-type]
    (output,) = reference.compare(other).outputs  # type: ignore[arg-type]
    return output


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


# --- numbers ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(hnp.arrays(np.float32, (2, 3), elements=st.integers(-50, 50)), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_figures_are_those_of_exact_rationals(a: list[Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = [x + rng.integers(-3, 4, x.shape).astype(np.float32) for x in a]
    x = [Fraction(float(v)) for v in np.concatenate(a).ravel()]
    y = [Fraction(float(v)) for v in np.concatenate(b).ravel()]
    signal, other = sum(v * v for v in x), sum(v * v for v in y)
    noise = sum((v - w) ** 2 for v, w in zip(x, y, strict=True))
    dot = sum(v * w for v, w in zip(x, y, strict=True))
    found = fidelity(a, b)
    if noise == 0:
        assert found.sqnr_db == EXACT
    elif signal == 0:
        assert found.sqnr_db == -math.inf
    else:
        assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)
    if signal and other:
        assert found.cosine == pytest.approx(float(dot) / math.sqrt(signal * other), abs=1e-12)
    assert found.max_abs_difference == max(abs(v - w) for v, w in zip(x, y, strict=True))
    best = [np.argmax(np.concatenate(values), axis=1) for values in (a, b)]
    rows = best[0] == best[1]
    assert found.top1_agreement == 100 * sum(rows) / len(rows)


@pytest.mark.parametrize(
    ("signal", "noise", "wanted"),
    [
        (1, 0, math.inf),
        (0, 0, math.inf),
        (0, 1, -math.inf),
        (1, math.inf, -math.inf),
        (100, 1, 20.0),
    ],
)
def test_sqnr_of_energies(signal: float, noise: float, wanted: float) -> None:
    assert sqnr_db(signal, noise) == wanted


def test_energies_are_summed_in_float64() -> None:
    a, b = np.full(100_000, 1e18, np.float32), np.full(100_000, 1.0001e18, np.float32)
    wanted = -20 * math.log10(float(b[0]) / float(a[0]) - 1)
    assert fidelity([a], [b]).sqnr_db == pytest.approx(wanted, abs=1e-6)
    half = np.full(4, 60000, np.float16)
    assert fidelity([half], [half - np.float16(32)]).max_abs_difference == 32


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8, np.uint8, bool])
def test_integers_differ_by_one_or_not_at_all(dtype: Any) -> None:
    top = np.array([np.iinfo(dtype).max if dtype is not bool else True, 1], dtype)
    other = np.array([top[0] - 1 if dtype is not bool else False, 1], dtype)
    assert fidelity([top], [top]).sqnr_db == EXACT
    found = fidelity([top], [other])
    assert found.sqnr_db < EXACT, "beyond 2^53 float64 takes neighbours for equal"
    assert found.max_abs_difference == 1
    assert found.top1_agreement is None, "integers are no scores"


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_outputs_without_elements_are_equal(dtype: Any) -> None:
    found = fidelity([np.zeros((0, 4), dtype)], [np.zeros((0, 4), dtype)])
    assert (found.sqnr_db, found.cosine, found.max_abs_difference) == (EXACT, 1, 0)
    assert found.top1_agreement is None
    some = [np.zeros((0, 2), np.float32), floats(1, 2)[None]]
    mixed = fidelity(some, some)
    assert mixed.top1_agreement == 100


# --- what is not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_both_models_is_no_difference(odd: float) -> None:
    a, b = floats(1, odd, 2), floats(1, odd, 1)
    assert fidelity([a], [a]).sqnr_db == EXACT
    found = fidelity([a], [b])
    assert found.sqnr_db == pytest.approx(10 * math.log10(5))
    assert found.max_abs_difference == 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1.0, math.nan),
        (math.nan, 1.0),
        (1.0, math.inf),
        (math.inf, -math.inf),
        (math.inf, 3e38),
        (math.nan, math.inf),
    ],
)
def test_what_is_finite_in_one_model_only_is_the_worst_difference(a: float, b: float) -> None:
    found = fidelity([floats(1, a), floats(1, 1)], [floats(1, b), floats(1, 1)])
    assert found.sqnr_db == -math.inf
    assert found.max_abs_difference == math.inf
    assert "not finite" in found.note


@pytest.mark.parametrize("b", [floats(1, 2, 3), floats(1, 2)[None], [floats(1, 2)], None])
def test_another_shape_or_kind_is_the_worst_difference(b: Any) -> None:
    found = fidelity([floats(1, 2)], [b])
    assert found.sqnr_db == -math.inf
    assert "differ" in found.note


# --- class scores -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "scores"),
    [
        ((4, 2), True),
        ((4, 10, 1, 1), True),
        ((4, 1), False),
        ((10,), False),
        ((4, 10, 2), False),
        ((4, 0), False),
    ],
)
def test_only_rows_of_floats_look_like_class_scores(shape: tuple[int, ...], scores: bool) -> None:
    values = np.random.default_rng(0).random(shape, np.float32)
    assert fidelity([values], [values]).top1_agreement == (100 if scores else None)


# --- other kinds of answers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
        (np.array(["a"], object), np.array(["a", "b"], object), False),
        ([floats(1), floats(2, 3)], [floats(1), floats(2, 3)], True),
        ([floats(1), floats(2, 3)], [floats(1)], False),
        ([floats(1), floats(2, 3)], [floats(1), floats(2)], False),
        ([{1: 0.5, 2: 0.5}], [{1: 0.5, 2: 0.5}], True),
        ([{1: 0.5, 2: 0.5}], [{1: 0.5, 3: 0.5}], False),
        ({"a": floats(1)}, {"a": floats(1)}, True),
        (None, None, True),
        (None, floats(1), False),
        ([], [], True),
    ],
)
def test_strings_sequences_maps_and_absent_optionals_are_compared(
    a: Any, b: Any, same: bool
) -> None:
    assert (fidelity([a], [b]).sqnr_db == EXACT) is same


def test_sequences_and_maps_of_floats_are_measured_like_tensors() -> None:
    a, b = [floats(3, 4), floats(0)], [floats(3, 4), floats(0.05)]
    assert fidelity([a], [b]).sqnr_db == pytest.approx(40, abs=1e-5)
    maps = [[{0: 3.0, 1: 4.0}]], [[{0: 3.0, 1: 4.05}]]
    assert fidelity(*maps).sqnr_db == pytest.approx(40, abs=1e-5)


# --- references -------------------------------------------------------------------------------


def test_a_model_equals_itself_and_not_another(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((2, 16), np.float32)} for _ in range(3)]
    reference = Reference.of(open_any(small_mlp()), feeds, synthetic=True)
    same = reference.compare(open_any(small_mlp()))
    assert (same.samples, same.synthetic, same.sqnr_db) == (3, True, EXACT)
    assert same.top1_agreement == 100
    assert same == reference.identical()
    assert reference.compare(open_any(small_mlp(seed=1))).sqnr_db < 10


def test_only_as_many_answers_are_kept_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = {"x": np.zeros((1, 16), np.float32)}  # 64 bytes in, 40 out
    monkeypatch.setattr("onnxcomp.evaluation.LARGEST_REFERENCE", 104 * 2)
    session = open_any(small_mlp())
    assert len(Reference.of(session, [feed] * 5, synthetic=True).feeds) == 2
    monkeypatch.setattr("onnxcomp.evaluation.LARGEST_REFERENCE", 1)
    assert len(Reference.of(session, [feed] * 5, synthetic=True).feeds) == 1
    with pytest.raises(CalibrationError, match="no samples"):
        Reference.of(session, [], synthetic=True)


def test_kept_answers_do_not_keep_the_memory_of_a_session() -> None:
    feed = {"x": np.zeros((1, 16), np.float32)}
    reference = Reference.of(open_any(small_mlp()), [feed], synthetic=True)
    assert all(value.flags.owndata for answer in reference.answers for value in answer)


def test_a_model_that_does_not_run_says_so_in_one_line() -> None:
    session = open_any(small_mlp())
    with pytest.raises(UnsupportedModel, match="cannot run the model") as caught:
        Reference.of(session, [{"x": np.zeros((1, 15), np.float32)}], synthetic=True)
    assert "\n" not in str(caught.value)


# --- evaluators -------------------------------------------------------------------------------


def test_an_evaluator_is_loaded_and_gets_the_session(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import numpy as np\n"
        "def accuracy(session):\n"
        "    y, = session.run(None, {'x': np.zeros((1, 16), np.float32)})\n"
        "    return float(y.shape[1])\n"
        "def broken(session): return 1 / 0\n"
        "def text(session): return 'good'\n"
        "def nan(session): return float('nan')\n"
    )
    session = open_any(small_mlp())
    assert score(load_evaluator(f"{tmp_path}/task.py:accuracy"), session) == 10
    for name, said in {"broken": "division", "text": "good", "nan": "nan"}.items():
        with pytest.raises(UnsupportedModel, match=said) as caught:
            score(load_evaluator(f"{tmp_path}/task.py:{name}"), session)
        assert "\n" not in str(caught.value)
    for source in ("task.py", f"{tmp_path}/task.py:nothing", f"{tmp_path}/no.py:accuracy"):
        with pytest.raises(OnnxcompError, match="--evaluate"):
            load_evaluator(source)
