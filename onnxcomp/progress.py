"""Where long work says how far it is. The command line shows it; as a library nothing is shown."""

from __future__ import annotations


class Progress:
    """Says nothing; the base of whoever shows something."""

    def stage(self, name: str) -> None:
        """A new part of the work begins: "reading model.onnx", "quantize_static" ..."""

    def advance(self, done: int, total: int) -> None:
        """The current stage has done ``done`` of ``total`` steps."""
