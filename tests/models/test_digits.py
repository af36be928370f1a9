"""The reference models are what models/README.md says they are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

NAMES = ("digits_resnet", "digits_vit", "digits_gru", "digits_bnn")


def session(model: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def readme_row(models: Path, name: str) -> list[str]:
    """Cells of the README's table: parameters, bytes, opset, top-1."""
    row = re.search(rf"^\| {name}\.onnx \|(.+)\|$", (models / "README.md").read_text(), re.M)
    assert row, f"no row for {name} in models/README.md"
    return [cell.strip().replace(",", "") for cell in row[1].split("|")]


@pytest.fixture(scope="module")
def test_split(models: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(models / "digits_test.npz") as samples:
        return samples["input"], samples["label"]


@pytest.fixture(scope="module")
def calibration(models: Path) -> np.ndarray:
    with np.load(models / "digits_calibration.npz") as samples:
        assert samples.files == ["input"], "calibration samples carry no labels"
        images: np.ndarray = samples["input"]
    return images


@pytest.mark.parametrize("name", NAMES)
def test_file_is_small_valid_and_free_of_local_paths(models: Path, name: str) -> None:
    path = models / f"{name}.onnx"
    content = path.read_bytes()
    assert len(content) < 1_000_000
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not any(node.doc_string for node in model.graph.node)
    for place in (b"/tmp", b"/root", b"/home", b"/Users"):
        assert place not in content


@pytest.mark.parametrize("name", NAMES)
def test_signature(models: Path, name: str) -> None:
    graph = onnx.load(models / f"{name}.onnx").graph
    signature = [
        [value.name, value.type.tensor_type.elem_type]
        + [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    ]
    float32 = onnx.TensorProto.FLOAT
    assert signature == [["input", float32, "batch", 1, 8, 8], ["logits", float32, "batch", 10]]


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_one_and_five_agree(
    models: Path, test_split: tuple[np.ndarray, np.ndarray], name: str
) -> None:
    images = test_split[0][:5]
    run = session(models / f"{name}.onnx")
    (together,) = run.run(["logits"], {"input": images})
    alone = [run.run(["logits"], {"input": image[None]})[0] for image in images]
    assert together.shape == (5, 10)
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_readme_table_is_measured(
    models: Path, test_split: tuple[np.ndarray, np.ndarray], name: str
) -> None:
    path = models / f"{name}.onnx"
    model = onnx.load(path)
    parameters = sum(
        numpy_helper.to_array(tensor).size
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    images, labels = test_split
    (logits,) = session(path).run(["logits"], {"input": images})
    correct = int((logits.argmax(axis=1) == labels).sum())
    assert readme_row(models, name) == [
        str(parameters),
        str(path.stat().st_size),
        str(model.opset_import[0].version),
        f"{correct / len(labels):.1%}".removesuffix("%"),
    ]
    assert correct >= 0.98 * len(labels), "a reference model should be a good one"


def test_evaluator_counts_correct_images_in_percent(
    models: Path, test_split: tuple[np.ndarray, np.ndarray]
) -> None:
    spec = importlib.util.spec_from_file_location("evaluate_digits", models / "evaluate_digits.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    only_threes = onnx.load(models / "digits_gru.onnx")
    (bias,) = [tensor for tensor in only_threes.graph.initializer if tensor.name == "head.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.float32(1e6) * (np.arange(10) == 3), "head.bias"))
    threes = int((test_split[1] == 3).sum())
    assert module.evaluate(session(only_threes.SerializeToString())) == 100 * threes / 500
    for name in NAMES:
        measured = module.evaluate(session(models / f"{name}.onnx"))
        assert f"{measured:.1f}" == readme_row(models, name)[-1]


def test_samples_are_normalised_and_disjoint(
    calibration: np.ndarray, test_split: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = test_split
    assert calibration.shape == (128, 1, 8, 8)
    assert images.shape == (500, 1, 8, 8)
    assert labels.dtype == np.int64
    for samples in (calibration, images):
        assert samples.dtype == np.float32
        assert np.isin(samples * 16, np.arange(17)).all()
        assert (samples.min(), samples.max()) == (0.0, 1.0)
    assert np.bincount(labels, minlength=10).min() >= 45, "classes are equally frequent"
    assert not {image.tobytes() for image in calibration} & {image.tobytes() for image in images}


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("digits_resnet", {"Conv", "BatchNormalization", "Relu", "HardSwish", "Mul", "Add"}),
        ("digits_vit", {"MatMul", "Softmax", "LayerNormalization", "Erf"}),
        ("digits_gru", {"GRU", "Gemm"}),
        ("digits_bnn", {"Sign", "Conv", "MatMul", "BatchNormalization"}),
    ],
)
def test_operators_that_make_the_model_worth_having(
    models: Path, name: str, operators: set[str]
) -> None:
    graph = onnx.load(models / f"{name}.onnx").graph
    assert operators <= {node.op_type for node in graph.node}


def test_resnet_has_a_depthwise_convolution(models: Path) -> None:
    graph = onnx.load(models / "digits_resnet.onnx").graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    groups = {
        node.name: next(a.i for a in node.attribute if a.name == "group")
        for node in graph.node
        if node.op_type == "Conv" and weights[node.input[1]][1] == 1
    }
    assert 160 in groups.values()


def test_bnn_is_binary(models: Path, test_split: tuple[np.ndarray, np.ndarray]) -> None:
    """Every layer fed by Sign but the last has weights of -1 and +1; so are the signs it sees."""
    model = onnx.load(models / "digits_bnn.onnx")
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}

    def is_signs(name: str) -> bool:
        node = producer.get(name)
        return node is not None and (
            node.op_type == "Sign" or (node.op_type == "Flatten" and is_signs(node.input[0]))
        )

    binary = [node for node in model.graph.node if node.input and is_signs(node.input[0])]
    layers = [node for node in binary if node.op_type in ("Conv", "MatMul")]
    assert [node.op_type for node in layers] == ["Conv", "Conv", "MatMul"]
    for node in layers:
        assert set(np.unique(weights[node.input[1]])) == {-1.0, 1.0}
        pads = [list(a.ints) for a in node.attribute if a.name == "pads"]
        assert pads in ([], [[0, 0, 0, 0]]), "a padded zero would be a third value"

    signs = [node.output[0] for node in model.graph.node if node.op_type == "Sign"]
    for name in signs:
        model.graph.output.add(name=name)
    model = onnx.shape_inference.infer_shapes(model)
    for value in model.graph.output[1:]:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    outputs = session(model.SerializeToString()).run(signs, {"input": test_split[0]})
    assert len(outputs) == 4
    for output in outputs:
        assert set(np.unique(output)) == {-1.0, 1.0}
