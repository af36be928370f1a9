"""Sizes of ONNX's data types (onnx.proto, TensorProto.DataType), known without importing onnx."""

from __future__ import annotations

FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64 = 1, 2, 3, 4, 5, 6, 7
BOOL, FLOAT16, DOUBLE, UINT32, UINT64, COMPLEX64, COMPLEX128, BFLOAT16 = (
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
)
FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ = 17, 18, 19, 20
UINT4, INT4, FLOAT4E2M1, FLOAT8E8M0, UINT2, INT2, FLOAT6E2M3, FLOAT6E3M2 = (
    21,
    22,
    23,
    24,
    25,
    26,
    27,
    28,
)

# Bits of a number; an element of a complex type is two numbers.
BITS = dict.fromkeys((UINT2, INT2), 2)
BITS |= dict.fromkeys((UINT4, INT4, FLOAT4E2M1), 4)
BITS |= dict.fromkeys((FLOAT6E2M3, FLOAT6E3M2), 6)
BITS |= dict.fromkeys((UINT8, INT8, BOOL, FLOAT8E4M3FN, FLOAT8E4M3FNUZ), 8)
BITS |= dict.fromkeys((FLOAT8E5M2, FLOAT8E5M2FNUZ, FLOAT8E8M0), 8)
BITS |= dict.fromkeys((UINT16, INT16, FLOAT16, BFLOAT16), 16)
BITS |= dict.fromkeys((UINT32, INT32, FLOAT, COMPLEX64), 32)
BITS |= dict.fromkeys((UINT64, INT64, DOUBLE, COMPLEX128), 64)
COMPLEX = {COMPLEX64: FLOAT, COMPLEX128: DOUBLE}  # what their numbers are
SIGNED = frozenset({INT2, INT4, INT8, INT16, INT32, INT64})
FLOATS = frozenset({FLOAT, FLOAT16, DOUBLE, BFLOAT16})  # whose scales and exponents are coded
WIDENED = {FLOAT: (BFLOAT16, FLOAT16), DOUBLE: (BFLOAT16, FLOAT16, FLOAT)}  # exactly, from these


def number_type(data_type: int) -> int:
    """The type of the numbers of a tensor."""
    return COMPLEX.get(data_type, data_type)


NAMES = {  # as onnx.proto has them
    number: name
    for name, number in list(globals().items())
    if isinstance(number, int) and name.isupper()
}
