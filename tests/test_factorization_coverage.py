"""Architectures with thinner weights are the original with the products of the factors in it.

The default run takes a few; `pytest -m slow tests/test_factorization_coverage.py` takes all of
archzoo and of the models found in public repositories.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from factor_products import full_rank, product
from layers_alone import assert_close, assert_layers_equal, run
from onnx import numpy_helper
from zoo import SHARED, architectures

from onnxcomp import optimize
from onnxcomp.calibration import Calibration
from onnxcomp.factored_forms import possible_forms
from onnxcomp.graph import Names, all_nodes
from onnxcomp.model import load_model, save_model
from onnxcomp.parameters import count_parameters
from onnxcomp.passes.factorize_weights import FactorizeWeights
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import compose
from onnxcomp.report import PassResult
from onnxcomp.shapes import infer_shapes

FEW = {"albert", "gru_speech", "lstm_text", "tcn", "unet"}
FULL = ["dscnn_kws", "espcn", "gpt2", "gru_speech", "squeezenet1_1", "t5_encoder", "tcn"]
FULL += ["unet", "yolo_head"]
FEW_FOUND = {"fsmn-vad__fsmnvad-offline.onnx", "tract__model_2a2db8.onnx"}
ENERGY = 0.9

Array = npt.NDArray[Any]
Feeds = list[dict[str, Array]]


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def signature(path: Path) -> list[tuple[str, str, list[Any]]]:
    found = session(path)
    return [(v.name, v.type, v.shape) for v in (*found.get_inputs(), *found.get_outputs())]


def assert_valid(path: Path, source: Path) -> None:
    """For the checker and strict inference, and with the inputs and outputs of ``source``."""
    onnx.checker.check_model(path, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
    assert signature(path) == signature(source)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Constants of a graph and its bodies, those of Constant nodes named as what they make."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from tensors(attribute.g)
            if node.op_type == "Constant" and attribute.name == "value":
                attribute.t.name = node.output[0]
                yield attribute.t


def parameters(path: Path) -> int:
    return count_parameters(load_model(path).graph)


def factorized(source: Path, output: Path, feeds: Feeds | None, **options: Any) -> PassResult:
    recipe = compose([SimplifyGraph(), FactorizeWeights(energy=ENERGY, **options)])
    report = optimize(source, recipe, calibration=feeds, output=output, verify="off").report
    found = report.passes[1]
    assert found.status in ("kept", "unchanged"), found.reason
    assert all(reason for reason in found.skipped.values())
    return found


def put_back(source: Path, thin: Path, entries: list[dict[str, Any]], seen: bool) -> Path:
    """The simplified model with the products of the factors as weights."""
    path = thin.parent / "products.onnx"
    optimize(source, compose([SimplifyGraph()]), output=path, verify="off")
    model = onnx.load(path)
    factors = {t.name: numpy_helper.to_array(t) for t in tensors(onnx.load(thin).graph)}
    weights = {t.name: t for t in tensors(model.graph)}
    of_convs = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input}
    for entry in entries:
        name, now = entry["weight"], numpy_helper.to_array(weights[entry["weight"]])
        parts = [factors[n] for at in range(3) if (n := f"{name}.factor{at}") in factors]
        assert sum(part.size for part in parts) == entry["parameters"] < now.size
        made = product(entry["method"], parts, now.shape, of_conv=name in of_convs)
        if not seen:
            lost = np.square(made - now).sum() / np.square(now, dtype=np.float64).sum()
            assert lost == pytest.approx(entry["lost_energy"], rel=0.01)
        assert 0 < entry["lost_energy"] <= 1 - ENERGY + 1e-9
        weights[name].CopyFrom(numpy_helper.from_array(made.astype(now.dtype), name))
    onnx.save(model, path)
    return path


def check(source: Path, feeds: Feeds, folder: Path) -> None:
    """With factors of the weights alone, of samples, and refined."""
    for seen in (False, True):
        output = folder / "thin.onnx"
        found = factorized(source, output, feeds if seen else None, refine=False, embeddings=True)
        assert_valid(output, source)
        expected = put_back(source, output, found.factorized, seen)
        weights = {entry["weight"] for entry in found.factorized}
        saved = sum(entry["parameters_before"] - entry["parameters"] for entry in found.factorized)
        assert parameters(output) == parameters(expected) - saved
        count = assert_layers_equal(output, expected, weights, feeds[0])
        if count < sum(len(entry["nodes"]) for entry in found.factorized):  # others are in bodies
            for one, other in zip(*(run(p, feeds[0]) for p in (output, expected)), strict=True):
                assert_close(one, other, "an output of the model")
    factorized(source, output, feeds)
    assert_valid(output, source)
    for values in run(output, feeds[0]):
        assert values.dtype.kind != "f" or np.isfinite(values).all()


@pytest.mark.parametrize("name", architectures(FEW))
def test_architecture(hydrate: ModuleType, name: str, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(hydrate.load(name), source)

    check(source, [hydrate.feeds(onnx.load(source), seed=seed) for seed in range(4)], tmp_path)


def found_models() -> list[object]:
    """The models of the corpus that run; those not among FEW_FOUND are marked slow."""
    index = SHARED / "kit" / "corpus" / "index.json"
    names = (
        [e["file"] for e in json.loads(index.read_text()) if e["runs"]] if index.is_file() else []
    )
    slow = pytest.mark.slow
    return [pytest.param(n, marks=() if n in FEW_FOUND else slow) for n in names] or ["none"]


@pytest.mark.parametrize("name", found_models())
def test_found_model(shared: Path, name: str, tmp_path: Path) -> None:
    source = shared / "kit" / "corpus" / name
    samples = Calibration.from_source(None, load_model(source).graph, limit=4)

    check(source, list(samples.feeds()), tmp_path)


@pytest.mark.parametrize("name", FULL)
def test_full_ranks_change_nothing(hydrate: ModuleType, name: str, tmp_path: Path) -> None:
    """Of all weights at once, each in another of its forms; of each layer, not of all together."""
    source, output = tmp_path / "model.onnx", tmp_path / "full.onnx"
    onnx.save(hydrate.load(name), source)
    graph = load_model(source).graph
    infer_shapes(graph)
    names, weights = Names(graph), set[str]()
    for node in list(all_nodes(graph)):
        found = possible_forms(node)
        if isinstance(found, str):
            continue
        form = found[len(weights) % len(found)]
        weights.add(form.weight.name)
        form.write(graph, names, full_rank(form))
    assert weights
    save_model(graph, output)

    assert_valid(output, source)
    assert assert_layers_equal(output, source, weights, hydrate.feeds(onnx.load(source)))
