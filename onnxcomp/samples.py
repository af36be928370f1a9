"""Where feeds come from: .npz files, folders, Python functions, lists.

Every source can be iterated any number of times and holds one sample at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxcomp.errors import CalibrationError
from onnxcomp.signature import Array, InputSpec, Signature

CONFIG_NAME = "calibration.toml"


@dataclass(frozen=True)
class Samples:
    """A source of feeds.

    Attributes:
        label: what a report calls it.
        read: starts from the first sample; yields (where it is from, unchecked feed).
        count: number of samples, None when only reading them tells.
        unsuited: why made-up ones tell no ranges; empty for real ones, and for images that do.
    """

    label: str
    read: Callable[[], Iterator[tuple[str, Any]]]
    count: int | None = None
    unsuited: str = ""


def open_samples(source: str | os.PathLike[str] | Iterable[Any], signature: Signature) -> Samples:
    """Finds out what ``source`` is and checks what can be checked without reading it through.

    Raises:
        CalibrationError: there is no such source, or it does not fit the model.
    """
    if not isinstance(source, (str, os.PathLike)):
        return iterable_samples(source)
    path = Path(source)
    if path.is_dir():
        return _folder(path, signature)
    file, colon, function = str(source).rpartition(":")
    if colon and file.endswith(".py"):
        return function_samples(load_function(file, function), f"{Path(file).name}:{function}")
    if not path.exists():
        raise CalibrationError(f"{path}: no such file or folder")
    if path.suffix == ".py":
        raise CalibrationError(f"{path}: name the function too, as {path}:FUNCTION")
    if path.suffix != ".npz":
        raise CalibrationError(
            f"{path}: not a source of samples; give an .npz file, a folder or FILE.py:FUNCTION"
        )
    return stacked_samples(path, signature)


def iterable_samples(feeds: Iterable[Any]) -> Samples:
    """Feeds from Python. An iterator, which runs only once, is read into a list."""
    if not isinstance(feeds, Iterable) or isinstance(feeds, (dict, np.ndarray, bytes)):
        raise CalibrationError(
            f"samples are a list of feeds (dicts of name to array), not {type(feeds).__name__}"
        )
    again: Iterable[Any] = list(feeds) if isinstance(feeds, Iterator) else feeds
    count = len(again) if isinstance(again, (list, tuple)) else None
    return Samples("a list of feeds", lambda: _numbered("feed", again), count)


def _numbered(label: str, feeds: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{label}, sample {index}", feed) for index, feed in enumerate(feeds))


# --- FILE.py:FUNCTION -------------------------------------------------------------------------


def load_function(file: str | os.PathLike[str], name: str) -> Callable[..., Any]:
    """The function ``name`` of a Python file, which may import its neighbours.

    Raises:
        CalibrationError: the file is missing or fails, or has no such function.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise CalibrationError(f"{file}: no such file")
    module_name = f"_onnxcomp_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise CalibrationError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look it up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CalibrationError(f"{file}: {_failure(error)}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise CalibrationError(f"{file}: has no function {name!r}")
    return function  # type: ignore[no-any-return]


def function_samples(function: Callable[[], Iterable[Any]], label: str) -> Samples:
    """Feeds that a user's function yields; it is called anew for each pass over the samples."""

    def read() -> Iterator[tuple[str, Any]]:
        try:
            yield from _numbered(label, function())
        except CalibrationError:
            raise
        except Exception as error:
            raise CalibrationError(f"{label}: {_failure(error)}") from error

    return Samples(label, read)


def _failure(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}"


# --- .npz -------------------------------------------------------------------------------------


def stacked_samples(path: Path, signature: Signature) -> Samples:
    """An .npz of one array per input, array[i] being sample i.

    Arrays are decompressed a sample at a time, whatever the size of the file.

    Raises:
        CalibrationError: unreadable, wrong names, shapes or dtypes, or unequal counts.
    """
    counts = {}
    with _open_npz(path) as archive:
        names = _members(archive)
        signature.check_names(names, path.name)
        for name in names:
            with _open_member(archive, name, path) as stream:
                shape, _, dtype = _header(stream, name, path)
            counts[name] = _check_stack(signature[name], shape, dtype, path)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise CalibrationError(f"{path}: arrays hold unequal numbers of samples: {listed}")
    count = next(iter(counts.values()), 0)
    if count < 1:
        raise CalibrationError(f"{path}: holds no samples")
    return Samples(path.name, lambda: _read_stack(path, signature, count), count)


def _check_stack(spec: InputSpec, shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> int:
    where = f"{path}, array {spec.name!r}"
    if not shape:
        raise CalibrationError(f"{where}: has no axis of samples")
    if dtype.kind == "O":
        raise CalibrationError(f"{where}: holds Python objects, which are never loaded")
    spec.check_dtype(dtype, where)
    if shape[0]:
        spec.check_shape(_sample_shape(spec, shape), f"{where}, array[0]")
    return shape[0]


def _sample_shape(spec: InputSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the feed that array[i] makes: a batch axis of 1 is added where it was left out."""
    if spec.rank == len(shape) - 1:
        return shape[1:]
    return (1, *shape[1:])


def _read_stack(path: Path, signature: Signature, count: int) -> Iterator[tuple[str, Any]]:
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(_open_npz(path))
        readers = {
            name: _read_member(stack.enter_context(_open_member(archive, name, path)), name, path)
            for name in _members(archive)
        }
        for index in range(count):
            feed = {}
            for name, reader in readers.items():
                sample = next(reader)
                feed[name] = sample.reshape(_sample_shape(signature[name], (0, *sample.shape)))
            yield f"{path.name}, sample {index}", feed


def _read_member(stream: IO[bytes], name: str, path: Path) -> Iterator[Array]:
    """The items of one stored array along its first axis."""
    shape, fortran, dtype = _header(stream, name, path)
    if fortran and len(shape) > 1:  # samples are interleaved: only the whole array makes sense
        yield from _read(stream, shape[::-1], dtype, name, path).T
        return
    for _ in range(shape[0]):
        yield _read(stream, shape[1:], dtype, name, path)


def _read(
    stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], name: str, path: Path
) -> Array:
    """The next prod(shape) elements of a member, in C order."""
    with _readable(path, name):
        size = math.prod(shape) * dtype.itemsize
        data = stream.read(size)
        if len(data) != size:
            raise EOFError("it ends early")
        return np.frombuffer(data, dtype).reshape(shape)


_UNREADABLE = (  # what zipfile and numpy raise on files that are cut short, altered or encrypted
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def _readable(path: Path, name: str = "") -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        what = f"array {name!r} cannot be read" if name else "not a readable .npz file"
        raise CalibrationError(f"{path}: {what} ({error})") from error


def _open_npz(path: Path) -> zipfile.ZipFile:
    with _readable(path):
        return zipfile.ZipFile(path)


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _open_member(archive: zipfile.ZipFile, name: str, path: Path) -> IO[bytes]:
    with _readable(path, name):
        return archive.open(f"{name}.npy" if f"{name}.npy" in archive.NameToInfo else name)


def _header(
    stream: IO[bytes], name: str, path: Path
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with _readable(path, name):
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    return shape, fortran, dtype


# --- folders ----------------------------------------------------------------------------------


def _folder(path: Path, signature: Signature) -> Samples:
    if (path / CONFIG_NAME).is_file():
        from onnxcomp.images import image_samples

        return image_samples(path, signature)
    files = sorted(path.glob("*.npz"))
    if not files:
        raise CalibrationError(
            f"{path}: holds no .npz files; a folder of images needs a {CONFIG_NAME} beside them"
        )
    return Samples(path.name or str(path), lambda: _read_files(files), len(files))


def _read_files(files: list[Path]) -> Iterator[tuple[str, Any]]:
    for file in files:
        yield str(file), read_arrays(file)


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz, whole.

    Raises:
        CalibrationError: unreadable, or an array of Python objects.
    """
    if not path.is_file():
        raise CalibrationError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    arrays = {}
    with _open_npz(path) as archive:
        for name in _members(archive):
            with _open_member(archive, name, path) as stream, _readable(path, name):
                arrays[name] = npy.read_array(stream, allow_pickle=False)
    return arrays
