"""What a figure depends on besides the model."""

from __future__ import annotations

import os
import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Versions of what computes, and the machine."""
    names = ("onnxcomp", "onnx", "onnxruntime", "numpy")
    return {name: metadata.version(name) for name in names} | {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
