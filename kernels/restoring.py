"""Tensors from payloads in files, in many threads: the Python door to what does so."""

from __future__ import annotations

from onnxcomp.kernels._native import Restoring, restores_files

__all__ = ["Restoring", "restores_files"]
