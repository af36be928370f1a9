"""Whatever is wrong with the input: one clear line, exit code 2, nothing changed on disk."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.cli import main
from onnxcomp.testing import model_of, small_convnet

LINUX = sys.platform == "linux"


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below ``folder`` with a hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, also the current one, with model.onnx and samples.npz."""
    onnx.save(small_convnet(), tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", image=np.ones((4, 3, 8, 8), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


Refused = Callable[..., str]


@pytest.fixture
def refused(place: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that has to be refused; the line that it prints."""

    def run(*arguments: str) -> str:
        before = contents(place)
        with pytest.raises(SystemExit) as leaving:
            main.main(list(arguments), prog_name="onnxcomp")
        output = capfd.readouterr()
        assert leaving.value.code == 2, output.err
        assert output.out == ""
        assert output.err.startswith("onnxcomp: error: ")
        assert output.err.count("\n") == 1
        assert contents(place) == before
        return output.err

    return run


def optimize(*arguments: str) -> tuple[str, ...]:
    return ("optimize", "model.onnx", "--pass", "simplify_graph", *arguments)


# --- model files ------------------------------------------------------------------------------

DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "model.onnx: "),
    "truncated": (lambda data: data[: len(data) * 2 // 3], "model.onnx: "),
    "cut in the header": (lambda data: data[:7], "model.onnx: "),
    "random": (lambda data: np.random.default_rng(5).bytes(4096), "model.onnx: "),
    "text": (lambda data: b"import torch\n" * 40, "model.onnx: "),
    "zeros": (lambda data: bytes(4096), "model.onnx: "),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["optimize", "inspect", "benchmark"])
def test_files_that_are_no_models(damage: str, command: str, place: Path, refused: Refused) -> None:
    change, said = DAMAGE[damage]
    file = place / "model.onnx"
    file.write_bytes(change(file.read_bytes()))
    assert said in refused(command, "model.onnx")


def test_every_length_of_a_truncated_file(place: Path, refused: Refused) -> None:
    data = (place / "model.onnx").read_bytes()
    for length in range(0, len(data) - 1, len(data) // 25):
        (place / "model.onnx").write_bytes(data[:length])
        assert "model.onnx: " in refused("inspect", "model.onnx")


def test_a_missing_file_and_a_folder(place: Path, refused: Refused) -> None:
    (place / "folder").mkdir()
    assert "nowhere.onnx: no such file" in refused("optimize", "nowhere.onnx")
    assert "folder: not a file" in refused("inspect", "folder")
    assert "nowhere.onnx: no such file" in refused("compare", "model.onnx", "nowhere.onnx")


INVALID = {
    "unknown operator": "m (float[2] x) => (float[2] y) { y = Frobnicate (x) }",
    "missing input": "m (float[2] x) => (float[2] y) { y = Add (x, nobody) }",
    "unknown attribute": "m (float[2] x) => (float[2] y) { y = Relu <speed = 3> (x) }",
    "cycle": "m (float[2] x) => (float[2] y) { a = Add (x, b)\n b = Relu (a)\n y = Relu (b) }",
}


@pytest.mark.parametrize("what", INVALID)
def test_models_that_the_checker_refuses(what: str, place: Path, refused: Refused) -> None:
    onnx.save(model_of(INVALID[what]), place / "model.onnx")
    assert "not a valid ONNX model" in refused(*optimize())


def test_a_model_that_onnxruntime_does_not_know(place: Path, refused: Refused) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        m (float[2] x) => (float[2] y) { [odd] y = acme.Odd (x) }"""
    onnx.save(model_of(text), place / "model.onnx")
    assert "acme" in refused(*optimize())
    assert "acme" in refused("benchmark", "model.onnx")
    assert "acme" in refused("compare", "model.onnx", "model.onnx")


def test_a_model_whose_weights_are_missing(place: Path, refused: Refused) -> None:
    weights = np.ones((64, 64), np.float32)
    model = model_of("m (float[64] x) => (float[64] y) { y = MatMul (x, w) }", w=weights)
    onnx.save(model, "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (place / "w.bin").write_bytes(bytes(100))
    assert "'w'" in refused(*optimize())
    (place / "w.bin").unlink()
    assert "w.bin is missing" in refused(*optimize())


def test_the_negative_cases_of_the_corpus(place: Path, refused: Refused, shared: Path) -> None:
    import json

    corpus = shared / "kit" / "corpus"
    entries = json.loads((corpus / "index.json").read_text())
    negative = [entry["file"] for entry in entries if not entry["runs"]]
    assert len(negative) == 6
    for name in negative:
        line = refused("optimize", str(corpus / name), "-o", "out.onnx", "--recipe", "simplify")
        assert len(line) < 700


# --- samples ----------------------------------------------------------------------------------

SAMPLES: dict[str, tuple[dict[str, object], str]] = {
    "wrong name": ({"picture": np.ones((4, 3, 8, 8), np.float32)}, "input 'image' is missing"),
    "one name too many": (
        {"image": np.ones((4, 3, 8, 8), np.float32), "label": np.zeros(4)},
        "'label' is not an input",
    ),
    "wrong shape": ({"image": np.ones((4, 3, 9, 8), np.float32)}, "the model takes 'image'"),
    "wrong rank": ({"image": np.ones((4, 8), np.float32)}, "the model takes 'image'"),
    "wrong dtype": ({"image": np.ones((4, 3, 8, 8), np.complex64)}, "has dtype complex64"),
    "objects": ({"image": np.array([{}] * 4, object)}, "Python objects"),
    "NaN": ({"image": np.full((4, 3, 8, 8), np.nan, np.float32)}, "NaN"),
    "infinity": ({"image": np.full((4, 3, 8, 8), np.inf, np.float32)}, "infinity"),
    "none at all": ({"image": np.ones((0, 3, 8, 8), np.float32)}, "no samples"),
}


@pytest.mark.parametrize("what", SAMPLES)
def test_samples_that_do_not_fit(what: str, place: Path, refused: Refused) -> None:
    arrays, said = SAMPLES[what]
    np.savez(place / "bad.npz", **arrays)  # type: ignore[arg-type]
    assert said in refused(*optimize("--calibration", "bad.npz"))


def test_sources_that_are_none(place: Path, refused: Refused) -> None:
    (place / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    (place / "feeds.py").write_text("def fails():\n    raise OSError('tape\\ntorn')\nx = 3\n")
    (place / "syntax.py").write_text("def (:\n")
    (place / "folder").mkdir()
    for source, said in {
        "nowhere.npz": "no such file",
        "broken.npz": "not a readable .npz",
        "folder": "holds no .npz files",
        "feeds.py": "name the function too",
        "feeds.py:fails": "tape torn",
        "feeds.py:nothing": "has no function 'nothing'",
        "feeds.py:x": "has no function 'x'",
        "syntax.py:feeds": "SyntaxError",
    }.items():
        assert said in refused(*optimize("--calibration", source)), source


def test_evaluators_that_are_none(place: Path, refused: Refused) -> None:
    (place / "judge.py").write_text(
        "def words(session): return 'good'\ndef nan(session): return float('nan')\n"
        "def fails(session): raise RuntimeError('no\\nlabels')\n"
    )
    for source, said in {
        "nowhere.py:score": "nowhere.py: no such file",
        "judge.py:nothing": "has no function 'nothing'",
        "judge.py:words": "the evaluator failed",
        "judge.py:nan": "the evaluator returned nan",
        "judge.py:fails": "the evaluator failed: no labels",
    }.items():
        assert said in refused(*optimize("--evaluate", source)), source


# --- options ----------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown pass": (("--pass", "simplify_grap"), "did you mean 'simplify_graph'?"),
    "unknown option": (
        ("--pass", "quantize_static:perchannel=true"),
        "unknown option 'perchannel'; did you mean 'per_channel'?",
    ),
    "wrong type": (("--pass", "quantize_static:per_channel=7"), "'7' is not of type bool"),
    "out of range": (("--pass", "quantize_static:percentile=20"), "must be in 50..100"),
    "no value": (("--pass", "quantize_static:per_channel"), "write option=value"),
    "unknown recipe": (("--recipe", "defualt"), "did you mean 'default'?"),
    "missing recipe": (("--recipe", "mine.toml"), "mine.toml: cannot be read"),
    "unknown target": (("--target", "x86-vnn"), "did you mean 'x86-vnni'?"),
    "both": (("--recipe", "simplify", "--pass", "simplify_graph"), "exclude each other"),
    "unknown flag": (("--sed", "3"), "--seed"),
    "no number": (("--min-sqnr", "high"), "'high' is not a valid float"),
    "negative seed": (("--seed", "-1"), "-1"),
    "unknown choice": (("--verify", "sometimes"), "'sometimes'"),
    "gate without measurement": (("--verify", "off", "--min-sqnr", "20"), "no gate can be kept"),
    "drop without evaluator": (
        ("--pass", "simplify_graph", "--max-drop", "1"),
        "needs an evaluator",
    ),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options_that_make_no_sense(what: str, refused: Refused) -> None:
    arguments, said = OPTIONS[what]
    assert said in refused("optimize", "model.onnx", *arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("passes = 3", "passes must be [[passes]] tables"),
        ("[[passes]]\nname = 'simplify_graph'\nfold = true", "unknown option 'fold'"),
        ("[gate]\nmin_sqnr_db = 3.0", "did you mean 'gates'?"),
        ("[gates]\nmin_sqnr_db = 'high'", "min_sqnr_db: 'high' is not of type"),
        ("[[passes]\n", "not valid TOML"),
    ],
)
def test_recipes_that_are_wrong(text: str, said: str, place: Path, refused: Refused) -> None:
    (place / "mine.toml").write_text(text)
    assert said in refused("optimize", "model.onnx", "--recipe", "mine.toml")


def test_other_commands_refuse_what_they_do_not_know(refused: Refused) -> None:
    assert "did you mean 'default'?" in refused("recipes", "defualt")
    assert "did you mean 'quantize_static'?" in refused("passes", "quantise_static")
    assert "No such command 'optimise'" in refused("optimise", "model.onnx")
    assert "write INPUT=1x3x224x224" in refused("inspect", "model.onnx", "--shape", "image=1xN")
    assert "no input 'x'" in refused("inspect", "model.onnx", "--shape", "x=1x3")
    assert "takes 'image'" in refused("inspect", "model.onnx", "--shape", "image=1x3x9x9")
    assert "Missing argument" in refused("compare", "model.onnx")


def test_models_that_cannot_be_compared(place: Path, refused: Refused) -> None:
    onnx.save(model_of("m (float[2] x) => (float[2] y) { y = Relu (x) }"), place / "other.onnx")
    line = refused("compare", "model.onnx", "other.onnx")
    assert "model.onnx and other.onnx cannot be compared: inputs are 'image' against 'x'" in line
    assert "cannot be compared" in refused("benchmark", "model.onnx", "other.onnx")


# --- outputs ----------------------------------------------------------------------------------


def test_outputs_that_cannot_be_written(place: Path, refused: Refused) -> None:
    (place / "folder").mkdir()
    (place / "link.onnx").symlink_to("model.onnx")
    for path, said in {
        "samples.npz/out.onnx": "there is no folder samples.npz",
        "nowhere/out.onnx": "there is no folder nowhere",
        "folder": "is a folder",
        "model.onnx": "is an input",
        "./folder/../model.onnx": "is an input",
        "link.onnx": "is an input",
    }.items():
        assert said in refused(*optimize("-o", path)), path
        if "input" not in said:
            assert said in refused(*optimize("--report", path)), path
    assert "is an input" in refused(*optimize("--report", "model.onnx"))
    assert "is an input" in refused(*optimize("--report", "out", "-o", "out"))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder closed even to root")
def test_a_folder_that_is_closed_even_to_root(refused: Refused) -> None:
    assert "/sys/out.onnx: cannot be written" in refused(*optimize("-o", "/sys/out.onnx"))
    assert "/sys/r.json: cannot be written" in refused(*optimize("--report", "/sys/r.json"))


def test_the_weights_of_the_input_are_never_replaced(place: Path, refused: Refused) -> None:
    """b.onnx would get its weights in b.onnx.data, where those of the input are."""
    weights = np.ones((64, 64), np.float32)
    model = model_of("m (float[64] x) => (float[64] y) { y = MatMul (x, w) }", w=weights)
    onnx.save(model, "a.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    line = refused("optimize", "a.onnx", "--pass", "simplify_graph", "-o", "b.onnx")
    assert "b.onnx.data: is an input" in line


def limited(place: Path, size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs optimize where no file can grow beyond ``size`` bytes, as on a full disk."""
    import resource

    return subprocess.run(
        [sys.executable, "-m", "onnxcomp", *optimize(*arguments)],
        cwd=place,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_leaves_nothing_behind(place: Path) -> None:
    before = contents(place)
    done = limited(place, 600)
    assert done.returncode == 2
    assert done.stderr.startswith("onnxcomp: error: model.optimized.onnx: cannot be written")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert contents(place) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_disk_that_is_full_for_the_report_says_that_the_model_was_written(place: Path) -> None:
    """A model of many outputs has a report that is larger than itself."""
    names = [f"tensor_{number}" for number in range(40)]
    inputs, outputs = (", ".join(f"float[16] {end}_{n}" for n in names) for end in ("in", "out"))
    body = "\n".join(f"t_{n} = Identity (in_{n})\nout_{n} = Relu (t_{n})" for n in names)
    onnx.save(model_of(f"m ({inputs}) => ({outputs}) {{ {body} }}"), place / "model.onnx")
    (place / "samples.npz").unlink()
    size = (place / "model.onnx").stat().st_size + 100
    done = limited(place, size, "--report", "report.json")
    assert done.returncode == 2, done.stdout
    assert "report.json: cannot be written" in done.stderr
    assert "the model was written to model.optimized.onnx" in done.stderr
    assert set(contents(place)) == {"model.onnx", "model.optimized.onnx"}


# --- Ctrl-C -----------------------------------------------------------------------------------

PATIENCE_S = 300  # what no command takes, however busy the machine
STALL = """
import importlib, os, pathlib, time
module, _, path = os.environ["STALL"].partition(":")
owner = importlib.import_module(module)
*parts, name = path.split(".")
for part in parts:
    owner = getattr(owner, part)
original, left = getattr(owner, name), int(os.environ.get("STALL_AFTER", "0"))
def stalled(*arguments, **named):
    global left
    left -= 1
    if left < 0:
        pathlib.Path(os.environ["STALL_FILE"]).write_text("here")
        time.sleep(600)
    return original(*arguments, **named)
setattr(owner, name, stalled)
"""
STAGES: dict[str, tuple[str, int]] = {
    "reading": ("onnxcomp.model:check_file", 0),
    "the first run": ("onnxcomp.runtime:Session.run", 0),
    "measuring": ("onnxcomp.runtime:Session.run", 12),
    "a pass": ("onnxcomp.passes.simplify_graph:SimplifyGraph.rewrite", 0),
    "writing": ("os:replace", 0),
    "verifying the file": ("onnxcomp.measuring:open_file", 1),
}


def interrupted(
    place: Path, stall: tuple[str, int], tmp: Path, *arguments: str, times: int = 1
) -> subprocess.CompletedProcess[str]:
    """Runs a command, presses Ctrl-C once it has come to ``stall``, and waits for its end."""
    (tmp / "sitecustomize.py").write_text(STALL)
    reached = tmp / "reached"
    child = subprocess.Popen(
        [sys.executable, "-m", "onnxcomp", *arguments],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp),
            "STALL": stall[0],
            "STALL_AFTER": str(stall[1]),
            "STALL_FILE": str(reached),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not reached.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert reached.exists(), child.communicate(timeout=1)
    for _ in range(times):
        child.send_signal(signal.SIGINT)
        time.sleep(0.01)
    out, err = child.communicate(timeout=PATIENCE_S)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_each_stage_leaves_nothing_behind(
    stage: str, place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = contents(place)
    arguments = optimize("--calibration", "samples.npz", "--report", "report.json")
    tmp = tmp_path_factory.mktemp("stall")
    done = interrupted(place, STAGES[stage], tmp, *arguments, times=5)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "onnxcomp: interrupted; nothing was written\n"
    assert done.stdout == ""
    assert contents(place) == before


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize(
    ("stall", "step"),
    [
        ("onnxcomp.unit_parts:observed", "prune_channels:sparsity=0.5,multiple=1"),
        ("onnxcomp.refitting:best_fit", "prune_channels:sparsity=0.5,multiple=1"),
        ("onnxcomp.branch_switches:SwitchedSession.run", "prune_blocks:count=1"),
        ("onnxcomp.block_search:recover", "prune_blocks:count=1"),
    ],
)
def test_ctrl_c_while_pruning_leaves_nothing_behind(
    stall: str, step: str, place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = contents(place)
    arguments = optimize("--pass", step, "--calibration", "samples.npz")
    done = interrupted(place, (stall, 0), tmp_path_factory.mktemp("stall"), *arguments)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "onnxcomp: interrupted; nothing was written\n"
    assert contents(place) == before


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_while_the_report_is_written_says_what_is_there(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arguments = optimize("--calibration", "samples.npz", "--report", "report.json")
    tmp = tmp_path_factory.mktemp("stall")
    done = interrupted(place, ("os:replace", 1), tmp, *arguments)
    assert done.returncode == 130
    assert done.stderr == "onnxcomp: interrupted; model.optimized.onnx was written\n"
    assert set(contents(place)) == {"model.onnx", "model.optimized.onnx", "samples.npz"}


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("command", ["compare", "benchmark"])
def test_ctrl_c_in_other_commands(
    command: str, place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp = tmp_path_factory.mktemp("stall")
    stall = ("onnxcomp.runtime:Session.run", 8)
    done = interrupted(place, stall, tmp, command, "model.onnx", "model.onnx")
    assert done.returncode == 130
    assert done.stderr.count("\n") == 1


def test_a_tensor_type_that_does_not_exist(place: Path, refused: Refused) -> None:
    value = helper.make_tensor_value_info("x", 99, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "m", [value], [result])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), place / "model.onnx")
    assert "data type 99" in refused(*optimize())
    assert "data type 99" in refused("inspect", "model.onnx")
