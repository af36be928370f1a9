"""Made-up inputs for models without samples: right in type and range, without any meaning.

Good enough to check that a model still computes the same, not to judge accuracy. Only images, see
`refined_inputs`, show the ranges of activations well.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import CalibrationError
from onnxcomp.indices import index_bounds
from onnxcomp.refined_inputs import NOISE, Images, refined_images
from onnxcomp.refined_inputs import SAMPLES as REFINED_SAMPLES
from onnxcomp.runtime import Feed
from onnxcomp.samples import Samples
from onnxcomp.signature import Array, InputSpec, Signature, is_free

SAMPLES = 8
MOST_ELEMENTS = 1 << 25  # of one feed; a guess that makes more is passed over
MOST_GUESSES = 60
SAMPLE_RATE = 16000

_BATCH = re.compile(r"^(n|b|bs|bsz)$|batch", re.I)
_IMAGE_SIDE = re.compile(r"^(h|w)$|height|width", re.I)
_SEQUENCE = re.compile(r"^(l|t|s)$|seq|len|time|frame|token|point|sample", re.I)
_SIDES = (224, 32, 64, 96, 128, 256, 320, 416, 512, 640)
_LENGTHS = (16, 1, 32, 64, 128, 256, 512, 576, 1024, 4096, 16000)
_LARGEST_IDS = (None, 2, 1)  # None: what the graph tells, or 100


@dataclass(frozen=True)
class Guess:
    """What the model does not say about its inputs.

    Attributes:
        side: of images whose size is free.
        length: of every other free axis; the batch is always 1.
        ids: integers are below this, None for the table they index or 100.
    """

    side: int = _SIDES[0]
    length: int = _LENGTHS[0]
    ids: int | None = None


def guesses() -> Iterator[Guess]:
    """The likeliest first, then each field varied alone, then together."""
    first = Guess()
    yield first
    yield from (replace(first, length=length) for length in _LENGTHS[1:])
    yield from (replace(first, side=side) for side in _SIDES[1:])
    yield from (replace(first, ids=ids) for ids in _LARGEST_IDS[1:])
    for ids in _LARGEST_IDS:
        for length in _LENGTHS:
            yield from (Guess(side, length, ids) for side in _SIDES)


def synthetic_samples(
    graph: gs.Graph,
    signature: Signature,
    *,
    seed: int = 0,
    count: int | None = None,
    runs: Callable[[Feed], bool] | None = None,
    refined: bool = False,
) -> Samples:
    """``count`` feeds made from a seed, by default 8 or 32 refined images; a seed makes the same.

    Args:
        graph: searched for the tables that integer inputs index.
        signature: the inputs of ``graph``.
        seed: of all random values.
        count: number of feeds.
        runs: whether the model runs with a feed; other sizes of free axes and other ranges of
            integers are tried until it does. Without it the likeliest guess is taken.
        refined: make images for a model that takes one, in the range its weights tell.

    Raises:
        CalibrationError: the model runs with no guess.
    """
    bounds = index_bounds(graph)
    for inputs in itertools.islice(_distinct(signature, bounds, seed), MOST_GUESSES):
        if runs is None or runs(inputs.feed(0)):
            shape = next(iter(inputs.shapes.values()), ())
            images = refined_images(graph, signature, shape, seed) if refined else None
            if images is not None:
                count = REFINED_SAMPLES if count is None else count
                fits = "that nothing confirms" if images.unsuited else "that suits the weights"
                label = f"seed {seed}, images in the range {fits}, {images.range.label}"
                reader = _image_reader(signature, images, count)
                return Samples(label, reader, count, images.unsuited)
            count = SAMPLES if count is None else count
            return Samples(f"seed {seed}", _reader(inputs, count), count, NOISE)
    raise CalibrationError("found no synthetic inputs with which the model runs; give it samples")


def _reader(inputs: SyntheticInputs, count: int) -> Callable[[], Iterator[tuple[str, Any]]]:
    return lambda: ((f"synthetic sample {index}", inputs.feed(index)) for index in range(count))


def _image_reader(
    signature: Signature, images: Images, count: int
) -> Callable[[], Iterator[tuple[str, Any]]]:
    name = signature.required[0].name
    return lambda: ((f"synthetic sample {i}", {name: images(i)}) for i in range(count))


def _distinct(
    signature: Signature, bounds: Mapping[str, int], seed: int
) -> Iterator[SyntheticInputs]:
    """One for each guess that makes a difference to this signature."""
    seen: set[Any] = set()
    integers = any(spec.dtype.kind in "iu" for spec in signature.required)
    for guess in guesses():
        inputs = SyntheticInputs(signature, bounds, guess, seed)
        shapes = tuple(inputs.shapes.values())
        key = (shapes, guess.ids if integers else None)
        small = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes) <= MOST_ELEMENTS
        if key not in seen and (small or not seen):
            seen.add(key)
            yield inputs


class SyntheticInputs:
    """Feeds for one guess; sample i is the same whenever it is asked for.

    Attributes:
        shapes: of each required input.
    """

    def __init__(
        self, signature: Signature, bounds: Mapping[str, int], guess: Guess, seed: int
    ) -> None:
        """``bounds`` of integer inputs as `index_bounds` finds them."""
        self._specs, self._bounds, self._guess, self._seed = signature.required, bounds, guess, seed
        sizes = _symbol_sizes(signature.required, guess)
        self.shapes = {spec.name: _shape(spec, sizes, guess) for spec in signature.required}

    def feed(self, index: int) -> Feed:
        """Sample ``index`` as the model takes it."""
        return {spec.name: self._value(spec, index) for spec in self._specs}

    def _value(self, spec: InputSpec, index: int) -> Array:
        rng = np.random.default_rng([self._seed, index, zlib.crc32(spec.name.encode())])
        shape, kind, words = self.shapes[spec.name], spec.dtype.kind, _words(spec.name)
        if kind == "O":
            return np.full(shape, "text", object)
        if kind == "b":
            masks = bool(words & {"mask", "masks"})
            return np.ones(shape, bool) if masks else rng.random(shape) < 0.5
        if words & {"mask", "masks"}:
            return np.ones(shape, spec.dtype)
        if kind in "iu":
            return self._integers(spec, shape, words, rng)
        if words & {"threshold", "thresh"}:
            return np.full(shape, 0.5, spec.dtype)
        if words & {"scale", "scales", "factor", "temperature"}:
            return np.ones(shape, spec.dtype)
        return np.asarray(rng.standard_normal(shape), spec.dtype)

    def _integers(
        self, spec: InputSpec, shape: tuple[int, ...], words: set[str], rng: np.random.Generator
    ) -> Array:
        bound, cap = self._bounds.get(spec.name), self._guess.ids
        if words & {"sr", "rate", "samplerate"} and cap is None:
            return np.full(shape, SAMPLE_RATE, spec.dtype)
        if words & {"size", "sizes", "shape", "shapes"} and bound is None and cap is None:
            return np.full(shape, self._guess.side, spec.dtype)
        if words & {"len", "lens", "length", "lengths"} and bound is None and cap is None:
            return np.full(shape, self._longest(), spec.dtype)
        if bound is None:
            bound = 256 if spec.dtype == np.uint8 else 2 if not shape else 100
        bound = min(bound, np.iinfo(spec.dtype).max + 1)
        if cap is not None:
            bound = min(bound, cap)
        if words & {"position", "positions", "pos"} and shape:
            return np.broadcast_to(np.arange(shape[-1]) % bound, shape).astype(spec.dtype)
        if not shape and self._bounds.get(spec.name) is None:
            return np.full(shape, bound - 1, spec.dtype)
        return rng.integers(0, bound, shape).astype(spec.dtype)

    def _longest(self) -> int:
        """The length that a lengths input tells: axis 1 of the widest input of other kind."""
        lengths = [shape[1] for shape in self.shapes.values() if len(shape) > 1]
        return max(lengths, default=self._guess.length)


def _words(name: str) -> set[str]:
    """``encoderAttention_mask.1`` -> {encoder, attention, mask, 1}."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)}


def _symbol_sizes(specs: tuple[InputSpec, ...], guess: Guess) -> dict[str, int]:
    """The size of each symbol: the same wherever it occurs."""
    sizes: dict[str, int] = {}
    for spec in specs:
        for axis, symbol in enumerate(spec.shape or ()):
            if isinstance(symbol, str) and symbol and "+" not in symbol:
                sizes.setdefault(symbol, _free_size(spec, axis, guess))
    for symbol in sizes:
        if symbol.startswith("total_") and (past := sizes.get(f"past_{symbol[6:]}")) is not None:
            sizes[symbol] = past + sizes.get(symbol[6:], guess.length)
    return sizes


def _shape(spec: InputSpec, sizes: Mapping[str, int], guess: Guess) -> tuple[int, ...]:
    if spec.shape is None:  # nothing known at all: an image is the likeliest
        return (1, 3, guess.side, guess.side) if spec.dtype.kind == "f" else (1, guess.length)
    return tuple(
        _size(spec, axis, size, sizes, guess) if is_free(size) else int(str(size))
        for axis, size in enumerate(spec.shape)
    )


def _size(
    spec: InputSpec, axis: int, symbol: object, sizes: Mapping[str, int], guess: Guess
) -> int:
    if not isinstance(symbol, str) or not symbol:
        return _free_size(spec, axis, guess)
    terms = [term.strip() for term in symbol.split("+")]  # as in past_sequence_length + 1
    return sum(int(t) if t.isdigit() else sizes.get(t, guess.length) for t in terms)


def _free_size(spec: InputSpec, axis: int, guess: Guess) -> int:
    """What a free axis most likely is: batch, side of an image or length of a sequence."""
    shape = spec.shape or ()
    symbol = shape[axis] if isinstance(shape[axis], str) else ""
    if _BATCH.search(str(symbol)):
        return 1
    if _IMAGE_SIDE.search(str(symbol)):
        return guess.side
    if _SEQUENCE.search(str(symbol)):
        return guess.length
    rank = len(shape)
    if axis == 0 and (rank > 1 or spec.dtype.kind in "iub"):
        return 1
    depth_last = rank == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    sides = (1, 2) if depth_last else (2, 3)
    if rank == 4 and spec.dtype.kind in "fu" and axis in sides:
        return guess.side
    if rank == 4 and not is_free(shape[sides[0]]) and not is_free(shape[sides[1]]):
        return 3  # an image whose channels are free
    return guess.length
