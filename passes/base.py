"""What a pass is, what it is given and what it reports."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import onnx_graphsurgeon as gs

from onnxcomp.errors import CalibrationRequired
from onnxcomp.graph import label

if TYPE_CHECKING:
    from onnxcomp.calibration import Calibration
    from onnxcomp.coding_quality import Quality, Quantized
    from onnxcomp.targets import Target

Advance = Callable[[int, int], None]  # done, total


def no_progress(done: int, total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True, kw_only=True)
class PassContext:
    """What a pass may use besides the graph.

    Attributes:
        calibration: samples of the model's inputs, or None.
        target: what runtime and CPU the result is for.
        seed: of every random choice: the same seed gives the same bytes.
        advance: called with (done, total) by long work.
        original: the model before the first pass, for reports in its names; not to be changed.
        removed: what earlier passes reported to have removed of it.
        must_pay: what saves neither time nor bytes is undone afterwards: better left out.
        held_back: samples that the result is judged by, which are not to be fitted to.
        quality: how far a pass may go that can choose, as the gates of the recipe have it.
        margin: of a graph, what is left until a gate on its answers breaks, in dB or points.
    """

    target: Target
    calibration: Calibration | None = None
    seed: int = 0
    advance: Advance = no_progress
    original: gs.Graph | None = None
    removed: Sequence[Mapping[str, Any]] = ()
    must_pay: bool = False
    held_back: Calibration | None = None
    quality: Quality | None = None
    margin: Callable[[gs.Graph], float] | None = None

    @property
    def has_real_samples(self) -> bool:
        """Whether samples were given, not made up."""
        return self.calibration is not None and not self.calibration.synthetic

    def samples(self) -> Calibration:
        """The calibration samples.

        Raises:
            CalibrationRequired: none were given.
        """
        if self.calibration is None:
            raise CalibrationRequired("no samples: give some with --calibration SRC")
        return self.calibration


@dataclass
class PassReport:
    """What one pass did to which node, and why it left others alone.

    Attributes:
        changed: labels of nodes that were changed.
        skipped: label -> reason, for every node that the pass might have changed and did not.
        numbers: what else is worth knowing, units in the names.
        removed: of each channel group that lost units, what left, in names of the original model;
            docs/report.md has the keys.
        factorized: of each weight that was taken apart, how; docs/report.md has the keys.
        quantized: what weights were coded as, for a container.
        current: label of the node at work, for the message when the pass raises.
    """

    changed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    factorized: list[dict[str, Any]] = field(default_factory=list)
    quantized: Quantized | None = None
    current: str = ""

    def change(self, node: gs.Node | str) -> None:
        """Records that ``node`` was changed."""
        self.changed.append(node if isinstance(node, str) else label(node))

    def skip(self, node: gs.Node | str, reason: str) -> None:
        """Records why ``node`` was left alone."""
        self.skipped[node if isinstance(node, str) else label(node)] = reason

    def count(self, what: str, found: float) -> None:
        """Adds to one of the numbers."""
        self.numbers[what] = self.numbers.get(what, 0) + found

    def visit(self, nodes: Iterable[gs.Node]) -> Iterator[gs.Node]:
        """Yields ``nodes`` of a snapshot, remembering which one is at work."""
        for node in list(nodes):
            self.current = label(node)
            yield node
        self.current = ""


Overrides = Mapping[str, Mapping[str, Any]]  # glob of node labels -> option -> value


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """One change of the graph. Subclasses are frozen dataclasses: their fields are the options.

    Every option has a default and its meaning under ``Attributes:`` in the class docstring, whose
    first line says what the pass does.

    Attributes:
        overrides: options of single nodes, by glob of their labels; ``{"skip": True}`` leaves
            a node alone. The last matching glob wins, option by option.
    """

    needs_calibration: ClassVar[bool] = False
    minimum_opset: ClassVar[int] = 13
    trades_precision: ClassVar[bool] = False  # nodes left alone buy fidelity for bytes and time
    draft_options: ClassVar[Mapping[str, Any]] = {}  # in which `draft` differs

    overrides: Overrides = field(default_factory=dict, hash=False)

    @classmethod
    def name(cls) -> str:
        """The name in recipes and on the command line: ``quantize_static`` of QuantizeStatic."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @abstractmethod
    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Changes ``graph`` in place and says in ``report`` what it did and what it left alone.

        Shapes, names and dtypes of inputs and outputs stay. Arrays are never written into: a new
        value is a new constant under a new name.
        """

    @abstractmethod
    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the nodes this pass could touch, without samples and without changing any."""

    def draft(self) -> Self:
        """A quicker form of this pass, for a search that tries it many times on other nodes."""
        return dataclasses.replace(self, **self.draft_options)

    def settings(self) -> dict[str, Any]:
        """The options for a report: overrides only where there are any."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name != "overrides" or value}

    def options_for(self, node: gs.Node | str) -> Self | None:
        """This pass with the overrides of one node applied; None where it is to be skipped."""
        if not self.overrides:
            return self
        name = node if isinstance(node, str) else label(node)
        merged: dict[str, Any] = {}
        for glob, options in self.overrides.items():
            if fnmatch.fnmatchcase(name, glob):
                merged |= options
        if merged.pop("skip", False):
            return None
        return dataclasses.replace(self, **merged) if merged else self
