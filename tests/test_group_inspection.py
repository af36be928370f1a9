"""What `inspect --groups` says of models small enough to know, and that any model can be asked."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from conftest import ROOT

from onnxcomp.cli import main
from onnxcomp.errors import OnnxcompError
from onnxcomp.group_inspection import (
    SCHEMA,
    GroupInfo,
    GroupInspection,
    PinnedAxis,
    PlaceInfo,
    draw_groups,
    inspect_groups,
)
from onnxcomp.model import Model, load_model
from onnxcomp.optimize import optimize
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import compose
from onnxcomp.testing import model_of, small_convnet
from onnxcomp.unit_parts import weight_axes

GOLDEN = Path(__file__).resolve().parent / "golden" / "groups-1.json"
PAGE = ROOT / "docs" / "pruning.md"
FEW = {"gru_speech", "mobilenet_v3_small", "shufflenet_v2_x1_0", "t5_encoder"}
SVG = "{http://www.w3.org/2000/svg}"
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def saved(model: onnx.ModelProto, folder: Path) -> Model:
    onnx.save(model, folder / "model.onnx")
    return load_model(folder / "model.onnx")


RESIDUAL = """net (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) {
    [stem] a = Conv (x, w0)  [inner] b = Conv (a, w1)  [act] r = Relu (b)
    [outer] c = Conv (r, w2)  [sum] d = Add (a, c)  [last] y = Conv (d, w3) }"""
RESIDUAL_WEIGHTS = {
    "w0": normal(6, 3, 1, 1),
    "w1": normal(4, 6, 1, 1),
    "w2": normal(6, 4, 1, 1),
    "w3": normal(2, 6, 1, 1),
}


def test_a_residual_stream_by_hand(tmp_path: Path) -> None:
    found = inspect_groups(saved(model_of(RESIDUAL, **RESIDUAL_WEIGHTS), tmp_path))

    stream, width = found.groups
    assert (stream.name, stream.units, stream.span) == ("stem", 6, 1)
    assert (stream.made_by, stream.read_by) == (("stem", "outer"), ("inner", "last"))
    assert (width.name, width.units) == ("inner", 4)
    assert (width.made_by, width.read_by) == (("inner",), ("outer",))
    assert stream.parameters == pytest.approx(3 + 4 + 4 + 2)
    assert stream.macs == pytest.approx(64 * (3 + 4 + 4 + 2))
    assert width.parameters == pytest.approx(6 + 6)
    assert found.parameters == 18 + 24 + 24 + 12
    assert found.least_parameters == 3 + 1 + 1 + 2
    assert (found.macs, found.least_macs) == (64 * 78, 64 * 7)
    assert [place.tensor for place in stream.places if place.constant] == ["w0", "w1", "w2", "w3"]
    assert stream.half_cost is None
    assert [(p.layer, p.axis, p.length, p.reason) for p in found.pinned] == [
        ("stem", 1, 3, "an input of the model"),
        ("last", 0, 2, "an output of the model"),
    ]


def test_costs_follow_from_samples(tmp_path: Path) -> None:
    """Channels that copy others cost nothing, whose half is removed first."""
    first = normal(4, 3)
    weights = {"w1": np.vstack([first, first]).T.copy(), "w2": normal(8, 5)}
    text = """mlp (float[N, 3] x) => (float[N, 5] y) {
        [first] a = MatMul (x, w1)  [act] b = Relu (a)  [second] y = MatMul (b, w2) }"""
    twins = saved(model_of(text, **weights), tmp_path)
    np.savez(tmp_path / "samples.npz", x=normal(200, 3))
    samples = str(tmp_path / "samples.npz")

    (free,) = inspect_groups(twins, calibration=samples).groups
    weights["w1"] = normal(3, 8)
    (dear,) = inspect_groups(saved(model_of(text, **weights), tmp_path), calibration=samples).groups

    assert free.half_cost is not None
    assert dear.half_cost is not None
    assert free.half_cost < dear.half_cost / 5
    assert 0.005 < dear.half_cost < 1


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[1, 4] x) => (float[1, 5] y, float[1, 6] b) {
            [one] a = MatMul (x, w1)  [odd] b = mine.Odd (a)  [two] y = MatMul (a, w2) }"""

    found = inspect_groups(saved(model_of(text, w1=normal(4, 6), w2=normal(6, 5)), tmp_path))

    assert found.unknown == {"odd": "no rule for Odd"}
    assert found.groups == ()
    assert {(p.tensor, p.axis): p.reason for p in found.pinned} == {
        ("w1", 0): "an input of the model",
        ("w1", 1): "odd: no rule for Odd",
        ("w2", 0): "odd: no rule for Odd",
        ("w2", 1): "an output of the model",
    }


def test_overridable_weights_are_counted(tmp_path: Path) -> None:
    model = small_convnet()
    model.graph.input.append(onnx.helper.make_tensor_value_info("class_w", 1, [5, 8]))

    found = inspect_groups(saved(model, tmp_path))

    assert found.groups == ()
    assert found.notes == ("1 weights are inputs that a caller may override, and stay",)


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    model = saved(small_convnet(), tmp_path)
    before = [(node.op, node.name, len(node.inputs)) for node in model.graph.nodes]

    inspect_groups(model)
    draw_groups(model)

    assert [(node.op, node.name, len(node.inputs)) for node in model.graph.nodes] == before


def test_names_and_units_are_those_of_the_pass(models: Path) -> None:
    """So that a recipe's overrides can be written from what is shown."""
    model = load_model(models / "digits_vit.onnx")
    recipe = compose([SimplifyGraph(), PruneChannels(sparsity=0.5, multiple=1)])

    *_, result = optimize(model, recipe, verify="off").report.passes

    removed = {entry["group"]: entry["units"] for entry in result.removed}
    assert removed == {group.name: group.units for group in inspect_groups(model).groups}


# --- the picture ------------------------------------------------------------------------------


def rectangles(svg: str) -> dict[float, list[tuple[float, float, str]]]:
    """By height on the page: (x, width, colour)."""
    found: dict[float, list[tuple[float, float, str]]] = {}
    for rectangle in ElementTree.fromstring(svg).iter(f"{SVG}rect"):
        x, y = float(rectangle.get("x", 0)), float(rectangle.get("y", 0))
        colour = str(rectangle.get("fill"))
        found.setdefault(y, []).append((x, float(rectangle.get("width", 0)), colour))
    return {y: sorted(row) for y, row in found.items()}


def test_the_picture_shows_a_group_in_one_colour_wherever_it_is(tmp_path: Path) -> None:
    svg = draw_groups(saved(model_of(RESIDUAL, **RESIDUAL_WEIGHTS), tmp_path))

    _, *rows = [row for _, row in sorted(rectangles(svg).items())]
    stem, inner, outer, last, *legend = rows
    grey, *stream = [colour for *_, colour in stem]
    assert [colour for *_, colour in inner] == [*stream, *(width := [c for *_, c in legend[1]])]
    assert [colour for *_, colour in outer] == [*width, *stream]
    assert [colour for *_, colour in last] == [*stream, grey]
    assert len({grey, *stream, *width}) == 5
    first, rest = stem[1:]
    assert first[1] * 5 == pytest.approx(rest[1], abs=0.05)  # unit 0 of 6, and the others


def test_names_are_escaped(tmp_path: Path) -> None:
    model = model_of(RESIDUAL, **RESIDUAL_WEIGHTS)
    model.graph.node[0].name = "<stem> & co"

    texts = [t.text for t in ElementTree.fromstring(draw_groups(saved(model, tmp_path))).iter()]

    assert "<stem> & co" in texts


# --- the command line -------------------------------------------------------------------------


def shown(*arguments: str, **environment: str) -> str:
    done = CliRunner(env={"COLUMNS": "80", **environment}).invoke(main, ["inspect", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_prints_draws_and_writes_json(tmp_path: Path) -> None:
    path = str(saved(small_convnet(), tmp_path).path)

    text = shown(path, "--groups", "--svg", str(tmp_path / "groups.svg"))
    data = json.loads(shown(path, "--groups", "--json", "--shape", "image=2x3x8x8"))

    assert "1 group" in text
    assert "made by stem" in text
    assert "1 axis: an output of the model" in text
    assert (tmp_path / "groups.svg").read_text(encoding="utf-8") == draw_groups(load_model(path))
    assert data == inspect_groups(path, shapes={"image": [2, 3, 8, 8]}).as_dict()
    assert data["macs"] == 2 * inspect_groups(path).macs


def test_options_of_groups_alone_are_refused(tmp_path: Path) -> None:
    path = str(saved(small_convnet(), tmp_path).path)

    alone = CliRunner().invoke(main, ["inspect", path, "--svg", str(tmp_path / "a.svg")])
    over = CliRunner().invoke(main, ["inspect", path, "--groups", "--svg", path])

    assert (alone.exit_code, over.exit_code) == (2, 2)
    assert "--groups" in alone.stderr
    assert onnx.load(path).graph.node


def full() -> GroupInspection:
    """A value in every field."""
    return GroupInspection(
        model="model.onnx",
        parameters=78,
        least_parameters=7,
        macs=4992,
        least_macs=448,
        shapes={"x": [1, 3, 8, 8]},
        assumed={"N": 1},
        samples="32 samples of x.npz",
        groups=(
            GroupInfo(
                name="stem",
                units=6,
                span=2,
                parameters=13.0,
                macs=832.0,
                half_cost=0.125,
                made_by=("stem",),
                read_by=("last",),
                places=(PlaceInfo(tensor="w0", axis=0, indices=12, length=12, constant=True),),
            ),
        ),
        pinned=(PinnedAxis(tensor="w0", axis=1, length=3, layer="stem", reason="an input"),),
        unknown={"odd": "no rule for Odd"},
        notes=("a note",),
    )


def test_the_format_is_the_promised_one() -> None:
    """A change of this file is a change of format."""
    text = json.dumps(full().as_dict(), indent=1, allow_nan=False) + "\n"
    assert text == GOLDEN.read_text(encoding="utf-8")
    assert json.loads(text)["schema"] == SCHEMA == "onnxcomp.groups/1"


def test_every_key_is_described() -> None:
    page = PAGE.read_text(encoding="utf-8")
    described = set(re.findall(r"`([a-z0-9_]+)`", page))
    for kind in (GroupInspection, GroupInfo, PlaceInfo, PinnedAxis):
        assert {field.name for field in dataclasses.fields(kind)} <= described
    assert SCHEMA in page


def test_the_page_shows_what_the_command_prints_and_draws(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    command = re.search(r"^\$ onnxcomp inspect (.*--groups.*)\n((?:.*\n)*?)```", page, re.M)
    assert command is not None
    monkeypatch.chdir(models.parent)

    text = shown(*command[1].split(), COLUMNS="100")

    assert [line.rstrip() for line in text.splitlines()] == command[2].splitlines()
    picture = (PAGE.parent / "groups.svg").read_text(encoding="utf-8")
    assert picture == draw_groups(load_model(models / "digits_vit.onnx"))


# --- other people's models --------------------------------------------------------------------


def shared_models() -> list[object]:
    """Architectures and the corpus; those not in the default run are marked slow."""
    root = Path(os.environ.get("ONNXCOMP_SHARED", ROOT.parent / "shared"))
    paths = [*(root / "archzoo").glob("*.onnx"), *(root / "kit" / "corpus").glob("*.onnx")]
    paths += (root / "kit" / "models").glob("[!m]*.onnx")
    slow = pytest.mark.slow
    return [
        pytest.param(path, id=path.stem, marks=() if path.stem in FEW else slow)
        for path in sorted(paths)
    ] or [Path("no shared models")]


@pytest.mark.parametrize("path", shared_models())
def test_something_is_said_of_every_model(hydrate: ModuleType, path: Path, tmp_path: Path) -> None:
    if path.parent.name == "archzoo":
        onnx.save(hydrate.load(path.stem), tmp_path / path.name)
        path = tmp_path / path.name
    try:
        model = load_model(path)
    except OnnxcompError:
        return  # no valid model at all
    found = inspect_groups(model)
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert text
    layers = list(weight_axes(model.graph))
    assert found.groups or found.pinned or found.unknown or found.notes or not layers
    for group in found.groups:
        assert group.units > 0
        assert group.parameters > 0
    ElementTree.fromstring(draw_groups(model))
