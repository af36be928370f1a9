import numpy as np
import numpy.typing as npt

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
def available_isas() -> list[str]: ...
def cpu_features() -> dict[str, bool]: ...
