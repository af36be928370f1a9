"""Every compiled kernel against its numpy twin, and the packed format against the dense weight."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp import kernels
from onnxcomp.errors import KernelError
from onnxcomp.kernels import reference
from onnxcomp.kernels.packed_lists import entries_of

Floats = npt.NDArray[np.float32]


@st.composite
def products(draw: st.DrawFn) -> tuple[Floats, Floats, Floats | None, int]:
    """(x [tokens, in], weight [in, out], bias [out] or None, block_size), with tails everywhere."""
    tokens = draw(st.integers(0, 50))
    in_features = draw(st.integers(1, 40))
    out_features = draw(st.integers(1, 40))
    block_size = draw(st.sampled_from(reference.BLOCK_SIZES))
    sparsity = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept = rng.random((in_features, out_features)) >= sparsity
    weight = (rng.standard_normal((in_features, out_features)) * kept).astype(np.float32)
    bias = rng.standard_normal(out_features).astype(np.float32) if draw(st.booleans()) else None
    return rng.standard_normal((tokens, in_features)).astype(np.float32), weight, bias, block_size


@given(products())
@settings(max_examples=300, deadline=None)
def test_every_kernel_equals_its_twin(case: tuple[Floats, Floats, Floats | None, int]) -> None:
    x, weight, bias, block_size = case
    packed = kernels.pack(weight, block_size=block_size)
    expected = reference.sparse_matmul(x, packed, bias)
    # The error of summing n float32 products is at most n eps sum |x w| (Higham, section 3.1).
    magnitude = reference.sparse_matmul(abs(x), kernels.pack(abs(weight)), None)
    bound = (weight.shape[0] + 1) * np.finfo(np.float32).eps * (magnitude + abs(expected) + 1e-30)
    for isa in kernels.available_isas():
        y = kernels.sparse_matmul(x, packed, bias, isa=isa)
        assert y.dtype == np.float32
        assert y.shape == expected.shape
        assert (abs(y - expected) <= bound).all(), isa


@given(products())
@settings(max_examples=100, deadline=None)
def test_small_integers_are_exact(case: tuple[Floats, Floats, Floats | None, int]) -> None:
    # Sums below 2^24 leave nothing to round: any order, fused or not, gives the same bits.
    x, weight, bias, block_size = case
    x, weight = np.rint(4 * x), np.rint(4 * weight)
    bias = None if bias is None else np.rint(4 * bias)
    packed = kernels.pack(weight, block_size=block_size)
    expected = x @ weight if bias is None else x @ weight + bias
    for isa in kernels.available_isas():
        np.testing.assert_array_equal(kernels.sparse_matmul(x, packed, bias, isa=isa), expected)


@given(products())
@settings(max_examples=100, deadline=None)
def test_unpacking_gives_the_weight_back(
    case: tuple[Floats, Floats, Floats | None, int],
) -> None:
    _, weight, _, block_size = case
    packed = kernels.pack(weight, block_size=block_size)
    np.testing.assert_array_equal(reference.unpack(packed), weight)
    assert packed.values.any(axis=1).all(), "an entry of zeros is kept"


def test_packed_format_is_the_documented_one() -> None:
    weight = np.array([[1, 0, 0, 0, 5], [0, 0, 0, 0, 0], [2, 3, 0, 4, 0]], np.float32)
    packed = kernels.pack(weight, block_size=2)
    assert packed.values.tolist() == [[1, 0], [2, 3], [0, 4], [5, 0]]
    assert packed.indices.tolist() == [0, 2, 2, 0]
    assert packed.offsets.tolist() == [0, 2, 3, 4]
    assert packed.attributes == {
        "format_version": 1,
        "in_features": 3,
        "out_features": 5,
        "block_size": 2,
    }


def test_batch_dimensions_are_kept() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    packed = kernels.pack(np.eye(7, 4, dtype=np.float32))
    np.testing.assert_array_equal(kernels.sparse_matmul(x, packed), x[..., :4])


def test_strided_and_read_only_arrays_are_read() -> None:
    x = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    x.setflags(write=False)
    packed = kernels.pack(np.eye(4, dtype=np.float32)[:, ::-1])
    np.testing.assert_array_equal(kernels.sparse_matmul(x, packed), x[:, ::-1])


PACKED = kernels.pack(np.eye(6, 6, dtype=np.float32), block_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 3}, "block_size is 3, expected 1, 2, 4 or 16"),
        ({"in_features": 0}, r"x has shape \[1, 6\], expected \[..., 0\]"),
        ({"in_features": 7}, r"x has shape \[1, 6\], expected \[..., 7\]"),
        ({"out_features": 0}, "out_features is 0"),
        ({"out_features": 2**40}, "out_features is 1099511627776"),
        ({"out_features": 9}, "the length of offsets is 4, expected 6"),
        ({"indices": PACKED.indices + 1}, "an index is 6, expected 0 to 5 at position 5"),
        ({"indices": PACKED.indices - 1}, "an index is -1, expected 0 to 5 at position 0"),
        ({"indices": PACKED.indices[::-1]}, "an index is 4, expected more than the 5 before it"),
        ({"values": PACKED.values[1:]}, "the number of values is 10, expected 12"),
        ({"values": PACKED.values.astype(np.float64)}, "values is float64, expected float32"),
        ({"indices": PACKED.indices.astype(np.int64)}, "indices is int64, expected int32"),
        ({"offsets": PACKED.offsets.astype(np.int64)}, "offsets is int64, expected int32"),
        ({"offsets": PACKED.offsets + 1}, r"offsets\[0\] is 1, expected 0"),
        ({"offsets": PACKED.offsets[[0, 2, 1, 3]]}, "offsets is 2, expected at least 4"),
        ({"offsets": PACKED.offsets * 2}, "the last offset is 12, expected 6"),
    ],
)
def test_malformed_weights_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        kernels.sparse_matmul(np.ones((1, 6), np.float32), dataclasses.replace(PACKED, **change))


def test_inputs_without_features_are_refused() -> None:
    packed = dataclasses.replace(PACKED, in_features=0)
    with pytest.raises(KernelError, match="in_features is 0, expected 1 to"):
        kernels.sparse_matmul(np.ones((2, 0), np.float32), packed)


def test_misfit_arguments_are_refused() -> None:
    x = np.ones((1, 6), np.float32)
    with pytest.raises(KernelError, match="no kernel named mmx"):
        kernels.sparse_matmul(x, PACKED, isa="mmx")
    with pytest.raises(KernelError, match="length of bias"):
        kernels.sparse_matmul(x, PACKED, np.ones(5, np.float32))
    with pytest.raises(KernelError, match="x is float64"):
        kernels.sparse_matmul(x.astype(np.float64), PACKED)
    with pytest.raises(KernelError, match="bias is float64, expected float32"):
        kernels.sparse_matmul(x, PACKED, np.ones(6))
    with pytest.raises(KernelError, match="x has shape"):
        kernels.sparse_matmul(np.array(1, np.float32), PACKED)


@pytest.mark.parametrize(
    "weight", [np.ones(4, np.float32), np.ones((2, 2)), np.ones((0, 2), np.float32)]
)
def test_only_float32_matrices_are_packed(weight: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        kernels.pack(weight)


def test_more_entries_than_offsets_can_count_are_refused() -> None:
    kept = np.broadcast_to(np.True_, (2, 2**30))  # of one byte
    with pytest.raises(ValueError, match="2147483648 entries: offsets of 32 bits"):
        entries_of(kept)


def test_isas_agree_with_the_processor() -> None:
    features = kernels.cpu_features()
    isas = kernels.available_isas()
    assert isas[-1] == "portable"
    assert ("avx512" in isas) == features["avx512f"]
    assert ("avx2" in isas) == (features["avx2"] and features["fma"])
    assert ("neon" in isas) == features["neon"]


def test_importing_kernels_leaves_onnxruntime_alone() -> None:
    script = "import sys, onnxcomp.kernels; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
