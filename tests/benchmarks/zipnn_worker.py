"""Compresses bytes of float32 by ZipNN, in a Python that has it: `python zipnn_worker.py FILE`.

Prints JSON: bytes, CPU seconds of both directions.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import zipnn  # type: ignore[import-not-found]


def main(source: str) -> None:
    data = Path(source).read_bytes()
    coder = zipnn.ZipNN(bytearray_dtype="float32", threads=1)
    start = time.process_time()
    packed = coder.compress(bytearray(data))  # which it reorders in place
    encoded = time.process_time()
    if bytes(coder.decompress(packed)) != data:
        raise SystemExit("ZipNN gives other bytes back")
    end = time.process_time()
    print(
        json.dumps({"bytes": len(packed), "encode_s": encoded - start, "decode_s": end - encoded})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
