from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

def sparse_matmul(
    x: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    indices: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int32],
    bias: npt.NDArray[np.float32] | None,
    in_features: int,
    out_features: int,
    block_size: int,
    isa: str,
) -> npt.NDArray[np.float32]: ...
def sparse_conv(
    x: npt.NDArray[np.float32],
    weights: tuple[Any, ...],
    bias: npt.NDArray[np.float32] | None,
    relu: bool,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    isa: str,
) -> npt.NDArray[np.float32]: ...
def pack_signs(
    x: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32], comparison: int, isa: str
) -> npt.NDArray[np.uint64]: ...
def binary_conv(
    x: npt.NDArray[np.uint64],
    bits: npt.NDArray[np.uint64],
    in_channels: int,
    group: int,
    window: tuple[int, ...],
    scale: npt.NDArray[np.float32] | None,
    bias: npt.NDArray[np.float32] | None,
    isa: str,
) -> npt.NDArray[np.float32]: ...
def binary_conv_signs(
    x: npt.NDArray[np.uint64],
    bits: npt.NDArray[np.uint64],
    in_channels: int,
    group: int,
    window: tuple[int, ...],
    thresholds: npt.NDArray[np.int32],
    isa: str,
) -> npt.NDArray[np.uint64]: ...
def binary_gemm(
    x: npt.NDArray[np.uint64],
    bits: npt.NDArray[np.uint64],
    in_channels: int,
    positions: int,
    out_features: int,
    scale: npt.NDArray[np.float32] | None,
    bias: npt.NDArray[np.float32] | None,
    isa: str,
) -> npt.NDArray[np.float32]: ...
def binary_gemm_signs(
    x: npt.NDArray[np.uint64],
    bits: npt.NDArray[np.uint64],
    in_channels: int,
    positions: int,
    out_features: int,
    thresholds: npt.NDArray[np.int32],
    isa: str,
) -> npt.NDArray[np.uint64]: ...
def binary_max_pool(
    x: npt.NDArray[np.uint64], window: tuple[int, ...]
) -> npt.NDArray[np.uint64]: ...
def available_binary_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def cpu_features() -> dict[str, bool]: ...
def encode_codes(
    codes: npt.NDArray[np.int32], back_end: int, profile: int, prefer_speed: bool, isa: str = ...
) -> bytes: ...
def decode_codes(payload: Buffer, codes: npt.NDArray[np.int32], isa: str) -> str: ...
def decode_scaled(
    payload: Buffer,
    scales: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    isa: str,
) -> str: ...
def decode_planes(
    payloads: list[Buffer],
    widths: bytes,
    rotated: bool,
    widening: int,
    shape: tuple[int, int, int],
    numbers: npt.NDArray[np.uint8],
    isa: str,
) -> tuple[int, str]: ...
def available_decoders() -> list[str]: ...
def crc32c(data: Buffer) -> int: ...
def crc32c_portable(data: Buffer) -> int: ...
def xxh3_64(data: Buffer) -> int: ...
def xxh3_64_portable(data: Buffer) -> int: ...
def restore_trellis(codes: npt.NDArray[np.int32]) -> None: ...
def choose_trellis(
    targets: npt.NDArray[np.float64],
    period: int,
    prices: npt.NDArray[np.float32],
    integers: npt.NDArray[np.int32],
) -> float: ...
def decode_zstd(frame: bytes, size: int) -> bytes | str: ...
def sparse_int8_matmul(
    x: npt.NDArray[np.uint8],
    weights: tuple[Any, ...],
    scales: tuple[Any, ...],
    isa: str,
) -> npt.NDArray[Any]: ...
def sparse_int8_conv(
    x: npt.NDArray[np.uint8],
    weights: tuple[Any, ...],
    scales: tuple[Any, ...],
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    isa: str,
) -> npt.NDArray[Any]: ...
def available_int8_isas() -> list[str]: ...

restores_files: bool

class Restoring:
    def add_tensor(self, values: npt.NDArray[np.uint8], hash: int) -> None: ...
    def add_planes(
        self,
        payloads: list[tuple[int, int, int, int]],
        shape: tuple[int, int, int],
        values: npt.NDArray[np.uint8],
        tensor: int,
        widths: bytes,
        rotated: bool,
        widening: int,
    ) -> None: ...
    def add_scaled(
        self,
        payloads: list[tuple[int, int, int, int]],
        shape: tuple[int, int, int],
        values: npt.NDArray[np.uint8],
        tensor: int,
        scales: npt.NDArray[np.float32],
        length: int,
        inner: int,
    ) -> None: ...
    def run(self) -> None: ...
    def defects(self) -> tuple[int, int]: ...
