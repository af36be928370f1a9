"""The operator library as onnxruntime has it: its errors, its sessions, its memory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from operator_models import CALLS, feed_of, model_of
from operator_sessions import open_model

from onnxcomp import kernels

# Found and expected, of what is wrong with a packed weight, an attribute and a type of each.
MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    ("SparseMatMul", {"block_size": 3}, "block_size is 3, expected 1, 2"),
    ("SparseMatMul", {"out_features": 9}, "the length of offsets is 5, expected 6"),
    ("SparseMatMul", {"values": CALLS["SparseMatMul"].constants["values"][1:]}, "number of values"),
    ("SparseMatMul", {"format_version": None}, "integer attribute format_version is missing"),
    ("SparseConv", {"block_size": 3}, "block_size is 3, expected 1, 2, 4 or 16"),
    ("SparseConv", {"in_channels": 0}, "in_channels is 0, expected 1 to 238609294"),
    ("SparseConv", {"kernel_shape": [2, 3]}, "an index is .*, expected 0 to 35 at position"),
    ("SparseConv", {"group": 3}, "groups is 3, expected a divisor of the 10 outputs"),
    ("SparseConv", {"relu": 2}, "relu is 2, expected 0 or 1"),
    ("SparseConv", {"relu": None}, "integer attribute relu is missing"),
    ("SparseConv", {"strides": [1, 0]}, "stride of the columns is 0, expected 1 to 32768"),
    ("SparseConv", {"kernel_shape": [3, 3, 3]}, "kernel_shape has 3 numbers, expected 1 or 2"),
    ("SparseConv", {"indices": CALLS["SparseConv"].constants["indices"] + 30}, "an index is"),
    ("PackSigns", {"comparison": 4}, "comparison is 4, expected 0 to 3"),
    ("PackSigns", {"comparison": None}, "integer attribute comparison is missing"),
    ("BinaryMaxPool", {"strides": [0, 1]}, r"strides\[0\] is 0, expected 1 to"),
    ("BinaryMaxPool", {"pads": [0, 0]}, "pads has 2 numbers, expected 4"),
    ("BinaryMaxPool", {"kernel_shape": None}, "kernel_shape, a list of integers, is missing"),
]
for _operator in ("SparseQLinearMatMul", "SparseMatMulIntegerToFloat"):
    MALFORMED += [(_operator, {"in_channels": 8}, "an index is 2, expected 0 to 1 at position")]
for _operator in ("SparseQLinearConv", "SparseConvIntegerToFloat"):
    MALFORMED += [
        (_operator, {"group": 3}, "groups is 3, expected a divisor of the 10 out_channels"),
        (_operator, {"kernel_shape": [2, 3]}, "an index is .*, expected 0 to 11"),
        (_operator, {"strides": [1, 0]}, "stride of the columns is 0, expected 1 to 32768"),
    ]
for _operator, _call in CALLS.items():
    if "x_zero_point" in _call.attributes:
        _offsets = _call.constants["offsets"]
        MALFORMED += [
            (_operator, {"block_rows": 2}, "block_rows is 2, expected 1 or 4"),
            (_operator, {"offsets": _offsets[:-1]}, "length of offsets is 3, expected 4"),
            (_operator, {"offsets": _offsets[::-1].copy()}, r"offsets\[0\] is .*, expected 0"),
            (_operator, {"scale": np.ones(9, np.float32)}, r"scale has shape \[9\], expected \[10"),
            (_operator, {"x_zero_point": 300}, "x_zero_point is 300, expected 0 to 255"),
        ]
    elif _operator.startswith(("BinaryConv", "BinaryGemm")):
        _weight = _call.constants["weight"]
        MALFORMED += [
            (_operator, {"format_version": 7}, "format_version is 7; this library reads 1"),
            (_operator, {"in_channels": 640}, "the number of words is .*, expected"),
            (_operator, {"weight": _weight[0]}, "weight has shape .*, expected rank 3"),
        ]


@pytest.mark.parametrize(("operator", "change", "message"), MALFORMED)
def test_what_a_model_has_wrong_is_told_with_the_name_of_the_node(
    operator: str, change: dict[str, Any], message: str
) -> None:
    call = CALLS[operator].changed(**change)
    said = f"onnxcomp.{operator} 'block/{operator}': .*{message}"
    with pytest.raises(Exception, match=said):
        open_model(model_of(call))
    said = f"onnxcomp.{operator} that makes '{operator}.Y': .*{message}"
    with pytest.raises(Exception, match=said):
        open_model(model_of(call, named=False))


@pytest.mark.parametrize("operator", CALLS)
def test_an_input_of_another_shape_is_told_with_the_name_of_the_node(operator: str) -> None:
    call = CALLS[operator]
    x = call.x[..., None] if operator == "BinaryMaxPool" else call.x.reshape(-1)[:1]
    named, unnamed = (open_model(model_of(call.changed(x=x), named=by)) for by in (True, False))
    shape = re.escape(str(list(x.shape)))
    with pytest.raises(Exception, match=rf"{operator} 'block/{operator}': .*{shape}, expected"):
        named.run(None, feed_of(call.changed(x=x)))
    with pytest.raises(Exception, match=rf"makes '{operator}.Y': .*{shape}, expected"):
        unnamed.run(None, feed_of(call.changed(x=x)))


@pytest.mark.parametrize(
    ("operator", "name"),
    [(operator, name) for operator, call in CALLS.items() for name in ("X", *call.constants)],
)
def test_an_input_of_another_type_is_told_with_the_name_of_the_node(
    operator: str, name: str
) -> None:
    call = CALLS[operator]
    doubles = (call.x if name == "X" else call.constants[name]).astype(np.float64)
    call = call.changed(**{"x" if name == "X" else name: doubles})
    said = rf"tensor\(double\).*{operator}\.{name}.*{operator}.*block/{operator}"
    with pytest.raises(Exception, match=said):
        open_model(model_of(call))


def test_shapes_that_cannot_be_inferred_are_told_with_the_name_of_the_node() -> None:
    call = CALLS["BinaryConv"].changed(strides=[1, 2, 3])
    with pytest.raises(Exception, match=r"BinaryConv 'block/BinaryConv': strides has 3 numbers"):
        open_model(model_of(call))


EVERY = model_of(*CALLS.values())


def run_all(*libraries: Path) -> list[Any]:
    return open_model(EVERY, *libraries).run(None, feed_of(*CALLS.values()))


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected) == len(CALLS)
    for y, of in zip(found, expected, strict=True):
        np.testing.assert_array_equal(y, of)


def test_a_session_may_be_given_the_library_twice_and_copies_of_it(tmp_path: Path) -> None:
    library = kernels.library_path()
    copy = tmp_path / f"copy{library.suffix}"
    shutil.copy(library, copy)
    once = run_all(library)
    assert all(y.size and np.ptp(y.astype(float)) > 0 for y in once)
    assert_same(run_all(library, library), once)
    assert_same(run_all(copy), once)
    assert_same(run_all(copy, library, copy), once)


def test_threads_create_and_run_sessions_at_the_same_time() -> None:
    expected = run_all()
    shared = open_model(EVERY)
    found: list[list[Any]] = []
    together = threading.Barrier(4)

    def work() -> None:
        together.wait()
        for _ in range(10):
            found.append(run_all())
            found.append(shared.run(None, feed_of(*CALLS.values())))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 80
    for outputs in found:
        assert_same(outputs, expected)


def in_a_fresh_process(*arguments: str) -> Any:
    script = Path(__file__).resolve().parent.parent / "operator_memory.py"
    command = [sys.executable, "-P", str(script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(script.parent)}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("operator", ["SparseQLinearConv", "SparseMatMul", "SparseConv"])
def test_missing_memory_is_told_with_the_name_of_the_node(operator: str) -> None:
    said = in_a_fresh_process("little", operator)
    refused = [line for line in said if line]
    assert 2 <= len(refused) < len(said)
    assert all(f"onnxcomp.{operator} 'block/{operator}': " in line for line in refused)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_leave_nothing_in_memory() -> None:
    # onnxruntime unloads the library after each one, so all that is not freed would add up.
    assert in_a_fresh_process("growth", "100", "150", "3") < 500


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_sessions_leave_nothing_in_memory() -> None:
    # The heap settles within some thousand sessions, those of onnxruntime's own operators too.
    growth = in_a_fresh_process("growth", "10000", "5000", "1")
    print(f"{growth:.1f} bytes for each session")
    assert growth < 300
