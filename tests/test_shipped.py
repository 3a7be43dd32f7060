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
# keys of the plain view; None where no figure of that head is kept.
SHIPPED: dict[str, tuple[str, int, dict[str, tuple[str, str] | None]]] = {
    "student": ("fernet_votes_refine", 77, {"fer7": ("student", "_plain"), "ferplus8": ("ferplus8", "_plain")}),
    "fernet": ("fernet_refine", 51, {"fer7": ("fernet", "_plain")}),
    "fernet_votes": ("fernet_votes_refine", 85, {"fer7": ("fernet_votes", "_plain"), "ferplus8": None}),
    "fernet_votes_2": ("fernet_votes_refine", 81, {"fer7": ("fernet_votes_2", "_plain"), "ferplus8": None}),
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
    card = (ROOT / "README.md").read_text(encoding="utf-8").split("## The shipped networks\n")[1].split("\n## ")[0]
    lines = card.splitlines()
    for run, row in (
        ("student", "FER2013, seven classes, {rows:,} rows"),
        ("ferplus8", "FER+, eight classes by majority, {rows:,} rows"),
        ("fernet_4class", "FER2013, four classes"),
        ("fernet", "`fernet`: FER2013's labels alone, seven classes"),
        ("fernet_votes", "`fernet_votes`: with the votes, seven classes"),
        ("fernet_votes_2", "`fernet_votes_2`: another with the votes, seven classes"),
        ("ensemble", "the mean of all four files, seven classes"),
    ):
        scores = kept_scores(run)
        shown = {key: f"{score:.3f}" for key, score in scores.items() if isinstance(score, float)}
        cells = [
            row.format(rows=scores["rows"]),
            f"{shown['accuracy']} ({shown['accuracy_low']} to {shown['accuracy_high']})",
            shown["macro_f1"],
            f"{shown['accuracy_plain']} / {shown['macro_f1_plain']}",
            f"{shown['accuracy_unseen']} / {shown['macro_f1_unseen']}",
            shown["expected_calibration_error"],
        ]
        assert f"| {' | '.join(cells)} |" in lines, run
    head = next(line for line in lines if line.startswith("| F1 by class |"))
    names = [cell.strip() for cell in head.split("|")[2:-1]]
    for run, title in (("student", "FER2013"), ("ferplus8", "FER+"), ("fernet", "`fernet`")):
        scores = kept_scores(run)
        shown_f1 = [f"{scores[f'f1_{name}']:.3f}" if f"f1_{name}" in scores else "" for name in names]
        assert f"| {title} | {' | '.join(shown_f1)} |" in lines, title


@needs_fer2013
@needs_ferplus
def test_shipped_files_reach_their_figures_on_the_real_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "write_pictures", lambda *_, **__: None)
    data = ["--data", os.environ["FER2013"], "--ferplus", os.environ["FERPLUS"]]
    assert metadata_parallel.main([*data, "--out", str(tmp_path)]) == 0
    flags = ["--meta", str(tmp_path / "metadata_test.parquet"), "--device", "cpu"]
    for name, (_, _, kept) in SHIPPED.items():
        for label_set, where in kept.items():
            if where is None:
                continue
            run, plain = where
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
