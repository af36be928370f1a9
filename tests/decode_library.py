"""The C library for reading .oxc, built by its CMake option and called through ctypes."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
EXAMPLE = KERNELS / "decode" / "example" / "decode.c"
OK, BAD_ARGUMENT, CANNOT_READ, NOT_A_CONTAINER, UNSUPPORTED = range(5)
CORRUPT, OVER_LIMIT, OUT_OF_MEMORY, NEEDS_BASE, CANNOT_WRITE = range(5, 10)
RUNTIME = ["-lc++"] if sys.platform == "darwin" else ["-lstdc++", "-lm"]
READ = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t
)
WRITE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Error(ctypes.Structure):
    """onnxcomp_error."""

    _fields_ = [("status", ctypes.c_int), ("message", ctypes.c_char * 240)]


class Tensor(ctypes.Structure):
    """onnxcomp_tensor."""

    _fields_ = [
        ("name", ctypes.POINTER(ctypes.c_char)),
        ("name_length", ctypes.c_size_t),
        ("initializer", ctypes.c_int),
        ("data_type", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("dims", ctypes.POINTER(ctypes.c_uint64)),
        ("size", ctypes.c_uint64),
        ("packed", ctypes.c_uint64),
    ]


class Refused(Exception):
    """What a function of the library answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def missing_tools() -> list[str]:
    """The tools that the library is built with and that this machine lacks."""
    if os.name == "nt":
        return ["a Unix compiler"]
    return [tool for tool in ("cmake", "cc", "c++") if shutil.which(tool) is None]


def run(*command: str | Path) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def documented() -> tuple[str, str]:
    """Of docs/decoding.md the commands that build the library, and those of the example."""
    page = (KERNELS.parent / "docs" / "decoding.md").read_text(encoding="utf-8")
    building, example, *_ = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return building, example.replace("-lstdc++ -lm", " ".join(RUNTIME))


def shell(commands: str, folder: Path) -> None:
    """Runs the commands of a page below ``folder``, which looks like a source tree."""
    if not (folder / "kernels").exists():
        (folder / "kernels").symlink_to(KERNELS)
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"


def build(folder: Path) -> Path:
    """Builds and installs the library below ``folder`` as the page says."""
    shell(documented()[0], folder)
    return folder / "installed"


def compile_example(installed: Path, standard: str = "c99") -> Path:
    """The example as a program, without a warning."""
    flags = [f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    flags += os.environ.get("CFLAGS", "").split()
    library, program = installed / "lib" / "libonnxcomp_decode.a", installed / f"decode-{standard}"
    run("cc", *flags, "-I", installed / "include", EXAMPLE, library, *RUNTIME, "-o", program)
    return program


class Library:
    """The functions of the header; what is not OK raises Refused."""

    def __init__(self, installed: Path) -> None:
        library, shared = installed / "lib" / "libonnxcomp_decode.a", installed / "decode.so"
        whole: list[str | Path] = ["-Wl,--whole-archive", library, "-Wl,--no-whole-archive"]
        if sys.platform == "darwin":
            whole = ["-Wl,-all_load", library]
        flags = os.environ.get("CXXFLAGS", "").split()
        run("c++", "-shared", *flags, *whole, *RUNTIME, "-o", shared)
        self._functions = ctypes.CDLL(str(shared))
        self._functions.onnxcomp_tensor_count.restype = ctypes.c_size_t

    def call(self, name: str, *arguments: Any) -> None:
        error = Error()
        status = getattr(self._functions, f"onnxcomp_{name}")(*arguments, ctypes.byref(error))
        if status != OK:
            assert error.status == status
            assert error.message
            raise Refused(status, error.message.decode("utf-8", "replace"))

    def ask(self, name: str, container: ctypes.c_void_p) -> int:
        """A function that cannot fail."""
        return int(getattr(self._functions, f"onnxcomp_{name}")(container))


class Container:
    """An open container."""

    def __init__(self, library: Library, kind: str, *source: Any, max_bytes: int = 0) -> None:
        self._library, self.handle, self._source = library, ctypes.c_void_p(), source
        place = ctypes.byref(self.handle)
        library.call(f"open_{kind}", *source, ctypes.c_size_t(max_bytes), place)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._library._functions.onnxcomp_close(self.handle)

    def __len__(self) -> int:
        return self._library.ask("tensor_count", self.handle)

    def ask(self, name: str) -> int:
        return self._library.ask(name, self.handle)

    def set_base(self, base: Container) -> None:
        self._library.call("set_base", self.handle, base.handle)

    def info(self, index: int) -> Tensor:
        tensor = Tensor()
        self._library.call("tensor_info", self.handle, ctypes.c_size_t(index), ctypes.byref(tensor))
        return tensor

    def decode(self, index: int, room: int | None = None) -> bytes:
        size = self.info(index).size if room is None else room
        values = ctypes.create_string_buffer(size + 1)
        self._library.call(
            "decode_tensor",
            self.handle,
            ctypes.c_size_t(index),
            ctypes.byref(values, 1),  # odd addresses are fine
            ctypes.c_size_t(size),
        )
        return values.raw[1:]

    def written(
        self, part: str = "write_model", accept: Callable[[int], bool] | None = None
    ) -> bytes:
        """What it writes; ``accept`` is told how much was written before."""
        parts: list[bytes] = []

        @WRITE
        def write(user: int, data: int, length: int) -> int:
            if accept is not None and not accept(sum(map(len, parts))):
                return 1
            parts.append(ctypes.string_at(data, length))
            return 0

        self._library.call(part, self.handle, write, None)
        return b"".join(parts)
