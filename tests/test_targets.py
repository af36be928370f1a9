from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.errors import RecipeError
from onnxcomp.targets import TARGETS, detect_target, resolve_target, target_names


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, "x86-vnni"),
        ("AMD64", {"avx2", "avx_vnni"}, "x86-vnni"),
        ("x86_64", {"avx2", "avx512f"}, "x86-avx2"),
        ("x86_64", set(), "x86-avx2"),
        ("aarch64", {"asimd", "asimddp"}, "arm64"),
        ("arm64", set(), "arm64"),
    ],
)
def test_detection_by_machine_and_cpu_flags(machine: str, flags: set[str], name: str) -> None:
    assert detect_target(machine, frozenset(flags)) == name


def test_auto_is_one_of_the_targets() -> None:
    assert resolve_target("auto") in TARGETS.values()


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'x86-vnni'"):
        resolve_target("x86-vni")
    with pytest.raises(RecipeError, match="known: auto, x86-avx2"):
        resolve_target("qqqqqq")


def test_x86_multiplies_unsigned_by_signed_and_arm_signed_by_signed() -> None:
    assert resolve_target("x86-vnni").activation_dtype == np.uint8
    assert resolve_target("arm64").activation_dtype == np.int8
    assert {name: TARGETS[name].weight_bits for name in TARGETS} == {
        "x86-avx2": 7,
        "x86-vnni": 8,
        "arm64": 8,
        "qdq-generic": 8,
    }


def test_targets_can_be_keys() -> None:
    assert len({resolve_target(name) for name in target_names()}) == len(TARGETS)
