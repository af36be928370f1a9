"""All weights of a model on grids of their own, by one knob for the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp import coding_lookups as lookups
from onnxcomp.calibration import Calibration
from onnxcomp.coded_constants import TRIAL, Coded, constants_to_code
from onnxcomp.coding_inputs import NOT_GIVEN, observed
from onnxcomp.coding_quantizer import CodedWeight, quantize_vector
from onnxcomp.coding_refit import Bias, bias_of, refitted
from onnxcomp.coding_steps import relative_noise, step_of, unit_noise
from onnxcomp.errors import OnnxcompError
from onnxcomp.held_out import is_held
from onnxcomp.output_noise import OutputNoise
from onnxcomp.quantization import Array
from onnxcomp.row_counts import Table, looked_up
from onnxcomp.runtime import Feed
from onnxcomp.weight_sites import Layout, Weight, find_weights

PROBED = 16  # samples that unit noises are measured on
TRIALS = 5
SOFTER = 1 / 16  # next trial where an error was too large to tell, the inverse where too small
MUCH = 0.2  # share of the weights that makes it worth to look at the columns of a table
JUDGED_ROWS = 4096  # of a table, at most
VECTOR_SHARE = 0.01  # of the noise that vectors may cause, all together
VECTOR_TRIAL = 2.0**-8  # of the root of their mean squares
COARSEST_VECTOR = 2.0**-4

Advance = Callable[[int, int], None]


class NothingToCode(OnnxcompError):
    """A model has no weights that codes would shorten."""


class CodingPlan:
    """The weights and vectors of a graph, what their errors do, and their codes for any level.

    Attributes:
        weights: matrices, in the order of the graph.
        vectors: float32 vectors by name: biases, scales of normalizations.
        noise: of the outputs, on the samples that unit noises were measured on.
    """

    def __init__(
        self,
        graph: gs.Graph,
        samples: Calibration,
        limit: int | None = None,
        advance: Advance = lambda done, total: None,
        *,
        left: Collection[str] = (),
    ) -> None:
        """Observes the inputs of layers and tries a step for each weight.

        Args:
            graph: simplified; is not changed.
            samples: to observe and to measure on.
            limit: of their number.
            advance: told of runs over samples.
            left: names of constants that get no codes.

        Raises:
            NothingToCode: no float32 constant but those is a matrix.
        """
        found = find_weights(graph)
        self.weights, self.vectors = constants_to_code(graph, found, left)
        if not self.weights:
            raise NothingToCode("no float32 weights to quantize; --lossless packs what there is")
        names = [coded.name for coded in self.weights]
        feeds = list(samples.feeds(limit))
        held = [feed for index, feed in enumerate(feeds) if is_held(index)] or feeds
        shown = [feed for index, feed in enumerate(feeds) if not is_held(index)]
        if samples.synthetic:
            for coded in self.weights:
                coded.rounded = NOT_GIVEN
        else:
            chosen = [weight for weight in found if weight.constant.name in names]
            self._observe(graph, chosen, shown, held, advance)
        self.noise = OutputNoise(graph, [*names, *self.vectors], held[:PROBED])
        self._measure()
        if samples.synthetic:  # made-up inputs hardly reach what a network knows
            for coded in self.weights:
                coded.noise = max(coded.noise, relative_noise(coded.values))
        self._vector_noise = self._of_vectors(VECTOR_TRIAL) / VECTOR_TRIAL**2

    def leave(self, names: Collection[str]) -> None:
        """Gives no codes to these weights after all."""
        self.weights = [weight for weight in self.weights if weight.name not in names]

    @property
    def elements(self) -> int:
        """Of all weights."""
        return sum(coded.values.size for coded in self.weights)

    def level_for(self, sqnr_db: float) -> float:
        """The level that should leave the outputs that SQNR, if errors add up."""
        return float(10 ** (-sqnr_db / 10)) / max(1, self.elements)

    def at(self, level: float, trellis: bool = False) -> dict[str, CodedWeight]:
        """Codes of all constants, where each element of a weight may cause so much noise."""
        steps = {w.name: step_of(level, w.values.size, w.noise) for w in self.weights}
        found = {w.name: w.at(steps[w.name], trellis) for w in self.weights}
        plain = found | self._coded_vectors(level, self.vectors)
        shifts = {
            w.bias.name: w.bias.shift(w.values, found[w.name], w.layout)
            for w in self.weights
            if w.bias is not None and w.bias.name in self.vectors
        }
        if not shifts:
            return plain
        moved = found | self._coded_vectors(level, refitted(self.vectors, shifts))
        return min(plain, moved, key=self._share)  # residual networks may do worse with it

    @property
    def rounded(self) -> dict[str, str]:
        """Weights whose codes are the nearest ones, and why."""
        return {weight.name: weight.rounded for weight in self.weights if weight.rounded}

    def _observe(
        self,
        graph: gs.Graph,
        weights: Sequence[Weight],
        shown: list[Feed],
        held: list[Feed],
        advance: Advance,
    ) -> None:
        """Tells the weights what is known of their inputs."""
        parts = _listed(shown, graph), _listed(held, graph)
        sites = {weight.constant.name: weight for weight in weights}
        mine = {coded.name: coded for coded in self.weights}
        for name, inputs in observed(graph, weights, parts, advance):
            if isinstance(inputs, str):
                mine[name].rounded = inputs
                continue
            mine[name].layout = inputs.layout
            mine[name].trust(inputs.shown.matrix, inputs.held.matrix)
            bias = bias_of(graph, sites[name])
            if bias in self.vectors:
                mine[name].bias = Bias(bias, inputs.mean)
        tables = [weight for weight in weights if weight.is_table]
        for weight, shares in zip(tables, _shares(graph, tables, parts[0]), strict=True):
            if shares is not None:
                table = mine[weight.constant.name]
                table.multiples = lookups.row_multiples(shares)
                self._relate_columns(table, graph, shown)

    def _relate_columns(self, table: Coded, graph: gs.Graph, shown: Sequence[Feed]) -> None:
        """Tells a table that is much of the model how its columns work together."""
        rows, columns = table.values.shape
        samples = min(lookups.samples_for(columns), len(shown) // 2 * 2)
        if samples < 2 or table.values.size < MUCH * self.elements:
            return
        noise = OutputNoise(graph, [table.name], shown[:samples])
        samples = noise.samples // 2 * 2  # outputs may be too large to keep those of all
        if samples < 2:
            return
        found = lookups.column_products(noise, table.name, table.values, samples)
        if found is not None:
            some = table.values[:: -(-rows // JUDGED_ROWS)]
            judged = Coded(table.name, some, Layout(some.shape, (0, 1), 1))
            judged.trust(*found)
            table.take_inputs(judged)

    def _measure(self) -> None:
        known = []
        for weight in self.weights:
            weight.noise = self._trial(weight)
            known.append(weight.noise)
        positive = [noise for noise in known if noise > 0]
        for weight in self.weights:  # what no sample reaches is coded like the least that matters
            weight.noise = weight.noise or (min(positive) if positive else 1.0)

    def _trial(self, weight: Coded) -> float:
        step = TRIAL * float(np.std(weight.values, dtype=np.float64))
        for _ in range(TRIALS if step > 0 else 0):
            share = self._share({weight.name: weight.at(step)})
            noise = unit_noise(share, step)
            if noise is not None:
                return noise
            if share == 0:
                return 0.0
            step *= SOFTER if share > 0.1 else 1 / SOFTER
        return 0.0

    def _share(self, coded: Mapping[str, CodedWeight]) -> float:
        shares = self.noise.shares({name: weight.values for name, weight in coded.items()})
        return float(np.mean(shares))

    def _of_vectors(self, step: float) -> float:
        return self._share(_coded(self.vectors, step))

    def _coded_vectors(self, level: float, vectors: Mapping[str, Array]) -> dict[str, CodedWeight]:
        allowed = VECTOR_SHARE * level * self.elements
        step = COARSEST_VECTOR
        if self._vector_noise > 0:
            step = min(step, float(np.sqrt(allowed / self._vector_noise)))
        return _coded(vectors, step)


def _shares(graph: gs.Graph, tables: Sequence[Weight], samples: Calibration) -> list[Array | None]:
    """Shares of the rows of tables; None of those that nobody looks up in the samples."""
    wanted = [
        Table(weight.layout.rows, {site.node.inputs[1].name for site in weight.sites})
        for weight in tables
    ]
    return looked_up(graph, wanted, samples)


def _coded(vectors: Mapping[str, Array], step: float) -> dict[str, CodedWeight]:
    """Nearest codes of vectors, with that step in units of the root of their mean squares."""
    return {
        name: quantize_vector(values, step * float(np.sqrt(np.mean(np.square(values)))))
        for name, values in vectors.items()
    }


def _listed(feeds: list[Feed], graph: gs.Graph) -> Calibration:
    return Calibration.from_source(feeds, graph)
