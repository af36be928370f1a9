"""Weight-only quantization: weights as codes of 2 to 8 bits, activations stay float."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.block_codes import BlockCodes, Grid
from onnxcomp.codebook import cluster
from onnxcomp.errors import OpsetConversionFailed
from onnxcomp.graph import Names, all_graphs, label, remove_unused, sort_nodes
from onnxcomp.input_scaling import divide_input
from onnxcomp.opset import convert_in_place
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.quantization import Array
from onnxcomp.weight_forms import FormWriter
from onnxcomp.weight_grams import observed_grams
from onnxcomp.weight_only import (
    gptq_blocks,
    half_quadratic,
    importance_of,
    input_scaling,
    least_squares,
    round_to_nearest,
)
from onnxcomp.weight_sites import WEIGHTS, Weight, find_weights, refused_nodes

BLOCK_SIZES = (0, 16, 32, 64, 128, 256)  # powers of two are what MatMulNBits takes
BLOCK_OPSET = 21  # the first whose DequantizeLinear takes blocks and 4 bits
FAST_BITS = (4, 8)  # of MatMulNBits
FAST_BLOCK = 32  # smaller ones are slower than float
FAST_WIDTH, FAST_ROWS = 384, 256  # of a weight: in smaller ones rounding the input takes longer
AWQ_GAIN = 0.98  # of the error: a smaller gain is not worth a division at every run


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Stores weights in 2 to 8 bits and computes with floats (weight-only quantization).

    Attributes:
        bits: of a code: 2, 4 or 8; with a codebook any of 2 to 8.
        block_size: neighbouring weights of a row that share a scale: 16, 32, 64, 128, 256, or 0
            for one scale for each output channel.
        method: how codes are chosen: "rtn" nearest, "hqq" nearest on fitted scales, "gptq" so
            that the layer's output on the samples changes least, "awq" nearest after scaling the
            input channels. "auto" is gptq where there are samples, else hqq.
        form: how they are written: "matmulnbits" for onnxruntime, "dequantize" for runtimes that
            take DequantizeLinear, "expand" as plain operators that any runtime folds when it
            loads the model. "auto" is what is smallest without being slower on the target.
        symmetric: no zero points.
        codebook: store indices into the best 2**bits values of each weight, not multiples of
            a scale.
        embeddings: tables that Gather reads too.
        operators: operator types to quantize; empty for all that have weights.
        smallest_weight: weights with fewer elements than this stay float.
        samples: at most so many are run to measure how inputs of layers correlate.
    """

    bits: int = 4
    block_size: int = 32
    method: Literal["auto", "rtn", "gptq", "awq", "hqq"] = "auto"
    form: Literal["auto", "matmulnbits", "dequantize", "expand"] = "auto"
    symmetric: bool = False
    codebook: bool = False
    embeddings: bool = True
    operators: tuple[str, ...] = ()
    smallest_weight: int = 1024
    samples: int = 128

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        allowed = range(2, 9) if self.codebook else (2, 4, 8)
        if self.bits not in allowed:
            raise ValueError(f"bits must be one of {', '.join(map(str, allowed))}, not {self.bits}")
        if self.block_size not in BLOCK_SIZES:
            known = ", ".join(map(str, BLOCK_SIZES))
            raise ValueError(f"block_size must be one of {known}, not {self.block_size}")
        for option in ("smallest_weight", "samples"):
            if getattr(self, option) < 0:
                raise ValueError(f"{option} must not be negative, not {getattr(self, option)}")
        for op in self.operators:
            if op not in WEIGHTS:
                raise ValueError(f"operators: {op!r} has no weights; known: {', '.join(WEIGHTS)}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the nodes whose weights would be stored as codes."""
        chosen = self._chosen(graph, PassReport(), read=False)
        nodes = [site.layer for weight, _ in chosen for site in weight.sites]
        return list(dict.fromkeys(label(node) for node in nodes))

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Rounds weight after weight and writes each form; see `Pass.rewrite`."""
        chosen = self._chosen(graph, report)
        if chosen and self._wants_blocks(chosen, context.target.everywhere, graph.opset):
            self._raise_opset(graph, report)
            chosen = self._chosen(graph, report)
        if not chosen:
            return
        work = _Work(graph, context, report, {id(w): options for w, options in chosen})
        weights = [weight for weight, _ in chosen]
        samples = context.calibration
        if self.method in ("gptq", "awq"):
            samples = context.samples()
        elif self.method != "auto" or (samples is not None and samples.synthetic):
            samples = None  # made-up inputs say nothing of how real ones correlate
        for weight, gram in observed_grams(graph, weights, samples, self.samples, context.advance):
            report.current = label(weight.sites[0].layer)
            work.store(weight, gram)
        work.finish()

    def _wants_blocks(self, chosen: list[tuple[Weight, Self]], generic: bool, opset: int) -> bool:
        """Whether a DequantizeLinear is wanted that the opset does not have yet."""
        return opset < BLOCK_OPSET and any(
            options._form(weight, generic, BLOCK_OPSET)[0] == "dequantize"
            and options._form(weight, generic, opset)[0] != "dequantize"
            for weight, options in chosen
            if not options.codebook
        )

    def _raise_opset(self, graph: gs.Graph, report: PassReport) -> None:
        """To the first with blocks; where that fails, weights are expanded."""
        came = graph.opset
        try:
            convert_in_place(graph, BLOCK_OPSET)
        except OpsetConversionFailed as error:
            report.notes.append(f"opset {came} stays, so weights are unpacked at load: {error}")
        else:
            report.notes.append(f"opset {came} was converted to {BLOCK_OPSET}")

    def _chosen(
        self, graph: gs.Graph, report: PassReport, read: bool = True
    ) -> list[tuple[Weight, Self]]:
        """The weights to store as codes with their options; reasons for others go to ``report``.

        Without ``read`` no weight is looked into, which may lie in a file of many GB.
        """
        chosen: list[tuple[Weight, Self]] = []
        for node, reason in refused_nodes(graph):
            report.skip(node, reason)
        for weight in find_weights(graph):
            options = [self.options_for(site.layer) for site in weight.sites]
            mine = next((o for o in options if o is not None), None)
            reasons = {
                label(site.layer): "the recipe says so" if o is None else o._refusal(site.layer)
                for site, o in zip(weight.sites, options, strict=True)
            }
            found = next(filter(None, reasons.values()), "") or _unfit(weight, mine or self, read)
            if found or mine is None:
                for name, reason in reasons.items():
                    report.skip(name, reason or found)
            else:
                chosen.append((weight, mine))
        return chosen

    def _refusal(self, node: gs.Node) -> str:
        """Why the options exclude a node; empty if they do not."""
        if self.operators and node.op not in self.operators:
            return f"{node.op} is excluded by the options"
        return "embeddings are left alone" if node.op == "Gather" and not self.embeddings else ""

    def _grid(self) -> Grid:
        return Grid(bits=self.bits, block_size=self.block_size, symmetric=self.symmetric)

    def _form(self, weight: Weight, generic: bool, opset: int) -> tuple[str, Grid]:
        """The method of `FormWriter` for a weight, and the grid that it can write."""
        grid, rows = self._grid(), replace(self._grid(), block_size=0, symmetric=True)
        d = int(np.prod(weight.layout.ordered[weight.layout.outputs :]))
        form = ("dequantize" if generic else "matmulnbits") if self.form == "auto" else self.form
        if weight.is_table and form != "expand":
            width = grid.width(d)
            if form == "matmulnbits" and width in BLOCK_SIZES and d % width == 0:
                return "lookup", grid
            return ("rows", rows) if self.bits == 8 and not self.block_size else ("expand", grid)
        if form == "matmulnbits" and weight.is_product:
            fast = self.bits in FAST_BITS and (self.block_size or FAST_BLOCK) >= FAST_BLOCK
            fast = fast and d >= FAST_WIDTH and weight.layout.rows >= FAST_ROWS
            return ("matmulnbits" if fast or self.form == form else "expand"), grid
        if form != "dequantize":
            return "expand", grid
        layout = weight.layout
        if len(layout.order) - layout.outputs > 1:  # blocks lie along one axis
            grid = replace(grid, block_size=0)
        per_channel = layout.outputs == 1 and grid.width(d) == d
        if opset >= BLOCK_OPSET or (per_channel and self.bits == 8):
            return "dequantize", grid
        return "expand", grid


class _Work:
    """One run of the pass: rounds weights, writes them, and keeps count."""

    def __init__(
        self,
        graph: gs.Graph,
        context: PassContext,
        report: PassReport,
        options: dict[int, QuantizeWeights],
    ) -> None:
        self.graph, self.report, self.options = graph, report, options
        self.names = Names(graph)
        self.writer = FormWriter(graph, self.names)
        self.generic, self.opset = context.target.everywhere, graph.opset
        self.scaled: dict[int, list[tuple[Weight, Array]]] = {}
        self.forms: Counter[str] = Counter()
        self.elements = self.without_gram = 0
        self.changed: dict[str, None] = {}

    def store(self, weight: Weight, gram: Array | None) -> None:
        """Rounds and writes a weight, or puts it aside to be scaled with its neighbours."""
        mine = self.options[id(weight)]
        if (
            mine.method == "awq"
            and gram is not None
            and _shares_input(weight)
            and not mine.codebook
        ):
            x = weight.sites[0].node.inputs[0]
            self.scaled.setdefault(id(x), []).append((weight, gram))
            return
        values = weight.layout.matrix(np.asarray(weight.constant.values))
        self._write(weight, values, gram)

    def finish(self) -> None:
        """Scales what waits for it, and tidies the graph up."""
        for group in self.scaled.values():
            self._scale(group)
        for body in all_graphs(self.graph):
            sort_nodes(body)
            remove_unused(body)
        for name in self.changed:
            self.report.skipped.pop(name, None)  # of two weights one was too small
            self.report.change(name)
        self.report.numbers["bits_per_weight"] = round(8 * self.writer.bytes / self.elements, 2)
        forms = ", ".join(f"{count} as {form}" for form, count in sorted(self.forms.items()))
        self.report.notes.append(f"weights: {forms}")
        if self.without_gram:
            self.report.notes.append(
                f"{self.without_gram} weights were rounded without samples: none were given, or "
                "their inputs are inside a body, too wide, or were not seen"
            )

    def _write(self, weight: Weight, values: Array, gram: Array | None) -> None:
        """Rounds ``values``, a matrix that stands for a weight, and writes the codes."""
        mine = self.options[id(weight)]
        form, grid = mine._form(weight, self.generic, self.opset)
        if mine.codebook:
            form, grams = "codebook", None if gram is None else importance_of(gram, len(values))
            book, indices = cluster(values, 2**mine.bits, grams)
            self.writer.codebook(weight, book, indices, mine.bits)
        else:
            multiplies = weight.sites[0].layer.op != "Gather"
            if gram is None and multiplies and mine.method in ("auto", "gptq", "awq"):
                self.without_gram += 1
            rounded = _rounded(values, grid, mine.method, gram)
            getattr(self.writer, form)(weight, rounded)
        self.forms[form] += 1
        self.elements += values.size
        for site in weight.sites:
            self.changed[label(site.layer)] = None

    def _scale(self, group: list[tuple[Weight, Array]]) -> None:
        """AWQ for all weights that read one input: they share what it is divided by."""
        first = group[0][0].sites[0]
        options = self.options[id(group[0][0])]
        matrices = [w.layout.matrix(np.asarray(w.constant.values)) for w, _ in group]
        grid = options._form(group[0][0], self.generic, self.opset)[1]

        def quantize(values: Array, importance: Array) -> Array:
            return least_squares(values, grid, importance).dequantized()

        gram = group[0][1]
        scale, (before, after) = input_scaling(np.concatenate(matrices), gram, quantize)
        pays = after < AWQ_GAIN * before
        if pays:
            nodes = [site.node for weight, _ in group for site in weight.sites]
            divide_input(first.body, first.node.inputs[0], nodes, scale, self.names)
            gram = gram / scale / scale[:, None]
        for (weight, _), values in zip(group, matrices, strict=True):
            self._write(weight, values * scale if pays else values, gram)


def _unfit(weight: Weight, options: QuantizeWeights, read: bool) -> str:
    """Why a weight is better left as it is; empty if it is not."""
    count = int(np.prod(weight.layout.shape))
    if count < options.smallest_weight:
        return f"only {count:,} weights"
    if read and not np.isfinite(weight.constant.values).all():
        return "its weights are not finite"
    return ""


def _shares_input(weight: Weight) -> bool:
    """Whether all that reads a weight multiplies one and the same tensor with it."""
    return weight.is_product and len({id(s.node.inputs[0]) for s in weight.sites}) == 1


def _rounded(values: Array, grid: Grid, method: str, gram: Array | None) -> BlockCodes:
    """The codes of a matrix [rows, d]."""
    if method == "rtn":
        return round_to_nearest(values, grid)
    if gram is None or method == "hqq":
        return half_quadratic(values, grid)
    if method == "awq":
        return least_squares(values, grid, importance_of(gram, len(values)))
    return gptq_blocks(values, gram, grid)
