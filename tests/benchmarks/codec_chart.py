"""Draws rows of bench_codec: bytes over the SQNR of the outputs, one line a tool, as an SVG.

    python tests/benchmarks/bench_codec.py --json --trellis --model squeezenet11_fp32 \\
        --db 16 --db 20 --db 24 --db 27 --db 30 > rows.json
    python tests/benchmarks/codec_chart.py rows.json docs/coding.svg
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

COLORS = {"nncodec": "#b33", "onnxcomp": "#27c", "trellis": "#283"}
NAMES = {"nncodec": "nncodec 2.1.3", "onnxcomp": "onnxcomp pack", "trellis": "pack --trellis"}
LEFT, TOP, WIDTH, HEIGHT = 60, 20, 480, 260
Point = tuple[float, float]  # dB, kB


def lines(rows: Sequence[dict[str, object]]) -> dict[str, list[Point]]:
    """The points of each tool, by SQNR."""
    found: dict[str, list[Point]] = {tool: [] for tool in COLORS}
    for row in rows:
        if row["tool"] in found and row["sqnr_db"] is not None:
            found[str(row["tool"])].append(
                (float(str(row["sqnr_db"])), float(str(row["bytes"])) / 1e3)
            )
    return {tool: sorted(points) for tool, points in found.items() if points}


def picture(drawn: dict[str, list[Point]]) -> str:
    """An SVG [560 x 330]."""
    every = [point for points in drawn.values() for point in points]
    first, last = (f(x for x, _ in every) for f in (min, max))
    step = 10 ** math.floor(math.log10(max(y for _, y in every)))
    high = step * math.ceil(max(y for _, y in every) / step)

    def at(x: float, y: float) -> Point:
        return LEFT + WIDTH * (x - first) / (last - first), TOP + HEIGHT * (1 - y / high)

    parts = [_text(LEFT + WIDTH / 2, TOP + HEIGHT + 38, "SQNR of the outputs, dB")]
    parts.append(_text(LEFT - 8, TOP - 6, "kB", "end"))
    for x in range(math.ceil(first / 2) * 2, math.floor(last) + 1, 2):
        parts.append(_text(at(x, 0)[0], TOP + HEIGHT + 18, str(x)))
    for count in range(5):
        y = at(0, high * count / 4)[1]
        parts.append(_text(LEFT - 8, y + 4, f"{high * count / 4:.0f}", "end"))
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
    for index, (tool, points) in enumerate(drawn.items()):
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        color = COLORS[tool]
        parts.append(f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{color}"/>'
            for p in places.split()
        ]
        parts.append(_text(LEFT + 12, TOP + 16 + 18 * index, NAMES[tool], "start", color))
    size = f'width="{LEFT + WIDTH + 20}" height="{TOP + HEIGHT + 50}"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle", fill: str = "#555") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{fill}">{words}</text>'


if __name__ == "__main__":
    rows_file, picture_file = sys.argv[1:]
    Path(picture_file).write_text(picture(lines(json.loads(Path(rows_file).read_text()))))
