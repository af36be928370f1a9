"""A folder of images as samples, prepared as a calibration.toml beside them says."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import CalibrationError
from onnxcomp.samples import CONFIG_NAME, Samples
from onnxcomp.signature import Array, InputSpec, Signature, did_you_mean, is_free

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
RESIZES = ("stretch", "crop", "pad")
LAYOUTS = ("NCHW", "NHWC")
CHANNELS = ("RGB", "BGR", "L")


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """How an image file becomes an input: the keys of calibration.toml.

    value = (pixel * scale - mean) / std, pixel in 0..255.

    Attributes:
        input: name of the model's input; not needed when it has only one.
        size: [height, width]; not needed when the model fixes them.
        resize: "stretch" to the size; "crop": the shorter side, then the centre; "pad": the longer
            side, then ``pad_value`` around.
        scale: 1/255 unless given; 1 for integer inputs.
        mean, std: per channel or one number, in the order of ``channels``.
        layout: "NCHW" or "NHWC"; found from the input's shape unless given.
        channels: "RGB", "BGR" or "L"; RGB or L unless given, as the input has 3 channels or 1.
        pad_value: the pixel, 0..255, that "pad" adds.
    """

    input: str | None = None
    size: tuple[int, int] | None = None
    resize: str = "stretch"
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None
    channels: str | None = None
    pad_value: int = 114

    @classmethod
    def read(cls, path: Path) -> ImageRules:
        """Reads a calibration.toml.

        Raises:
            CalibrationError: not TOML, an unknown key or a value it cannot have.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CalibrationError(f"{path}: cannot be read ({error})") from error
        known = [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                hint = did_you_mean(key, known)
                raise CalibrationError(
                    f"{path}: unknown key {key!r}{hint}; keys: {', '.join(known)}"
                )
        for key, value in table.items():
            table[key] = _value(key, value, path)
        return cls(**table)


def _value(key: str, value: Any, path: Path) -> Any:
    """``value`` as the field ``key`` of ImageRules holds it."""
    choices = {"resize": RESIZES, "layout": LAYOUTS, "channels": CHANNELS}.get(key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if choices is not None:
        wanted, good = f"one of {', '.join(choices)}", value in choices
    elif key == "input":
        wanted, good = "a string", isinstance(value, str)
    elif key == "size":
        wanted = "[height, width] in pixels"
        good = isinstance(value, list) and len(value) == 2
        good = good and all(type(side) is int and side > 0 for side in value)
        value = tuple(value) if good else value
    elif key in ("mean", "std"):
        wanted, value = "a number or one per channel", [value] if number else value
        good = isinstance(value, list) and len(value) in (1, 3)
        good = good and all(type(v) in (int, float) and (v or key == "mean") for v in value)
        value = tuple(map(float, value)) if good else value
    elif key == "pad_value":
        wanted, good = "a pixel from 0 to 255", type(value) is int and 0 <= value <= 255
    else:
        wanted, good = "a number other than 0", number and value != 0
    if not good:
        raise CalibrationError(f"{path}: {key} must be {wanted}, not {value!r}")
    return value


def image_samples(folder: Path, signature: Signature) -> Samples:
    """The images of a folder and the folders in it, sorted by path.

    Raises:
        CalibrationError: the rules do not fit the model, there are no images, or Pillow is missing.
    """
    path = folder / CONFIG_NAME
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise CalibrationError(
            f"{path}: reading images needs Pillow; install 'onnxcomp[images]'"
        ) from error
    prepare = Preparation.of(ImageRules.read(path), signature, path)
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise CalibrationError(f"{folder}: holds {CONFIG_NAME} but no images")
    return Samples(folder.name or str(folder), lambda: _read_images(files, prepare), len(files))


def _read_images(files: list[Path], prepare: Preparation) -> Iterator[tuple[str, Any]]:
    from PIL import Image, ImageOps

    for file in files:
        try:
            with Image.open(file) as image:
                pixels = prepare(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise CalibrationError(f"{file}: not a readable image ({error})") from error
        yield str(file), {prepare.spec.name: pixels}


@dataclass(frozen=True)
class Preparation:
    """Rules that have been fitted to the input they fill."""

    rules: ImageRules
    spec: InputSpec
    size: tuple[int, int]
    layout: str
    channels: str

    @classmethod
    def of(cls, rules: ImageRules, signature: Signature, path: Path) -> Preparation:
        """Takes from the model's input what the rules leave open.

        Raises:
            CalibrationError: no such input, several that need values, or not an input for images.
        """
        spec = _image_input(rules, signature, path)
        shape = spec.shape or (None, None, None, None)
        if len(shape) != 4 or spec.dtype.kind not in "fu":
            raise CalibrationError(f"{path}: input {spec} does not take images")
        layout = rules.layout or (
            "NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"
        )
        depth = shape[1] if layout == "NCHW" else shape[3]
        channels = rules.channels or ("L" if depth == 1 else "RGB")
        sides = shape[2:] if layout == "NCHW" else shape[1:3]
        size = rules.size
        if size is None:
            if any(is_free(side) for side in sides):
                raise CalibrationError(f"{path}: size is missing, and the model takes any: {spec}")
            size = (int(str(sides[0])), int(str(sides[1])))
        prepared = cls(rules, spec, size, layout, channels)
        if spec.dtype.kind == "u" and (rules.mean, rules.std) != ((0.0,), (1.0,)):
            raise CalibrationError(f"{path}: mean and std do not apply to {spec}")
        if channels == "L" and len(rules.mean) * len(rules.std) > 1:
            raise CalibrationError(f"{path}: mean and std have more entries than channels 'L'")
        depth = 1 if channels == "L" else 3
        made = (1, depth, *size) if layout == "NCHW" else (1, *size, depth)
        spec.check_shape(made, f"{path}: an image prepared like this")
        return prepared

    def __call__(self, image: Image.Image) -> Array:
        """The input for one image: [1, C, H, W] or [1, H, W, C] as the layout says."""
        image = image.convert("L" if self.channels == "L" else "RGB")
        pixels = np.asarray(self._resized(image))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        values = self._normalized(pixels)
        return values[None] if self.layout == "NHWC" else values.transpose(2, 0, 1)[None]

    def _normalized(self, pixels: Array) -> Array:
        rules, whole = self.rules, self.spec.dtype.kind == "u"
        scale = rules.scale if rules.scale is not None else (1.0 if whole else 1 / 255)
        values = pixels.astype(np.float64) * scale
        if whole:
            return np.clip(np.rint(values), 0, 255).astype(self.spec.dtype)
        values = (values - np.asarray(rules.mean)) / np.asarray(rules.std)
        return np.asarray(values, self.spec.dtype)

    def _resized(self, image: Image.Image) -> Image.Image:
        from PIL import Image, ImageOps

        height, width = self.size
        bilinear = Image.Resampling.BILINEAR
        if self.rules.resize == "crop":
            return ImageOps.fit(image, (width, height), bilinear)
        if self.rules.resize == "pad":
            value = self.rules.pad_value
            color = value if image.mode == "L" else (value,) * 3
            return ImageOps.pad(image, (width, height), bilinear, color=color)
        return image.resize((width, height), bilinear)


def _image_input(rules: ImageRules, signature: Signature, path: Path) -> InputSpec:
    names = [spec.name for spec in signature.inputs]
    needed = [spec.name for spec in signature.required]
    name = rules.input if rules.input is not None else (needed or names)[0] if names else ""
    if name not in names:
        hint = did_you_mean(name, names)
        raise CalibrationError(f"{path}: the model has no input {name!r}{hint}")
    others = [other for other in needed if other != name]
    if others:
        raise CalibrationError(
            f"{path}: the model also needs {', '.join(map(repr, others))};"
            " write a FILE.py:FUNCTION that yields all inputs"
        )
    return signature[name]
