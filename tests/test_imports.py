"""Which script may import which, as DESIGN's table has it, and what importing one must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The way of the data: a script imports only what stands before it, and of that only what its row names.
MAY_IMPORT = {
    "command_line": set(),
    "labels": set(),
    "metrics": {"labels"},
    "figures": {"labels", "metrics"},
    "faces": set(),
    "layouts": {"labels", "faces"},
    "crops": {"faces"},
    "metadata_parallel": {"labels", "faces", "layouts", "crops"},
    "backbones": {"faces"},
    "onnx_network": {"labels", "faces"},
    "models": {"labels", "faces", "backbones", "onnx_network"},
    "export": {"labels", "faces", "metadata_parallel", "fer_transform", "models", "onnx_network", "inference", "evaluate"},
    "onnx_weights": {"models", "onnx_network"},
    "losses": {"labels"},
    "fer_transform": {"labels", "faces", "layouts", "metadata_parallel"},
    "inference": {"labels", "metrics", "models"},
    "evaluate": {
        "labels",
        "metrics",
        "figures",
        "faces",
        "metadata_parallel",
        "models",
        "onnx_network",
        "fer_transform",
        "inference",
    },
    "teacher": {"labels", "faces", "models", "onnx_network", "fer_transform"},
    "average": {"metadata_parallel", "models", "onnx_network", "fer_transform", "evaluate"},
    "recipes": set(),
    "settings": {"labels", "backbones", "models", "losses", "fer_transform", "recipes"},
    "train": {
        "settings",
        "labels",
        "metrics",
        "figures",
        "faces",
        "metadata_parallel",
        "models",
        "onnx_weights",
        "teacher",
        "losses",
        "fer_transform",
        "inference",
        "evaluate",
        "recipes",
    },
    "study": {"labels", "figures", "recipes"},
    "report": {"labels", "metrics", "evaluate", "recipes", "study"},
    "sources": {"faces"},
    "answers": {"faces"},
    "video": {"faces", "sources", "answers", "figures"},
    "predict": {"labels", "faces", "models", "onnx_network", "sources", "answers", "video"},
    "app": {"labels", "faces", "figures", "onnx_network", "answers", "predict"},
    "sample_faces": {"labels"},
}
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
HEAVY = {"torch", "torchvision", "albumentations", "matplotlib", "seaborn", "tensorboard"}


def imported(script: str, *, inside_functions: bool = True) -> set[str]:
    """The top-level names of the modules that a script imports, all of them or those at its top alone."""
    tree = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{script}.py has a relative import in line {node.lineno}"
            names.add(node.module.split(".")[0])
    return names


def test_every_script_has_a_row() -> None:
    assert set(SCRIPTS) == set(MAY_IMPORT)


@pytest.mark.parametrize("script", SCRIPTS)
def test_arrows_run_one_way(script: str) -> None:
    own = imported(script) & set(SCRIPTS) - {"command_line"}  # which all may use
    assert own <= MAY_IMPORT[script], f"{script}.py must not import {own - MAY_IMPORT[script]}"


def test_the_table_has_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        ready = [name for name, below in MAY_IMPORT.items() if name not in order and below <= set(order)]
        assert ready, f"a circle among {set(MAY_IMPORT) - set(order)}"
        order += ready


def test_nothing_imports_train() -> None:
    assert [script for script in SCRIPTS if "train" in imported(script)] == []


def test_albumentations_in_one_file() -> None:
    assert [script for script in SCRIPTS if "albumentations" in imported(script)] == ["fer_transform"]


def test_labels_need_the_standard_library_alone() -> None:
    assert imported("labels") <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("script", "allowed"),
    [
        ("faces", {"cv2", "numpy"}),
        ("metrics", {"numpy", "scipy", "sklearn"}),
        ("figures", {"numpy", "matplotlib", "seaborn", "PIL"}),
    ],
)
def test_faces_metrics_and_figures_need_no_network_library(script: str, allowed: set[str]) -> None:
    assert imported(script) - sys.stdlib_module_names - set(SCRIPTS) <= allowed


@pytest.mark.parametrize("script", SCRIPTS)
def test_pictures_are_plotted_inside_functions(script: str) -> None:
    assert not imported(script, inside_functions=False) & {
        "matplotlib",
        "seaborn",
        "albumentations",
        "torchvision",
        "tensorboard",
    }


def test_light_scripts_start_light() -> None:
    """One process imports them all; what it loaded must hold none of the libraries that take seconds."""
    scripts = "labels, faces, metrics, figures, layouts, metadata_parallel, predict, sample_faces"
    program = f"import sys, {scripts}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert {"labels", "predict", "metadata_parallel", "cv2"} <= loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("script", [script for script in SCRIPTS if {"cv2", "faces"} <= imported(script)])
def test_the_limit_of_pixels_is_set_before_opencv_is_loaded(script: str) -> None:
    """faces.py sets it, so it is imported first."""
    tree = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))
    lines: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            lines |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            lines[str(node.module)] = node.lineno
    assert lines["faces"] < lines["cv2"]


def test_importing_the_networks_does_no_work() -> None:
    """fer_transform and models may load torch, but albumentations, torchvision and matplotlib wait until they are used."""
    program = "import sys, models, losses, fer_transform; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not {name.split(".")[0] for name in done.stdout.split()} & (HEAVY - {"torch"})
