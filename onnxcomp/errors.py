"""What can go wrong, one class per kind of failure.

Every message is one line: what was found, in which node or file, and what to do about it.
The command line prints it and exits with ``exit_code``.
"""


class OnnxcompError(Exception):
    """The base of all errors that onnxcomp raises on purpose."""

    exit_code = 2


class UnsupportedModel(OnnxcompError):
    """The model cannot be read, is not valid ONNX, or does not run in onnxruntime."""


class OpsetConversionFailed(UnsupportedModel):
    """The model cannot be written in a newer operator set; it may be used as it is."""


class CalibrationRequired(OnnxcompError):
    """A pass needs samples and none were given."""


class CalibrationError(OnnxcompError):
    """The samples do not fit the model: names, shapes, dtypes or values."""


class RecipeError(OnnxcompError):
    """An unknown pass, option, recipe or key, or a value of the wrong type."""


class OutputError(OnnxcompError):
    """The result could not be written; the target is untouched."""


class PassFailed(OnnxcompError):
    """A pass raised or broke a guarantee, and the run is strict."""


class GateFailed(OnnxcompError):
    """The result of a strict run breaks one of the recipe's gates."""


class KernelError(OnnxcompError):
    """A compiled kernel is missing, does not run on this CPU, or was given malformed weights."""


class CorruptContainer(OnnxcompError):
    """A compressed container is truncated, altered or of an unknown version."""
