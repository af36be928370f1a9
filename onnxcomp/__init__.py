"""Makes trained ONNX models smaller and faster without retraining.

The public names are imported when they are asked for, so that ``import onnxcomp`` stays cheap.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcomp.calibration import Calibration as Calibration
    from onnxcomp.comparison import Benchmark as Benchmark
    from onnxcomp.comparison import Comparison as Comparison
    from onnxcomp.comparison import benchmark as benchmark
    from onnxcomp.comparison import compare as compare
    from onnxcomp.container_contents import Contents as Contents
    from onnxcomp.container_loading import load_session as load_session
    from onnxcomp.container_packing import pack as pack
    from onnxcomp.container_unpacking import unpack as unpack
    from onnxcomp.container_unpacking import verify as verify
    from onnxcomp.inspection import Inspection as Inspection
    from onnxcomp.inspection import inspect as inspect
    from onnxcomp.model import Model as Model
    from onnxcomp.model import load_model as load_model
    from onnxcomp.optimize import Result as Result
    from onnxcomp.optimize import optimize as optimize
    from onnxcomp.progress import Progress as Progress
    from onnxcomp.recipe import Gates as Gates
    from onnxcomp.recipe import Recipe as Recipe
    from onnxcomp.report import Report as Report
    from onnxcomp.sensitivity import Sensitivity as Sensitivity
    from onnxcomp.sensitivity import sensitivity as sensitivity

    __version__: str

from onnxcomp.errors import (
    CalibrationError,
    CalibrationRequired,
    CorruptContainer,
    GateFailed,
    KernelError,
    OnnxcompError,
    OpsetConversionFailed,
    OutputError,
    PassFailed,
    RecipeError,
    UnsupportedModel,
)

_LAZY = {
    "Benchmark": "comparison",
    "Calibration": "calibration",
    "Comparison": "comparison",
    "Contents": "container_contents",
    "Gates": "recipe",
    "Inspection": "inspection",
    "Model": "model",
    "Progress": "progress",
    "Recipe": "recipe",
    "Report": "report",
    "Result": "optimize",
    "Sensitivity": "sensitivity",
    "benchmark": "comparison",
    "compare": "comparison",
    "inspect": "inspection",
    "load_model": "model",
    "load_session": "container_loading",
    "optimize": "optimize",
    "pack": "container_packing",
    "sensitivity": "sensitivity",
    "unpack": "container_unpacking",
    "verify": "container_unpacking",
}

__all__ = [
    "Benchmark",
    "Calibration",
    "CalibrationError",
    "CalibrationRequired",
    "Comparison",
    "Contents",
    "CorruptContainer",
    "GateFailed",
    "Gates",
    "Inspection",
    "KernelError",
    "Model",
    "OnnxcompError",
    "OpsetConversionFailed",
    "OutputError",
    "PassFailed",
    "Progress",
    "Recipe",
    "RecipeError",
    "Report",
    "Result",
    "Sensitivity",
    "UnsupportedModel",
    "benchmark",
    "compare",
    "inspect",
    "load_model",
    "load_session",
    "optimize",
    "pack",
    "sensitivity",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("onnxcomp")
    if name in _LAZY:
        return getattr(importlib.import_module(f"onnxcomp.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})


class _Package(types.ModuleType):
    """Keeps ``onnxcomp.optimize`` the function: importing the module of that name would bind it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
