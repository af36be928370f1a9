"""Folders of images: what calibration.toml asks for is what the model gets."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from PIL import Image

from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def image_graph(*shape: int | str, dtype: type = np.float32, **others: list[int]) -> gs.Graph:
    inputs = [gs.Variable("image", dtype, list(shape))]
    return gs.Graph(inputs=inputs + [gs.Variable(n, np.float32, s) for n, s in others.items()])


def folder_of(path: Path, rules: str, **pixels: np.ndarray) -> Path:
    path.mkdir(exist_ok=True)
    (path / "calibration.toml").write_text(rules)
    for name, array in pixels.items():
        Image.fromarray(array).save(path / f"{name}.png")
    return path


def stripes(height: int, width: int) -> np.ndarray:
    """Left half red, right half blue: uint8 [height, width, 3]."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = RED, BLUE
    return image


def only_feed(folder: Path, graph: gs.Graph) -> np.ndarray:
    (feed,) = Calibration.from_source(folder, graph).feeds()
    return feed["image"]


def test_pixels_of_the_right_size_follow_the_formula(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    rules = f"mean = {mean.tolist()}\nstd = {std.tolist()}"
    found = only_feed(folder_of(tmp_path, rules, a=pixels), image_graph("N", 3, 4, 6))
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bgr_nhwc_scale_and_one_mean_for_all(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    rules = 'channels = "BGR"\nscale = 2\nmean = 100\nstd = 4.0\nlayout = "NHWC"'
    found = only_feed(folder_of(tmp_path, rules, a=pixels), image_graph(1, 4, 6, 3))
    np.testing.assert_allclose(found[0], (pixels[..., ::-1] * 2.0 - 100) / 4)


def test_layout_and_channels_follow_from_the_input(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5), dtype=np.uint8)
    found = only_feed(folder_of(tmp_path, "", a=pixels), image_graph("N", 5, 5, 1))
    np.testing.assert_allclose(found[0, ..., 0], pixels / 255, rtol=1e-6)
    found = only_feed(tmp_path, image_graph("N", 1, 5, 5, dtype=np.uint8))
    np.testing.assert_array_equal(found[0, 0], pixels)


def test_the_three_resize_rules(tmp_path: Path) -> None:
    """A 20 x 40 image, left red and right blue, into 20 x 20."""
    graph = image_graph("N", 3, "H", "W")
    wide = stripes(20, 40)

    def resized(rule: str) -> np.ndarray:
        rules = f'size = [20, 20]\nscale = 1\npad_value = 7\nresize = "{rule}"'
        return only_feed(folder_of(tmp_path, rules, a=wide), graph)[0]

    for rule in ("stretch", "crop"):
        np.testing.assert_array_equal(resized(rule)[:, 10, 2], RED)
        np.testing.assert_array_equal(resized(rule)[:, 10, 17], BLUE)
    padded = resized("pad")
    np.testing.assert_array_equal(padded[:, 2, 10], [7, 7, 7])
    np.testing.assert_array_equal(padded[:, 17, 10], [7, 7, 7])
    np.testing.assert_array_equal(padded[:, 10, 2], RED)

    wide[:, :10] = GREEN  # a centre crop never sees the outer quarters
    assert resized("stretch")[1].max() == 255
    assert resized("crop")[1].max() == 0


def test_size_is_height_before_width(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "size = [8, 24]", a=stripes(8, 24))
    assert only_feed(folder, image_graph("N", 3, "H", "W")).shape == (1, 3, 8, 24)


def test_images_are_found_in_folders_and_sorted_and_turned_upright(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "scale = 1", b=np.full((4, 4, 3), 2, np.uint8))
    folder_of(tmp_path / "a", "", x=np.full((4, 4, 3), 1, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    turned = Image.fromarray(np.repeat(np.uint8([[[9] * 3, [9] * 3], [[3] * 3, [3] * 3]]), 2, 0))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.resize((4, 4), Image.Resampling.NEAREST).save(tmp_path / "c.png", exif=exif)
    calibration = Calibration.from_source(folder, image_graph("N", 3, 4, 4))
    assert [feed["image"][0, 0, 0, 0] for feed in calibration.feeds()] == [1, 2, 3]
    assert calibration.description == f"3 samples of {tmp_path.name}"


REFUSED = [
    ("reszie = 'pad'", "unknown key 'reszie'; did you mean 'resize'?"),
    ("resize = 'fit'", "resize must be one of stretch, crop, pad, not 'fit'"),
    ("size = 224", "size must be [height, width] in pixels, not 224"),
    ("size = [4]", "size must be [height, width]"),
    ("size = [8, 8]", "an image prepared like this: has shape [1, 3, 8, 8]"),
    ("std = 0", "std must be a number or one per channel"),
    ("mean = [1, 2]", "mean must be a number or one per channel, not [1, 2]"),
    ("layout = 'CHW'", "layout must be one of NCHW, NHWC"),
    ("layout = 'NHWC'", "has shape [1, 3, 4, 3], the model takes"),
    ("channels = 'RGBA'", "channels must be one of RGB, BGR, L"),
    ("channels = 'L'", "has shape [1, 1, 4, 4]"),
    ("pad_value = 300", "pad_value must be a pixel"),
    ("scale = 'big'", "scale must be a number other than 0"),
    ("input = 'imgae'", "the model has no input 'imgae'; did you mean 'image'?"),
    ("size = [", "cannot be read"),
]


@pytest.mark.parametrize(("rules", "message"), REFUSED)
def test_rules_that_do_not_fit(tmp_path: Path, rules: str, message: str) -> None:
    folder = folder_of(tmp_path, rules, a=stripes(4, 4))
    with pytest.raises(CalibrationError) as caught:
        Calibration.from_source(folder, image_graph("N", 3, 4, 4))
    assert message in str(caught.value)
    assert "calibration.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_that_images_alone_cannot_feed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "input = 'image'", a=stripes(4, 4))
    with pytest.raises(CalibrationError, match=r"also needs 'state'; write a FILE\.py:FUNCTION"):
        Calibration.from_source(folder, image_graph("N", 3, 4, 4, state=[1, 4]))
    with pytest.raises(CalibrationError, match="does not take images"):
        Calibration.from_source(folder, image_graph("N", 48))
    with pytest.raises(CalibrationError, match="size is missing"):
        Calibration.from_source(folder, image_graph("N", 3, "H", "W"))
    folder_of(tmp_path, "mean = 3")
    with pytest.raises(CalibrationError, match="mean and std do not apply"):
        Calibration.from_source(folder, image_graph("N", 3, 4, 4, dtype=np.uint8))


def test_a_broken_image_and_a_folder_without_images(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "")
    with pytest.raises(CalibrationError, match="but no images"):
        Calibration.from_source(folder, image_graph("N", 3, 4, 4))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no")
    with pytest.raises(CalibrationError, match=r"broken\.jpg: not a readable image"):
        Calibration.from_source(folder, image_graph("N", 3, 4, 4))


def test_without_pillow_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, "", a=stripes(4, 4))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(CalibrationError, match=r"install 'onnxcomp\[images\]'"):
        Calibration.from_source(folder, image_graph("N", 3, 4, 4))
