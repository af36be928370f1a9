"""Every source of samples: what it yields, and one clear line for what does not fit."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError
from onnxcomp.model import load_model


def graph_of(**inputs: tuple[Any, list[Any] | None]) -> gs.Graph:
    """A graph with the given inputs, (dtype, shape) by name, and no nodes."""
    return gs.Graph(inputs=[gs.Variable(name, *signature) for name, signature in inputs.items()])


IMAGE = {"input": (np.float32, ["N", 3, 4, 4])}
STATEFUL = {
    "x": (np.float32, ["N", 5]),
    "state": (np.float32, [2, "N", 3]),
    "rate": (np.int64, []),
}


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def feeds_of(source: Any, **inputs: tuple[Any, list[Any] | None]) -> list[dict[str, np.ndarray]]:
    return list(Calibration.from_source(source, graph_of(**inputs)).feeds())


def refusal(source: Any, **inputs: tuple[Any, list[Any] | None]) -> str:
    """The message with which a source is refused, one line."""
    with pytest.raises(CalibrationError) as caught:
        feeds_of(source, **inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- stacked .npz -----------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_stacked_arrays_give_back_each_sample_with_its_batch_axis(
    tmp_path: Path, save: Any, order: str
) -> None:
    rng = np.random.default_rng(0)
    x, state = rng.random((6, 5), np.float32), rng.random((6, 2, 1, 3), np.float32)
    arrays = {"x": np.asarray(x, order=order), "state": np.asarray(state, order=order)}
    save(tmp_path / "s.npz", rate=np.arange(6), **arrays)
    feeds = feeds_of(tmp_path / "s.npz", **STATEFUL)
    assert len(feeds) == 6
    for index, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], x[index : index + 1])
        np.testing.assert_array_equal(feed["state"], state[index])
        assert feed["rate"].shape == ()
        assert feed["rate"] == index


def test_stacked_arrays_may_keep_the_batch_axis(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).random((4, 1, 3, 4, 4), np.float32)
    feeds = feeds_of(write(tmp_path / "s.npz", input=stack), **IMAGE)
    np.testing.assert_array_equal(feeds[3]["input"], stack[3])


def test_limit_and_length_and_description(tmp_path: Path) -> None:
    path = write(tmp_path / "some.npz", input=np.zeros((7, 3, 4, 4), np.float32))
    whole = Calibration.from_source(path, graph_of(**IMAGE))
    some = Calibration.from_source(str(path), graph_of(**IMAGE), limit=5)
    assert (len(whole), len(some), len(list(some.feeds())), len(list(some.feeds(2)))) == (
        7,
        5,
        5,
        2,
    )
    assert some.description == "5 samples of some.npz"
    assert not some.synthetic
    one = Calibration.from_source(path, graph_of(**IMAGE), limit=1)
    assert one.description == "1 sample of some.npz"


def test_safe_casts_are_silent(tmp_path: Path) -> None:
    arrays = {
        "x": np.full((2, 5), 0.1),
        "state": np.ones((2, 2, 1, 3), np.float16),
        "rate": np.array([8000, 16000], np.int32),
    }
    feed = feeds_of(write(tmp_path / "s.npz", **arrays), **STATEFUL)[1]
    assert (feed["x"].dtype, feed["rate"].dtype) == (np.float32, np.int64)
    assert feed["x"][0, 0] == np.float32(0.1)
    assert feed["rate"] == 16000


def test_big_endian_samples_are_understood(tmp_path: Path) -> None:
    stack = np.arange(10, dtype=">f4").reshape(2, 5)
    feed = feeds_of(write(tmp_path / "s.npz", x=stack), x=(np.float32, ["N", 5]))[1]
    np.testing.assert_array_equal(feed["x"], [[5, 6, 7, 8, 9]])


GOOD = np.zeros((3, 3, 4, 4), np.float32)
REFUSED = [
    ({"inputs": GOOD}, "input 'input' is missing; 'inputs' is not one of its inputs"),
    ({}, "input 'input' is missing"),
    ({"input": GOOD, "inptu": GOOD}, "'inptu' is not an input; the model takes 'input'"),
    ({"input": GOOD[:, :, :3]}, "has shape [1, 3, 3, 4], the model takes 'input' [N, 3, 4, 4]"),
    ({"input": GOOD[:, 0]}, "has shape [1, 4, 4]"),
    ({"input": np.float32(1)}, "has no axis of samples"),
    ({"input": GOOD[:0]}, "holds no samples"),
    ({"input": GOOD.astype(complex)}, "has dtype complex128, the model takes float32"),
    ({"input": GOOD.astype(np.int64)}, "has dtype int64, the model takes float32"),
    ({"input": GOOD.astype(object)}, "Python objects, which are never loaded"),
    ({"input": GOOD.astype("S1")}, "has dtype |S1"),
    ({"input": GOOD + np.float32(np.nan)}, "sample 0, input 'input': holds NaN"),
    ({"input": GOOD + np.float32(np.inf)}, "holds NaN, infinity"),
    ({"input": GOOD.astype(np.float64) + 1e300}, "values beyond float32"),
]


@pytest.mark.parametrize(("arrays", "message"), REFUSED)
def test_stacked_arrays_that_do_not_fit(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    found = refusal(write(tmp_path / "bad.npz", **arrays), **IMAGE)
    assert message in found
    assert "bad.npz" in found


def test_a_float_array_for_an_integer_input_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.npz", ids=np.ones((2, 8), np.float32))
    message = refusal(path, ids=(np.int64, ["N", "L"]))
    assert "array 'ids': has dtype float32, the model takes int64" in message


def test_integers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.npz", ids=np.full((2, 8), 300))
    assert "values 300 to 300 do not fit uint8" in refusal(path, ids=(np.uint8, ["N", "L"]))


def test_unequal_counts_are_refused(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((3, 5), np.float32), "state": np.zeros((2, 2, 1, 3), np.float32)}
    message = refusal(write(tmp_path / "bad.npz", rate=np.zeros(3, int), **arrays), **STATEFUL)
    assert "unequal numbers of samples: 3 of 'rate', 3 of 'x', 2 of 'state'" in message


def test_nan_in_a_later_sample_is_found_where_it_is(tmp_path: Path) -> None:
    stack = GOOD.copy()
    stack[2, 1, 0, 0] = np.nan
    calibration = Calibration.from_source(
        write(tmp_path / "bad.npz", input=stack), graph_of(**IMAGE)
    )
    with pytest.raises(CalibrationError, match=r"bad\.npz, sample 2, input 'input': holds NaN"):
        list(calibration.feeds())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.booleans())
def test_a_damaged_file_never_shows_a_traceback(tmp_path: Path, data: Any, cut: bool) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged.npz"
    np.savez_compressed(path, input=rng.random((3, 3, 4, 4), np.float32))
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if cut:
        del content[where:]
    else:
        content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found: Any = 3  # also when the damage hits a byte that means nothing, such as a time stamp
    try:
        found = len(feeds_of(path, **IMAGE))
    except CalibrationError as error:
        found = str(error)
    assert found == 3 or "damaged.npz" in found


@pytest.mark.parametrize("content", [b"", b"not a zip file at all", b"PK\x03\x04" + bytes(40)])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    assert "x.npz: not a readable .npz file" in refusal(tmp_path / "x.npz", **IMAGE)


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("input.npy", b"hello")
    assert "array 'input' cannot be read" in refusal(tmp_path / "x.npz", **IMAGE)


@pytest.mark.parametrize("name", ["silero_vad_16k_op15", "dtln_1", "TFC_1W1A", "cifar10_resnet20"])
def test_exported_feeds_of_real_models_come_back(shared: Path, tmp_path: Path, name: str) -> None:
    """States with the batch in the middle, scalars, and a batch that is fixed to 1."""
    kit = module_at(shared / "kit" / "evaluate.py")
    kit.export_calibration(name, 5, tmp_path / "feeds.npz")
    graph = load_model(kit.model_path(name)).graph
    found = list(Calibration.from_source(tmp_path / "feeds.npz", graph).feeds())
    expected = kit.calibration(name, 5)
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert set(got) == set(want)
        for key, array in want.items():
            np.testing.assert_array_equal(got[key], array, strict=True)


def module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# --- other sources ----------------------------------------------------------------------------


def test_a_folder_of_npz_files_is_one_feed_a_file_sorted_by_name(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        write(tmp_path / f"{index}.npz", ids=np.full((1, 4 + index), index))
    feeds = feeds_of(tmp_path, ids=(np.int64, ["N", "L"]))
    assert [feed["ids"].shape for feed in feeds] == [(1, 4), (1, 5), (1, 6)]
    assert [feed["ids"][0, 0] for feed in feeds] == [0, 1, 2]


def test_a_folder_of_npz_files_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", ids=np.ones((1, 4)))
    assert "a.npz, input 'ids': has dtype float64" in refusal(tmp_path, ids=(np.int64, [1, 4]))
    np.savez(tmp_path / "a.npz", ids=np.array([[None]]))
    assert "a.npz: array 'ids' cannot be read" in refusal(tmp_path, ids=(np.int64, [1, 4]))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "no .npz files; a folder of images needs a calibration.toml" in refusal(
        tmp_path, **IMAGE
    )


FUNCTIONS = """
import numpy as np
from neighbour import SIZE
calls = []

def feeds():
    calls.append(1)
    for index in range(3):
        yield {"x": np.full((1, SIZE), len(calls) * 10 + index, np.float32)}

def returns_list():
    return [{"x": np.zeros((1, SIZE), np.float32)}]

def fails():
    yield {"x": np.zeros((1, SIZE), np.float32)}
    raise KeyError("no\\nmore")

def nothing():
    return iter(())

def endless():
    while True:
        yield {"x": np.zeros((1, SIZE), np.float32)}

def odd():
    yield np.zeros(3)

def number():
    return 3

CONSTANT = 1
"""
X = {"x": (np.float32, ["N", 5])}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("SIZE = 5\n")
    (tmp_path / "my_feeds.py").write_text(FUNCTIONS)
    return tmp_path / "my_feeds.py"


def test_a_function_is_called_anew_for_every_iteration(script: Path) -> None:
    calibration = Calibration.from_source(f"{script}:feeds", graph_of(**X))
    assert calibration.description == "3 samples of my_feeds.py:feeds"
    first = [feed["x"][0, 0] for feed in calibration.feeds()]
    second = [feed["x"][0, 0] for feed in calibration.feeds()]
    assert [value % 10 for value in first] == [0, 1, 2]
    assert [later - earlier for earlier, later in zip(first, second, strict=True)] == [10, 10, 10]
    assert len(feeds_of(f"{script}:returns_list", **X)) == 1


def test_an_endless_function_needs_a_limit(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.calibration.MOST_SAMPLES", 20)
    limited = Calibration.from_source(f"{script}:endless", graph_of(**X), limit=4)
    assert len(limited) == 4
    with pytest.raises(CalibrationError, match="yields more than 20 samples; set a limit"):
        len(Calibration.from_source(f"{script}:endless", graph_of(**X)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "my_feeds.py:fails: raised KeyError: 'no\\nmore'"),
        ("nothing", "my_feeds.py:nothing: holds no samples"),
        ("odd", "sample 0: a feed is a dict of input name to array, not ndarray"),
        ("number", "raised TypeError: 'int' object is not iterable"),
        ("missing", "has no function 'missing'"),
        ("CONSTANT", "has no function 'CONSTANT'"),
    ],
)
def test_functions_that_do_not_work(script: Path, name: str, message: str) -> None:
    assert message in refusal(f"{script}:{name}", **X)


def test_scripts_that_do_not_work(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "syntax.py").write_text("def (:\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    assert "broken.py: raised ModuleNotFoundError" in refusal(f"{tmp_path}/broken.py:f", **X)
    assert "syntax.py: raised SyntaxError" in refusal(f"{tmp_path}/syntax.py:f", **X)
    assert "leaves.py: raised SystemExit: 3" in refusal(f"{tmp_path}/leaves.py:f", **X)
    assert "absent.py: no such file" in refusal(f"{tmp_path}/absent.py:f", **X)
    assert "name the function too" in refusal(tmp_path / "broken.py", **X)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2\n")
    assert "absent.npz: no such file or folder" in refusal(tmp_path / "absent.npz", **X)
    assert "data.csv: not a source of samples" in refusal(tmp_path / "data.csv", **X)


def test_python_feeds_lists_and_generators_run_again_and_again() -> None:
    rows = [{"x": np.full((1, 5), i, np.float32)} for i in range(3)]
    for source in (rows, iter(rows), (row for row in rows)):
        calibration = Calibration.from_source(source, graph_of(**X))
        for _ in range(2):
            assert [feed["x"][0, 0] for feed in calibration.feeds()] == [0, 1, 2]


def test_python_feeds_that_do_not_fit() -> None:
    x = np.zeros((1, 5), np.float32)
    assert "input 'x' is missing; 'X' is not" in refusal([{"X": x}], **X)
    assert "'y' is not an input" in refusal([{"x": x, "y": x}], **X)
    assert "has shape [1, 4]" in refusal([{"x": x[:, :4]}], **X)
    assert "sample 0, input 'x': has dtype <U1" in refusal([{"x": np.full((1, 5), "a")}], **X)
    assert "is empty" in refusal([{"x": x[:0]}], **X)
    assert "not an array" in refusal([{"x": [[1.0], [1.0, 2.0]]}], **X)
    assert "not dict" in refusal({"x": x}, **X)
    assert "holds no samples" in refusal([], **X)
    with pytest.raises(CalibrationError, match="limit must be at least 1"):
        Calibration.from_source([{"x": x}], graph_of(**X), limit=0)


def test_empty_axes_other_than_the_batch_are_allowed() -> None:
    """A cache of past keys is empty at the first token."""
    feeds = feeds_of(
        [{"past": np.zeros((1, 2, 0, 4), np.float32)}], past=(np.float32, ["N", 2, "P", 4])
    )
    assert feeds[0]["past"].shape == (1, 2, 0, 4)


def test_inputs_that_cannot_be_fed_say_so() -> None:
    sequence = gs.Graph(inputs=[gs.Variable("s", np.float32, None, type="sequence_type")])
    with pytest.raises(CalibrationError, match="input 's' is a sequence_type"):
        Calibration.from_source(None, sequence)
    with pytest.raises(CalibrationError, match="input 'b' is of type BFLOAT16"):
        Calibration.from_source(None, graph_of(b=(16, [1, 2])))


@pytest.mark.parametrize("shape", [(2**60, 3, 4, 4), (-1, 3, 4, 4), (3, 3, 4, -4), (3, 3)])
def test_a_header_that_lies_about_the_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "x.npz", input=GOOD)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("input.npy", content + GOOD.tobytes())
    graph = graph_of(input=(np.float32, ["N", "C", "H", "W"]))
    with pytest.raises(CalibrationError, match=r"x\.npz"):
        list(Calibration.from_source(path, graph).feeds())
