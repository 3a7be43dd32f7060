"""The shipped network: its file, its figures on the real test split, and its answers on real photos."""

import json
import os
from pathlib import Path

import pytest

import evaluate
import metadata_parallel
import predict
from models import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "weights" / "lightcnn.onnx"
KEPT = ROOT / "results" / "BEST_seed41"
needs_fer2013 = pytest.mark.skipif("FER2013" not in os.environ, reason="FER2013 is not set: path of fer2013.parquet")
needs_fixtures = pytest.mark.skipif("FACE_FIXTURES" not in os.environ, reason="FACE_FIXTURES is not set: folder of photos")


def kept_scores() -> dict[str, float]:
    return json.loads((KEPT / "metrics_test.json").read_text(encoding="utf-8"))


def test_shipped_file_is_small_and_self_describing() -> None:
    checkpoint = load_checkpoint(SHIPPED)
    assert SHIPPED.stat().st_size < 14_000_000
    assert checkpoint.labels.name == "fer7" and checkpoint.preprocess.size_px == 48
    assert checkpoint.info["recipe"] == "BEST" and checkpoint.info["seed"] == 41


def test_readme_states_the_figures_that_were_measured() -> None:
    card = (ROOT / "README.md").read_text(encoding="utf-8").split("## The shipped network")[1].split("\n## ")[0]
    scores = kept_scores()
    for key in ("accuracy", "macro_f1", *(f"f1_{name}" for name in load_checkpoint(SHIPPED).labels.names)):
        assert f"{scores[key]:.3f}" in card, key


@needs_fer2013
def test_shipped_file_reaches_its_figures_on_the_real_test_split(tmp_path: Path) -> None:
    assert metadata_parallel.main(["--data", os.environ["FER2013"], "--out", str(tmp_path)]) == 0
    meta = tmp_path / "metadata_test.parquet"
    assert evaluate.main([str(SHIPPED), "--meta", str(meta), "--out", str(tmp_path / "scored"), "--device", "cpu"]) == 0
    scores = json.loads((tmp_path / "scored" / "metrics_test.json").read_text(encoding="utf-8"))
    for key in ("accuracy", "macro_f1"):
        assert scores[key] == pytest.approx(kept_scores()[key], abs=1e-3), key


@needs_fixtures
def test_shipped_network_on_photos(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.environ["FACE_FIXTURES"])
    faces = sorted(path for path in (folder / "faces").iterdir() if path.suffix in (".jpg", ".png"))
    others = sorted(path for path in (folder / "nonfaces").iterdir() if path.suffix in (".jpg", ".png"))
    assert predict.main([*map(str, faces + others), "--json"]) == 0
    answers = {Path(answer["path"]).name: answer for answer in json.loads(capsys.readouterr().out)}
    assert all(len(answers[path.name]["faces"]) >= 1 for path in faces)
    assert len(answers["pyfeat_multi_face.jpg"]["faces"]) >= 4
    assert not any(answers[path.name]["faces"] for path in others)
    assert answers["obama.jpg"]["faces"][0]["label"] == "happy"  # an official portrait, smiling
