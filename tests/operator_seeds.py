"""Inputs of the fuzz targets of operators (kernels/fuzz), and what numpy makes of each."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels import (
    reference,
    reference_binary,
    reference_sparse_conv,
    reference_sparse_int8,
)
from onnxcomp.kernels.reference_binary import COMPARISONS, WORD_BITS
from onnxcomp.kernels.sparse_int8 import Scaling, Window, pack_int8

Case = tuple[bytes, npt.NDArray[Any]]
"""An input, and what has to come of it."""


def concatenated(*arrays: npt.NDArray[Any]) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def small_integers(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.int8]:
    return rng.integers(-128, 128, shape).astype(np.int8)


def window_bytes(kernel_shape: tuple[int, ...], window: Window) -> bytes:
    """Of a convolution by sparse weights."""
    sizes: list[int] = []
    for axis in range(2):
        sizes += [kernel_shape[axis], window.strides[axis], window.dilations[axis]]
        sizes += [window.pads[axis], window.pads[axis + 2]]
    return bytes(sizes)


def random_window(
    rng: np.random.Generator, kernel_shape: tuple[int, int], room: int
) -> tuple[Window, tuple[int, int]]:
    """A window, and an image of about `room` pixels a row that it fits into."""
    steps = [int(step) for step in rng.integers(1, 4, 4)]
    window = Window(strides=(steps[0], steps[1]), dilations=(steps[2], steps[3]), pads=(1, 2, 0, 3))
    down, across = kernel_shape
    return window, (steps[2] * (down - 1) + 3, steps[3] * (across - 1) + room)


def sparse_input(
    packed: reference.PackedWeights | reference_sparse_conv.PackedConv,
    x: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int8] | None,
    *,
    window: Window | None = None,
    relu: bool = False,
) -> bytes:
    """The bytes of one input of fuzz-sparse."""
    flags = (window is not None) + 2 * (bias is not None) + 4 * relu
    if isinstance(packed, reference_sparse_conv.PackedConv):
        sizes = [packed.in_channels, packed.out_channels, packed.groups, packed.block_size]
        header = bytes([flags, *sizes, len(x), *x.shape[2:]])
        header += window_bytes(packed.kernel_shape, window or Window())
    else:
        sizes = [packed.in_features, packed.out_features, 1, packed.block_size]
        header = bytes([flags, *sizes, len(x), 0, 0])
    header += struct.pack("<3H", packed.values.size, packed.indices.size, packed.offsets.size)
    weights = (packed.offsets, packed.indices, packed.values.astype(np.int8))
    return header + concatenated(*weights, x, *([] if bias is None else [bias]))


def sparse_weight(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    kept = rng.random(shape) < rng.choice([0.0, 0.1, 0.5, 1.0], p=[0.1, 0.3, 0.3, 0.3])
    return (small_integers(rng, *shape) * kept).astype(np.float32)


def sliced_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Single weights of so many inputs that these come in slices."""
    dense = small_integers(rng, 150, 21) * (rng.random((150, 21)) < 0.4)
    packed = reference.pack(dense.astype(np.float32), block_size=1)
    for tokens in (47, 64, 70, 114):
        x = small_integers(rng, tokens, 150)
        expected = reference.sparse_matmul(x.astype(np.float32), packed)
        yield sparse_input(packed, x, None), expected.astype(np.float32)
    dense = small_integers(rng, 36, 16, 3, 3) * (rng.random((36, 16, 3, 3)) < 0.4)
    for groups, width in itertools.product((1, 2), (3, 9, 21)):
        conv = reference_sparse_conv.pack_conv(
            dense.astype(np.float32), block_size=1, groups=groups
        )
        window = Window(pads=(1, 1, 1, 1))
        x = small_integers(rng, 1, groups * 16, 5, width)
        expected = reference_sparse_conv.sparse_conv(x.astype(np.float32), conv, None, window)
        yield sparse_input(conv, x, None, window=window), expected.astype(np.float32)


def sparse_cases() -> Iterator[Case]:
    """Every number of columns in a tile and of tokens in a panel, and convolutions."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (3, 5), (8, 8), (9, 16), (17, 23), (40, 7), (60, 33)]
    for block_size, (rows, columns) in itertools.product(reference.BLOCK_SIZES, shapes):
        packed = reference.pack(sparse_weight(rng, rows, columns), block_size=block_size)
        tokens = int(rng.choice([0, 1, 2, 5, 15, 16, 17, 18, 33, 48]))
        x, bias = small_integers(rng, tokens, rows), small_integers(rng, columns)
        given = bias if rng.random() < 0.5 else None
        expected = reference.sparse_matmul(
            x.astype(np.float32), packed, None if given is None else given.astype(np.float32)
        )
        yield sparse_input(packed, x, given), expected.astype(np.float32)
    yield from sliced_cases(rng)
    widths = itertools.cycle([3, 7, 8, 9, 13, 16, 17, 30, 75])
    kernels = [(1, 1), (1, 2), (3, 3), (1, 5), (4, 3)]
    for block_size, shape, groups in itertools.product(reference.BLOCK_SIZES, kernels, (1, 2)):
        outputs, inputs = groups * int(rng.integers(1, 20)), int(rng.integers(1, 7))
        conv = reference_sparse_conv.pack_conv(
            sparse_weight(rng, outputs, inputs, *shape), block_size=block_size, groups=groups
        )
        window, image = random_window(rng, shape, next(widths))
        if shape[0] == 1 and shape[1] < 3:  # read where it lies, some of it with rows that end
            window, image = Window(), (3, 17 if shape[1] == 2 else 7 * groups)
        x = small_integers(rng, int(rng.integers(1, 3)), groups * inputs, *image)
        relu = groups == 2
        result = reference_sparse_conv.sparse_conv(
            x.astype(np.float32), conv, None, window, relu=relu
        )
        yield sparse_input(conv, x, None, window=window, relu=relu), result.astype(np.float32)


def random_scaling(
    rng: np.random.Generator, outputs: int, terms: int, *, to_float: bool, with_bias: bool
) -> Scaling:
    """Sums that reach both ends of the codes, or beyond 2^31 when they are scaled."""
    spread = rng.choice([0.5, 1.0, 2.0, 1e6]) / (1 + 74 * np.sqrt(terms))
    return Scaling(
        scale=(spread * rng.uniform(0.1, 1, outputs)).astype(np.float32),
        bias=rng.integers(-20000, 20000, outputs).astype(np.int32) if with_bias else None,
        x_zero_point=int(rng.choice([0, 1, 128, 255])),
        y_zero_point=None if to_float else int(rng.choice([0, 7, 128, 255])),
    )


def int8_input(
    x: npt.NDArray[np.uint8],
    packed: reference_sparse_int8.PackedInt8,
    scaling: Scaling,
    window: Window | None,
) -> bytes:
    """The bytes of one input of fuzz-sparse_int8."""
    to_float, with_bias = scaling.y_zero_point is None, scaling.bias is not None
    header = bytes(
        [
            (window is not None) + 2 * to_float + 4 * with_bias,
            *(packed.out_channels, packed.in_channels, packed.groups, packed.block_rows),
            *(scaling.x_zero_point, scaling.y_zero_point or 0),
            *(len(x), *(x.shape[2:] if window else (0, 0))),
        ]
    )
    if window is not None:
        header += window_bytes(packed.kernel_shape, window)
    header += struct.pack("<3H", packed.values.size, packed.indices.size, packed.offsets.size)
    bias = np.zeros(packed.out_channels, np.int32) if scaling.bias is None else scaling.bias
    weights = (packed.offsets, packed.indices, packed.values)
    return header + concatenated(*weights, scaling.scale, bias, x)


def int8_weight(
    rng: np.random.Generator, *shape: int, block_rows: int, groups: int = 1
) -> reference_sparse_int8.PackedInt8:
    extreme = np.where(rng.random(shape) < 0.5, -128, 127)
    codes = extreme if rng.random() < 0.3 else rng.integers(-128, 128, shape)
    kept = rng.random(shape) < rng.choice([0.05, 0.4, 1.0])
    return pack_int8((codes * kept).astype(np.int8), block_rows=block_rows, groups=groups)


def random_codes(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.uint8]:
    return rng.integers(0, 256, shape).astype(np.uint8)


def sparse_int8_cases() -> Iterator[Case]:
    """Products and convolutions with tails everywhere, to codes and to floats."""
    rng = np.random.default_rng(0)
    tokens = itertools.cycle([1, 2, 15, 16, 17, 33, 64, 65, 130])
    shapes = [(1, 1), (4, 4), (5, 7), (16, 64), (17, 65), (37, 20)]
    for rows, to_float, (out, inputs) in itertools.product((1, 4), (False, True), shapes):
        packed = int8_weight(rng, out, inputs, block_rows=rows)
        scaling = random_scaling(rng, out, inputs, to_float=to_float, with_bias=out % 2 == 0)
        x = random_codes(rng, next(tokens), inputs)
        expected = reference_sparse_int8.sparse_int8_matmul(x, packed, scaling)
        yield int8_input(x, packed, scaling, None), expected
    # Halves, which are rounded to even.
    packed = pack_int8(np.array([[1], [-1]], np.int8), block_rows=1)
    scaling = Scaling(scale=np.full(2, 0.5, np.float32), x_zero_point=50, y_zero_point=100)
    x = np.arange(100, dtype=np.uint8)[:, None]
    expected = reference_sparse_int8.sparse_int8_matmul(x, packed, scaling)
    yield int8_input(x, packed, scaling, None), expected
    widths = itertools.cycle([3, 7, 13, 16, 17, 30, 75, 140])
    kernels = [(1, 1), (3, 3), (1, 5), (4, 3)]
    for rows, to_float, shape in itertools.product((1, 4), (False, True), kernels):
        for groups in (1, 2):
            outputs, inputs = groups * int(rng.integers(1, 20)), int(rng.integers(1, 8))
            packed = int8_weight(rng, outputs, inputs, *shape, block_rows=rows, groups=groups)
            scaling = random_scaling(
                rng, outputs, inputs * shape[0], to_float=to_float, with_bias=groups == 2
            )
            window, image = random_window(rng, shape, next(widths))
            x = random_codes(rng, int(rng.integers(1, 3)), groups * inputs, *image)
            expected = reference_sparse_int8.sparse_int8_conv(x, packed, scaling, window)
            yield int8_input(x, packed, scaling, window), expected


def random_bits(rng: np.random.Generator, channels: int, *shape: int) -> reference_binary.Bits:
    """Bits [batch, words, ...] of so many channels, where `shape` is [batch, ...]."""
    signs = rng.standard_normal((shape[0], channels, *shape[1:])).astype(np.float32)
    return reference_binary.pack_signs(signs)


def binary_header(
    what: int, outputs: int, inputs: int, *, group: int = 1, positions: int = 1, batch: int = 1,
    window: dict[str, tuple[int, ...]] | None = None, image: tuple[int, ...] = (1, 1),
    flags: int = 0, words: int = 0,
) -> bytes:  # fmt: skip
    """What an input of fuzz-binary begins with."""
    sizes = {"kernel_shape": (1, 1), "strides": (1, 1), "dilations": (1, 1), "pads": (0,) * 4}
    sizes |= window or {}
    header = [what, outputs, inputs, group, positions]
    for name in ("kernel_shape", "strides", "dilations", "pads"):
        header += sizes[name]
    return bytes([*header, batch, *image, flags]) + struct.pack("<H", words)


def binary_outputs(
    rng: np.random.Generator, sums: reference_binary.Integers, flags: int, *, to_bits: bool
) -> tuple[bytes, npt.NDArray[Any]]:
    """The numbers that follow a weight of signs, and what they make of the sums."""
    channels = sums.shape[1]
    scale, bias = small_integers(rng, channels), small_integers(rng, channels)
    thresholds = rng.integers(-30, 30, channels).astype(np.int16)
    given = concatenated(scale, bias, thresholds)
    if to_bits:
        return given, reference_binary.compared(sums, thresholds.astype(np.int32))
    factors = scale.astype(np.float32) / np.float32(37) if flags & 1 else None
    terms = bias.astype(np.float32) / np.float32(3) if flags & 2 else None
    return given, reference_binary.scaled(sums, factors, terms)


def random_signs(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.int64]:
    return rng.choice([-1, 1], shape)


def binary_conv_cases(rng: np.random.Generator) -> Iterator[Case]:
    windows: list[dict[str, tuple[int, ...]]] = [
        {"kernel_shape": (1, 1)},
        {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (2, 0, 1, 2), "dilations": (1, 3)},
        {"kernel_shape": (7, 7), "pads": (6, 5, 6, 6), "strides": (1, 2)},
    ]
    channels = [(1, 1, 1), (5, 64, 1), (37, 65, 1), (64, 130, 1), (128, 128, 2), (13, 200, 1)]
    for window, (outputs, inputs, group), to_bits in itertools.product(
        windows, channels, (False, True)
    ):
        if inputs > 150 and window["kernel_shape"] != (3, 3):
            continue
        weight = random_signs(rng, outputs, inputs // group, *window["kernel_shape"])
        slides = {name: sizes for name, sizes in window.items() if name != "kernel_shape"}
        packed = reference_binary.pack_conv(weight, group=group, **slides)
        batch, height, width = int(rng.integers(1, 3)), 7, int(rng.choice([4, 9, 19]))
        x = random_bits(rng, inputs, batch, height, width)
        flags = int(rng.integers(4))
        given, expected = binary_outputs(
            rng, reference_binary.conv_sums(x, packed), flags, to_bits=to_bits
        )
        header = binary_header(
            int(to_bits), outputs, inputs, group=group, window=window, batch=batch,
            image=(height, width), flags=flags, words=packed.bits.size,
        )  # fmt: skip
        yield header + concatenated(packed.bits) + given + concatenated(x), expected


def binary_gemm_cases(rng: np.random.Generator) -> Iterator[Case]:
    sizes = [(1, 1, 1), (9, 64, 1), (70, 65, 1), (33, 20, 6), (100, 200, 1), (129, 128, 20)]
    for (outputs, inputs, positions), to_bits in itertools.product(sizes, (False, True)):
        weight = random_signs(rng, inputs * positions, outputs)
        packed = reference_binary.pack_gemm(weight, positions=positions)
        batch, flags = int(rng.choice([0, 1, 3, 4, 9])), int(rng.integers(4))
        x = random_bits(rng, inputs, batch, positions).reshape(batch, packed.bits.shape[1])
        given, expected = binary_outputs(
            rng, reference_binary.gemm_sums(x, packed), flags, to_bits=to_bits
        )
        header = binary_header(
            2 + to_bits, outputs, inputs, positions=positions, batch=batch, flags=flags,
            words=packed.bits.size,
        )  # fmt: skip
        yield header + concatenated(packed.bits) + given + concatenated(x), expected


def opposite_signs() -> Case:
    """Differences in every bit, over more words than a byte counts."""
    positions, outputs = 100, 3
    packed = reference_binary.pack_gemm(
        np.full((WORD_BITS * positions, outputs), -1), positions=positions
    )
    x = np.full((2, positions), 2**WORD_BITS - 1, np.uint64)
    rng = np.random.default_rng(0)
    sums = reference_binary.gemm_sums(x, packed)
    given, expected = binary_outputs(rng, sums, 0, to_bits=False)
    header = binary_header(
        2, outputs, WORD_BITS, positions=positions, batch=len(x), words=packed.bits.size
    )
    return header + concatenated(packed.bits) + given + concatenated(x), expected


def binary_cases() -> Iterator[Case]:
    """Convolutions, products, packing and pooling of signs."""
    rng = np.random.default_rng(0)
    yield from binary_conv_cases(rng)
    yield from binary_gemm_cases(rng)
    yield opposite_signs()
    for index, (channels, image) in enumerate(
        itertools.product((1, 31, 64, 100), ((1, 1), (2, 4), (3, 7)))
    ):
        comparison, per_channel = COMPARISONS[index % 4], index // 4 % 2 == 1
        levels = rng.integers(-2, 3, channels if per_channel else 1)
        x = rng.integers(-3, 4, (2, channels, *image))
        given = np.zeros(channels + 1, np.int8)
        given[: len(levels)] = 16 * levels
        header = binary_header(
            4, 1, channels, batch=2, image=image, flags=index % 4 + 4 * per_channel
        )
        expected = reference_binary.pack_signs(
            x.astype(np.float32), levels.astype(np.float32), comparison=comparison
        )
        yield header + concatenated(given, (16 * x).astype(np.int8)), expected
    window = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 2, 1)}
    bits = random_bits(rng, WORD_BITS, 3, 8, 9)
    header = binary_header(5, 1, WORD_BITS, window=window, batch=3, image=(8, 9))
    yield header + concatenated(bits), reference_binary.max_pool(bits, **window)  # type: ignore[arg-type]


def hostile_inputs(target: str) -> Iterator[bytes]:
    """Inputs of a target in which one number at a time is among the worst there are (reader.h)."""
    kinds = {data[:1]: data for data, _ in CASES[target]()}
    for data, at, code in itertools.product(kinds.values(), range(24), range(250, 256)):
        yield data[:at] + bytes([code]) + data[at + 1 :]


CASES = {"sparse": sparse_cases, "sparse_int8": sparse_int8_cases, "binary": binary_cases}
