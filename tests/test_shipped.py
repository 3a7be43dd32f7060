"""The shipped networks: their files, their figures on the real test split, and their answers on real photos."""

import json
import os
from pathlib import Path

import pytest

import evaluate
import metadata_parallel
import predict
from onnx_network import OnnxNetwork

ROOT = Path(__file__).resolve().parent.parent
# Of each file: the recipe and seed that it comes from, and where its figures are kept, by label set, with the end of the
# keys of the plain view.
SHIPPED: dict[str, tuple[str, int, dict[str, tuple[str, str]]]] = {
    "fernet_votes": ("fernet_votes", 40, {"fer7": ("fernet_votes", "_plain"), "ferplus8": ("ferplus8", "_plain")}),
}
needs_fer2013 = pytest.mark.skipif("FER2013" not in os.environ, reason="FER2013 is not set: path of fer2013.parquet")
needs_ferplus = pytest.mark.skipif("FERPLUS" not in os.environ, reason="FERPLUS is not set: path of fer2013new.csv")
needs_fixtures = pytest.mark.skipif("FACE_FIXTURES" not in os.environ, reason="FACE_FIXTURES is not set: folder of photos")


def kept_scores(run: str) -> dict[str, float]:
    return json.loads((ROOT / "results" / run / "metrics_test.json").read_text(encoding="utf-8"))


def test_shipped_files_are_small_and_self_describing() -> None:
    files = predict.shipped()
    assert files.keys() == SHIPPED.keys() and sum(path.stat().st_size for path in files.values()) < 14_000_000
    for name, (recipe, seed, kept) in SHIPPED.items():
        network = OnnxNetwork(files[name])
        assert (network.info["recipe"], network.info["seed"]) == (recipe, seed)
        assert [labels.name for labels in network.heads.values()] == list(kept)
        assert all(temperature != 1.0 for temperature in network.temperatures.values())  # each was fitted
        assert network.preprocess.landmarks is not None


def test_readme_states_the_figures_that_were_measured() -> None:
    card = (ROOT / "README.md").read_text(encoding="utf-8").split("## The shipped network\n")[1].split("\n## ")[0]
    for run in ("fernet_votes", "ferplus8", "fernet_4class"):
        scores = kept_scores(run)
        wanted = ["accuracy", "macro_f1", "accuracy_unseen", "macro_f1_unseen"]
        wanted += ["accuracy_plain", "macro_f1_plain", "expected_calibration_error"] if "views" in scores else []
        wanted += [key for key in scores if key.startswith("f1_") and not key.endswith("_reason") and run != "fernet_4class"]
        for key in wanted:
            assert f"{scores[key]:.3f}" in card, f"{key} of {run}"


@needs_fer2013
@needs_ferplus
def test_shipped_files_reach_their_figures_on_the_real_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "write_pictures", lambda *_, **__: None)
    data = ["--data", os.environ["FER2013"], "--ferplus", os.environ["FERPLUS"]]
    assert metadata_parallel.main([*data, "--out", str(tmp_path)]) == 0
    flags = ["--meta", str(tmp_path / "metadata_test.parquet"), "--device", "cpu"]
    for name, (_, _, kept) in SHIPPED.items():
        for label_set, (run, plain) in kept.items():
            out = tmp_path / name / label_set
            assert evaluate.main([str(predict.shipped()[name]), *flags, "--label_set", label_set, "--out", str(out)]) == 0
            scores = json.loads((out / "metrics_test.json").read_text(encoding="utf-8"))
            assert scores["rows"] == kept_scores(run)["rows"]
            for key in ("accuracy", "macro_f1"):
                assert scores[key] == pytest.approx(kept_scores(run)[f"{key}{plain}"], abs=1e-3), f"{key} of {name}"


@needs_fixtures
@pytest.mark.parametrize("name", list(SHIPPED))
def test_shipped_networks_on_photos(capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = Path(os.environ["FACE_FIXTURES"])
    faces = sorted(path for path in (folder / "faces").iterdir() if path.suffix in (".jpg", ".png"))
    others = sorted(path for path in (folder / "nonfaces").iterdir() if path.suffix in (".jpg", ".png"))
    assert predict.main([*map(str, faces + others), "--json", "--model", name]) == 0
    answers = {Path(answer["path"]).name: answer for answer in json.loads(capsys.readouterr().out)}
    assert all(len(answers[path.name]["faces"]) >= 1 for path in faces)
    assert len(answers["pyfeat_multi_face.jpg"]["faces"]) >= 4
    assert not any(answers[path.name]["faces"] for path in others)
    assert answers["obama.jpg"]["faces"][0]["label"] == "happy"  # an official portrait, smiling
