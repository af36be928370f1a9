"""Codes weights by nncodec, in a Python that has it.

    python nncodec_worker.py WEIGHTS.npz DECODED.npz QP

Its defaults, trellis on. Prints JSON: bytes of the bitstream, CPU seconds of both directions.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time

import nncodec.nn as nncodec  # type: ignore[import-not-found]
import numpy as np


def main(source: str, target: str, qp: str) -> None:
    weights = dict(np.load(source))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = {**nncodec.nncargs, "qp": int(qp), "use_dq": True, "results": folder}
        options |= {"model": "m", "verbose": False, "wandb": False}
        start = time.process_time()
        stream = nncodec.encode(weights, options)
        encoded = time.process_time()
        decoded = nncodec.decode(stream)
        end = time.process_time()
    np.savez(target, **{name: np.asarray(values) for name, values in decoded.items()})
    print(
        json.dumps({"bytes": len(stream), "encode_s": encoded - start, "decode_s": end - encoded})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
