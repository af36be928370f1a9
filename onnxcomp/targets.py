"""What each runtime and CPU runs fast in integers, and what it fuses."""

from __future__ import annotations

import difflib
import enum
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxcomp.errors import RecipeError
from onnxcomp.layer_speed import ConvolutionSpeed
from onnxcomp.quantization import Affine, affine, symmetric
from onnxcomp.statistics import Range

AUTO = "auto"


class Role(enum.Enum):
    """How an operator deals with codes.

    LAYER: multiplies by constant weights, which get scales of their own.
    ARITHMETIC: computes new values from one or more activations; its output gets its own scale.
    MOVER: hands values on unchanged, so that input and output share one scale.
    """

    LAYER = "layer"
    ARITHMETIC = "arithmetic"
    MOVER = "mover"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """How a target runs one operator in integers.

    Attributes:
        role: what its scales depend on.
        float_output: the integer kernel can write float32, so that a result nobody needs as codes
            is never rounded to 8 bits.
        on_codes: the runtime does not fuse DequantizeLinear -> operator -> QuantizeLinear, but
            runs the operator on the codes themselves.
        written_as: the operator with an integer kernel that computes it: x - c = x + (-c),
            x / c = x * (1 / c), HardSigmoid is an addition that saturates, BatchNormalization a
            depthwise Conv of one pixel, and a Relu or Clip that no scale can stand for, as others
            read its input too, a LeakyRelu of slope 0.
        speed: of a convolution; None where integers always pay.
    """

    role: Role
    float_output: bool = False
    on_codes: bool = False
    written_as: str = ""
    speed: ConvolutionSpeed | None = None


_MOVERS = (
    *("DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool"),
    *("Reshape", "Resize", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
_ARITHMETIC = (
    *("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"),
    "Softmax",
)
_GENERIC_ONLY = ("Clip", "HardSigmoid", "HardSwish", "Relu")

ONNXRUNTIME: Mapping[str, Operator] = MappingProxyType(
    {
        "Conv": Operator(role=Role.LAYER, speed=ConvolutionSpeed()),
        "Gemm": Operator(role=Role.LAYER, float_output=True),
        "MatMul": Operator(role=Role.LAYER, float_output=True),
        **{op: Operator(role=Role.ARITHMETIC) for op in _ARITHMETIC},
        "BatchNormalization": Operator(role=Role.ARITHMETIC, written_as="Conv"),
        "Clip": Operator(role=Role.ARITHMETIC, written_as="LeakyRelu"),
        "Div": Operator(role=Role.ARITHMETIC, written_as="Mul"),
        "HardSigmoid": Operator(role=Role.ARITHMETIC, written_as="Add"),
        "Relu": Operator(role=Role.ARITHMETIC, written_as="LeakyRelu"),
        "Sub": Operator(role=Role.ARITHMETIC, written_as="Add"),
        **{op: Operator(role=Role.MOVER) for op in _MOVERS},
        "Pad": Operator(role=Role.MOVER, on_codes=True),
        "Split": Operator(role=Role.MOVER, on_codes=True),  # is fused only if all outputs are read
    }
)
"""What onnxruntime's CPU provider fuses (measured on 1.31): QLinearConv, QGemm, QLinearMatMul or
MatMulIntegerToFloat, QLinearAdd and so on; movers run on the codes. ConvTranspose, Sub and Div of
two activations, Gelu and the rest stay in float: they have no integer kernel there."""

QDQ_GENERIC: Mapping[str, Operator] = MappingProxyType(
    {
        **{op: Operator(role=Role.LAYER) for op in ("Conv", "ConvTranspose")},
        **{op: Operator(role=Role.LAYER, float_output=True) for op in ("Gemm", "MatMul")},
        **{op: Operator(role=Role.ARITHMETIC) for op in _ARITHMETIC if op != "Softmax"},
        **{op: Operator(role=Role.ARITHMETIC) for op in _GENERIC_ONLY},
        **{op: Operator(role=Role.MOVER) for op in (*_MOVERS, "Split")},
    }
)
"""What TensorRT and NPU compilers take in integers where pairs stand around it; they fuse by
themselves. Softmax and normalizations would keep too little in 127 steps."""

RECURRENT: Mapping[str, str] = MappingProxyType(
    {
        "GRU": "recurrent: its state has a huge range, and errors add up over time",
        "LSTM": "recurrent: its state has a huge range, and errors add up over time",
        "RNN": "recurrent: its state has a huge range, and errors add up over time",
    }
)
"""Operators that stay in float on every target, and why."""

FLOAT_ONLY: Mapping[str, str] = MappingProxyType(
    {**RECURRENT, "ConvTranspose": "onnxruntime has no integer kernel for it"}
)
"""Operators with weights that stay in float on onnxruntime's CPU provider, and why."""


def _in_blocks(channels: int) -> Mapping[str, int]:
    return MappingProxyType(dict.fromkeys(("Conv", "Gemm", "MatMul"), channels))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime on some hardware.

    Attributes:
        name: as on the command line.
        activation_dtype: uint8 or int8, whichever the CPU multiplies fast with int8 weights.
        weight_bits: 8, or 7 where sums of products saturate in 16 bits.
        symmetric: activations have zero point 0, so that no scale can stand for a Relu: it is
            kept, between the operator and its pair.
        integer_bias: biases are int32 codes with the scale of the sums; else they stay float32.
        everywhere: the file is for a compiler that decides by itself what pays: plain forms, and
            nothing kept in float for this machine's sake.
        product: how two activations are multiplied (MatMul, as in attention); None: not at all.
        products_pay: whether that is faster than in float.
        splits_dequantized: the runtime gives every reader of a dequantized tensor a copy of its
            own, and does not see any more that Gelu reads one tensor twice.
        codes_weights: the runtime gives float weights codes of its own, one scale for all, where
            codes are read and made.
        row_lookup: whether embeddings can be stored as codes with one scale a row.
        operators: what runs in integers, and how; by operator type.
        float_only: why other operators that have weights stay in float; by operator type.
        blocks: channels that kernels compute at once, so that a part of a block takes as long as
            all of it; by operator type, where there are blocks at all. One vector of float32 wide:
            of AVX-512 where there is VNNI, and integer kernels work on as many.
    """

    name: str
    activation_dtype: np.dtype[Any]
    weight_bits: int = 8
    symmetric: bool = False
    integer_bias: bool = True
    everywhere: bool = False
    product: Operator | None = Operator(role=Role.ARITHMETIC, float_output=True)
    products_pay: bool = False
    splits_dequantized: bool = True
    codes_weights: bool = True
    row_lookup: bool = True
    operators: Mapping[str, Operator] = field(default_factory=lambda: ONNXRUNTIME, hash=False)
    float_only: Mapping[str, str] = field(default_factory=lambda: FLOAT_ONLY, hash=False)
    blocks: Mapping[str, int] = field(default_factory=dict, hash=False)

    def activation_parameters(self, seen: Range) -> Affine:
        """The scale and zero point that spread the codes of this target over a range."""
        if not self.symmetric:
            return affine(seen, self.activation_dtype)
        bound = np.maximum(np.abs(seen.low), np.abs(seen.high))
        return symmetric(np.asarray(bound), None)


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            # VPMADDUBSW adds two products u8 * s8 in 16 bits: 2 * 255 * 127 saturates.
            Target(
                name="x86-avx2",
                activation_dtype=np.dtype(np.uint8),
                weight_bits=7,
                blocks=_in_blocks(8),
            ),
            Target(name="x86-vnni", activation_dtype=np.dtype(np.uint8), blocks=_in_blocks(16)),
            Target(name="arm64", activation_dtype=np.dtype(np.int8)),
            Target(
                name="qdq-generic",
                activation_dtype=np.dtype(np.int8),
                symmetric=True,
                integer_bias=False,
                everywhere=True,
                products_pay=True,
                splits_dequantized=False,
                codes_weights=False,
                row_lookup=False,
                operators=QDQ_GENERIC,
                float_only=RECURRENT,
            ),
        )
    }
)


def target_names() -> list[str]:
    """What `resolve_target` takes."""
    return [AUTO, *TARGETS]


def resolve_target(name: str = AUTO) -> Target:
    """The target called ``name``; ``auto`` is the machine this runs on.

    Raises:
        RecipeError: unknown name.
    """
    if name == AUTO:
        return TARGETS[detect_target(platform.machine(), cpu_flags())]
    if name not in TARGETS:
        nearest = difflib.get_close_matches(name, target_names(), 1, 0.3)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(target_names())}"
        raise RecipeError(f"unknown target {name!r}; {hint}")
    return TARGETS[name]


def detect_target(machine: str, flags: frozenset[str]) -> str:
    """The name of the target for a machine type (as of uname) and its CPU flags."""
    if machine.lower() in ("arm64", "aarch64"):
        return "arm64"
    return "x86-vnni" if flags & {"avx512_vnni", "avx_vnni"} else "x86-avx2"


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU by Linux's names; empty where nothing tells them.

    Not knowing them costs a bit of weight precision, never a wrong result: see `detect_target`.
    """
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
        return frozenset()
    if platform.system() != "Darwin":
        return frozenset()
    command = ["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.lower()
    return frozenset(found.replace("avx512vnni", "avx512_vnni").split())
