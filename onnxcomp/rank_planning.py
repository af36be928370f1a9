"""Which layers are written with thinner weights, by which method and at which rank.

Of each weight the ways to write it are compared by the share of its output's energy that they lose,
tr dW G dWT of tr W G WT, with G = E[x xT] not centred: so what the mean loses counts as well, which
a MatMul has no bias to make up for; keeping it takes one rank at most. What is not worse in both
what it loses and what it uses is an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.factored_convolutions import kernel_error
from onnxcomp.factored_forms import Evidence, Form, forms
from onnxcomp.gram import Array
from onnxcomp.graph import label
from onnxcomp.layer_latency import LayerLatency
from onnxcomp.rank_rules import evbmf_rank
from onnxcomp.rewriting import peek
from onnxcomp.thin_layers import Rank

LEAST_GAIN = 0.05  # of a layer's time: what saves less may be an error of measurement
TIMED = 8  # ways to write a layer that are timed
EXACT = ("svd", "svd_input", "cp")  # whose losses are known without an estimate
METHODS = ("svd", "svd_input", "svd_output", "tucker2", "spatial")  # whose ranks compare at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Option:
    """One way to write a weight.

    Attributes:
        form: how.
        rank: of it.
        lost: the share of the output's energy that is lost; about that of tensor methods, unless
            ``exact``.
        parameters: elements of the factors.
        macs: of all nodes that read the weight, in one run.
        milliseconds: of these nodes, where they were timed.
    """

    form: Form
    rank: Rank
    lost: float
    parameters: int
    macs: int
    milliseconds: float = 0.0
    exact: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Factorable:
    """A weight that can be taken apart, as it is and as it could be.

    Attributes:
        name: label of the first node that reads it.
        nodes: labels of all that do.
        energy: tr W G WT of it: E|y|^2 of a row of its output, of a Conv at one place.
        seen: whether G was observed, not taken to be the identity.
        options: what saves parameters and costs no MACs.
        milliseconds: of the nodes as they are, where they were timed.
        weight: what the model's outputs lose for a share of the energy.
    """

    name: str
    nodes: tuple[str, ...]
    energy: float
    seen: bool
    options: tuple[Option, ...] = field(repr=False)
    milliseconds: float = 0.0
    weight: float = 1.0

    @property
    def form(self) -> Form:
        """Any of the forms, for what all have in common."""
        return self.options[0].form


Plan = dict[str, Option]  # by name of a Factorable


def factorable(
    node: gs.Node,
    gram: Evidence | None,
    method: str,
    shapes: Mapping[str, Sequence[int]],
    multiple: int,
) -> Factorable | str:
    """The ways to write the weight of ``node``, or why there is none.

    Args:
        node: the first that reads it.
        gram: of what it is multiplied with, as `forms` takes it.
        method: of `forms`.
        shapes: of activations.
        multiple: ranks are its multiples.
    """
    found = forms(node, gram, method=method, shapes=shapes)
    if isinstance(found, str):
        return found
    energy = _energy(node, found, gram)
    if energy <= 0:
        return "its output is 0 on all samples"
    if method == "auto":  # each rank of cp is a search, and hardly any saves time
        found = [form for form in found if form.method in METHODS]
    options = [
        _option(form, rank, energy)
        for form in found
        for rank in form.ranks
        if all(each % multiple == 0 for each in np.atleast_1d(rank))
    ]
    if not options:
        return f"no rank that is a multiple of {multiple} has fewer parameters and no more MACs"
    readers = tuple(label(reader) for reader in found[0].nodes)
    return Factorable(
        name=readers[0], nodes=readers, energy=energy, seen=gram is not None, options=tuple(options)
    )


def exact_loss(item: Factorable, option: Option) -> float:
    """The share of the output's energy that is lost; computes the factors."""
    return option.form.error(option.rank) / item.energy


def confirmed(item: Factorable, option: Option) -> Factorable:
    """A weight of which one option's loss is exact, and those of other ranks of its form follow.

    How far estimates are off is alike at ranks that are near each other, and exact losses stay.
    """
    if option.exact:
        return item
    exact = exact_loss(item, option)
    factor = exact / option.lost if option.lost > 0 else 1.0

    def corrected(other: Option) -> Option:
        if other is option:
            return replace(other, lost=exact, exact=True)
        if other.form is option.form and not other.exact:
            return replace(other, lost=factor * other.lost)
        return other

    return replace(item, options=tuple(corrected(other) for other in item.options))


def timed(item: Factorable, latency: LayerLatency, *, faster: bool) -> Factorable | str:
    """A weight with the options that pay in time, or why there is none.

    Args:
        item: the weight.
        latency: of layers, with one thread.
        faster: options have to be faster than the weight as it is; else they may not be slower.
    """
    now = item.form.layer_layers()
    if all(node.op == "Gather" for node in item.form.nodes):
        return "a lookup takes next to no time, thinner weights add a product" if faster else item
    if not now:
        return "the sizes of its activations are not known, so it cannot be timed"
    before = sum(latency.measure(now))
    tried = []
    for option in _worth_timing(item.options):
        ms = sum(latency.measure(option.form.layers(option.rank)))
        tried.append(replace(option, milliseconds=ms))
    most = (1 - LEAST_GAIN) * before if faster else before
    paying = [option for option in tried if option.milliseconds <= most]
    if not paying:
        best = min(tried, key=lambda option: option.milliseconds)
        return (
            f"thinner weights save no time: {best.milliseconds:.3g} ms at best "
            f"({best.form.method}, rank {best.rank}), {before:.3g} ms now"
        )
    return replace(item, options=tuple(paying), milliseconds=before)


def keeping_energy(item: Factorable, energy: float) -> Option | str:
    """The smallest option that keeps this share of the output's energy, or why there is none."""
    keeping = [option for option in item.options if option.lost <= 1 - energy]
    for option in sorted(keeping, key=lambda option: _size(item, option)):
        lost = exact_loss(item, option)
        if lost <= 1 - energy:
            return replace(option, lost=lost)
    best = min(item.options, key=lambda option: option.lost)
    return (
        f"{best.form.method} of rank {best.rank} keeps {1 - exact_loss(item, best):.1%} of its "
        f"output's energy: no rank that keeps {energy:.1%} has fewer parameters and no more MACs"
    )


def above_noise(item: Factorable, multiple: int, energy: float | None) -> Option | str:
    """The smallest option at the ranks that stand out of noise (EVBMF), or why there is none.

    Args:
        item: the weight.
        multiple: ranks become its multiples.
        energy: the share of the output's energy that has to be kept: if noise, too, is part of it,
            the option is the one that `keeping_energy` finds.
    """
    ranked = [(form, _noise_rank(form)) for form in dict.fromkeys(o.form for o in item.options)]
    known = [(form, np.atleast_1d(rank)) for form, rank in ranked if rank is not None]
    if not known:
        return "EVBMF tells no ranks of cp"
    standing = [(form, -(-rank // multiple) * multiple) for form, rank in known if rank.all()]
    if not standing:
        return "nothing stands out of the noise in its weights"
    found = [
        _option(form, _as_rank(rank), item.energy)
        for form, rank in standing
        if len(rank) == 1 or (rank <= form.weight.shape[:2]).all()
    ]
    paying = [o for o in found if o.parameters < o.form.layer_parameters]
    paying = [o for o in paying if o.macs <= o.form.layer_macs or not o.form.layer_macs]
    if not paying:
        return "the ranks that stand out of noise do not have fewer parameters and no more MACs"
    option = min(paying, key=lambda option: _size(item, option))
    if energy is not None and exact_loss(item, option) > 1 - energy:
        return keeping_energy(item, energy)
    return option


def typical(item: Factorable, lost: float) -> Option:
    """The option that loses nearest to a share."""
    return min(item.options, key=lambda o: abs(np.log(max(o.lost, 1e-12) / lost)))


def _size(item: Factorable, option: Option) -> float:
    """Parameters and MACs, or time where that is known, as shares of the weight's."""
    form = item.form
    share = option.parameters / form.layer_parameters
    if item.milliseconds and option.milliseconds:
        return share + option.milliseconds / item.milliseconds
    return share + (option.macs / form.layer_macs if form.layer_macs else 0.0)


def _option(form: Form, rank: Rank, energy: float) -> Option:
    return Option(
        form=form,
        rank=rank,
        lost=_loss(form, rank, energy),
        parameters=form.parameters(rank),
        macs=form.macs(rank),
        exact=form.method in EXACT,
    )


def _loss(form: Form, rank: Rank, energy: float) -> float:
    """About the share of the energy that is lost.

    Estimates of tensor methods go by the G of channels, of which they lose a share.
    """
    if form.method in EXACT:
        return form.estimate(rank) / energy
    nothing = (0, 0) if isinstance(rank, tuple) else 0
    return form.estimate(rank) / (form.estimate(nothing) or 1.0)


def _noise_rank(form: Form) -> Rank | None:
    """How many directions of each side of a weight are more than noise; None of cp."""
    values = peek(form.weight).astype(np.float64)
    if form.nodes[0].op != "Conv":
        return evbmf_rank(values.reshape(values.shape[-2:]))
    out = values.reshape(len(values), -1)
    inner = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
    if form.method in ("svd", "svd_input"):
        return evbmf_rank(out)
    if form.method == "svd_output":
        return evbmf_rank(inner)
    if form.method == "tucker2":
        return evbmf_rank(out), evbmf_rank(inner)
    if form.method == "spatial":
        rows = values.transpose(0, 3, 1, 2)
        return evbmf_rank(rows.reshape(rows.shape[0] * rows.shape[1], -1))
    return None


def _as_rank(sides: Array) -> Rank:
    found = [int(side) for side in sides]
    return found[0] if len(found) == 1 else (found[0], found[1])


def _energy(node: gs.Node, found: Sequence[Form], gram: Evidence | None) -> float:
    """tr W G WT."""
    for form in found:
        if form.method in ("svd", "svd_input"):
            return form.estimate(0)
    assert gram is None or isinstance(gram, np.ndarray)  # what else is of a matrix, with an svd
    return kernel_error(peek(node.inputs[1]).astype(np.float64), gram)


def _front(options: Sequence[Option]) -> list[Option]:
    """Those of which no other has fewer MACs and loses no more; what has fewest first."""
    best: list[Option] = []
    for option in sorted(options, key=lambda option: (option.macs, option.lost)):
        if not best or option.lost < best[-1].lost:
            best.append(option)
    return best


def _worth_timing(options: Sequence[Option]) -> list[Option]:
    """A few of each method, evenly spread over what they lose."""
    by_method: dict[str, list[Option]] = {}
    for option in options:
        by_method.setdefault(option.form.method, []).append(option)
    chosen = []
    for several in by_method.values():
        best = _front(several)
        places = np.linspace(0, len(best) - 1, min(TIMED, len(best))).round()
        chosen += [best[at] for at in np.unique(places.astype(int))]
    return chosen
