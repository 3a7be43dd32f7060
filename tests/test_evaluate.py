"""Scoring: the files and their keys, ensembles, what is refused, and what is taken where nothing is said."""

import json
import math
import os
import shutil
import types
from pathlib import Path
from typing import Any

from faces import Preprocess, read_image

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import predictions_of

import evaluate
import metadata_parallel
import metrics
import report
from evaluate import score, to_json
from fer_transform import FERDataset
from labels import LABEL_SETS, MERGES, LabelSet
from models import build_model, describe, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")
EIGHT = LABEL_SETS["affectnet8"]


def write_checkpoint(path: Path, *, labels: LabelSet, split_id: str, affect: bool = True, seed: int = 0) -> Path:
    """An untrained light CNN for pictures of 16 px."""
    torch.manual_seed(seed)
    preprocess = Preprocess(16, 1, (0.5,), (0.5,))
    model = build_model("lightcnn", classes=len(labels), affect=affect, preprocess=preprocess)
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # so that the classes are not all equally probable
    contents = describe("lightcnn", labels=labels, preprocess=preprocess, affect=affect)
    contents |= {"split_id": split_id, "epoch": 1, "affect_rows": 100 * affect}
    save_checkpoint(path, contents | {"state_dict": model.state_dict()})
    return path


def split_id_of(folder: Path) -> str:
    return FERDataset(folder / "metadata_val.parquet").info["split_id"]


def metrics_of(folder: Path, name: str = "metrics.json") -> dict[str, Any]:
    """A JSON file of scores; NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / name).read_text(encoding="utf-8"), parse_constant=refuse)


def error_of(capsys: pytest.CaptureFixture[str], *flags: str | Path) -> str:
    """The one line with which a scoring is refused."""
    capsys.readouterr()
    assert evaluate.main([str(flag) for flag in flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("evaluate.py: ") and captured.err.count("\n") == 1 and captured.out == ""
    return captured.err


@pytest.fixture(scope="module")
def scored(trained: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run with the scores of its validation split."""
    run = tmp_path_factory.mktemp("scored") / "short"
    shutil.copytree(trained, run)
    assert evaluate.main([str(run / "best.pth"), "--meta", str(drawn / "metadata_val.parquet")]) == 0
    return run


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the pictures, which take longer than the scoring, where a test is about something else."""
    monkeypatch.setattr(evaluate, "write_pictures", lambda *_, **__: None)


def test_scores_of_hand_made_predictions() -> None:
    scores, reasons = score(predictions_of([[0.6, 0.3, 0.1], [0.6, 0.4, 0.0]], [[0.2, 0.0], [1.0, -1.0]]), ("a", "b", "c"))
    assert scores["accuracy"] == 0.5 and scores["recall_a"] == 1 and scores["recall_b"] == 0
    assert scores["valence_rmse"] == pytest.approx(0.3) and scores["valence_rows"] == 1
    assert scores["arousal_rmse"] == pytest.approx(math.sqrt((0.25 + 1) / 2))
    assert math.isnan(scores["recall_c"]) and reasons["recall_c"] == "no rows of c"
    assert (scores["accuracy_low"], scores["accuracy_high"]) == pytest.approx((0.0945, 0.9055), abs=1e-4)  # Wilson, 1 of 2
    assert scores["baseline_accuracy_majority"] == 0.5
    no_head, reasons = score(predictions_of([[0.6, 0.3, 0.1], [0.6, 0.4, 0.0]], None), ("a", "b", "c"))
    assert math.isnan(no_head["valence_rmse"]) and math.isnan(no_head["arousal_ccc"])
    assert reasons["arousal_ccc"] == "the network was not trained on valence and arousal"


def test_undefined_is_null_with_a_reason() -> None:
    text = to_json(
        {"rows": 3, "kappa": math.nan, "loss": math.inf, "f1": 0.5, "auc": 0.7}, {"kappa": "why", "auc": "in part"}
    )
    assert json.loads(text) == {
        "rows": 3, "kappa": None, "kappa_reason": "why", "loss": None, "loss_reason": "undefined on these rows", "f1": 0.5,
        "auc": 0.7, "auc_reason": "in part",
    }  # fmt: skip


# Files


def test_keys_of_metrics_json(scored: Path, drawn: Path) -> None:
    values = metrics_of(scored)
    assert values == metrics_of(scored, "metrics_val.json")
    expected = ["exp", "model", "split", "rows", "accuracy", "balanced_accuracy", "macro_f1"]
    expected += [f"{kind}_{name}" for kind in ("f1", "precision", "recall") for name in EIGHT.names]
    expected += ["cohen_kappa", "roc_auc_macro", "pr_auc_macro", "krippendorff_alpha"]
    expected += [
        f"{target}_{kind}" for target in ("valence", "arousal") for kind in ("rmse", "mae", "pearson", "sagr", "ccc")
    ]
    expected += ["confusion_chi2", "confusion_chi2_df", "confusion_chi2_p", "confusion_cohen_w"]
    assert [key for key in values if key in expected] == expected
    assert (values["exp"], values["model"], values["split"], values["rows"]) == ("short", "lightcnn", "val", 23)
    assert values["split_id"] == split_id_of(drawn) and values["label_set"] == "affectnet8"
    nested = [key for key, value in values.items() if not (value is None or isinstance(value, str | int | float))]
    assert nested == ["confusion"]  # all else is flat
    undefined = [key for key, value in values.items() if value is None]
    assert undefined  # a network of three epochs never predicts some class
    assert all(isinstance(values[f"{key}_reason"], str) and values[f"{key}_reason"] for key in undefined)
    assert "never predicted" in values[f"{next(key for key in undefined if key.startswith('precision'))}_reason"]


def test_predictions_say_the_same_as_the_metrics(scored: Path, drawn: Path) -> None:
    table = pd.read_parquet(scored / "predictions.parquet")
    values = metrics_of(scored)
    dataset = FERDataset(drawn / "metadata_val.parquet")
    assert table["path"].tolist() == dataset.paths
    assert table["label"].tolist() == dataset.rows["label"].tolist()
    probabilities = table[[f"p_{name}" for name in EIGHT.names]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert table["predicted"].tolist() == [EIGHT.names[index] for index in probabilities.argmax(axis=1)]
    assert (table["predicted"] == table["label"]).mean() == values["accuracy"]
    for target in ("valence", "arousal"):
        error = table[f"{target}_predicted"].to_numpy(np.float64) - table[target].to_numpy(np.float64)
        assert math.sqrt(np.square(error).mean()) == pytest.approx(values[f"{target}_rmse"], rel=1e-6)


def test_text_report(scored: Path) -> None:
    values = metrics_of(scored)
    text = (scored / "classification_report.txt").read_text(encoding="utf-8")
    assert text.startswith("short: lightcnn on the val split, 23 rows")
    for name in EIGHT.names:
        (row,) = [line.split() for line in text.splitlines() if line.startswith(name)]
        cells = [values[f"{kind}_{name}"] for kind in ("precision", "recall", "f1")]
        assert row[1:4] == ["nan" if cell is None else f"{cell:.3f}" for cell in cells]
    assert sum(int(line.split()[-1]) for line in text.splitlines() if line.startswith(EIGHT.names)) == 23
    assert f"accuracy {values['accuracy']:.4f} (95% interval {values['accuracy_low']:.4f} to " in text
    for said, key in (("balanced accuracy", "balanced_accuracy"), ("macro F1", "macro_f1"), ("kappa", "cohen_kappa")):
        assert f"{said} {values[key]:.4f}, " in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("arousal")]
    assert row[1:6] == [f"{values[f'arousal_{kind}']:.3f}" for kind in ("rmse", "mae", "pearson", "sagr", "ccc")]
    table = pd.read_parquet(scored / "predictions.parquet")
    counts = metrics.confusion_counts(
        [EIGHT.index(name) for name in table["label"]], [EIGHT.index(name) for name in table["predicted"]], 8
    )
    true, taken, number, share = metrics.commonest_confusions(counts, EIGHT.names)[0]
    assert f"{share:.0%} of {true} taken for {taken} ({number} rows)" in text


def test_pattern_of_confusions_in_figures_and_in_words() -> None:
    names = LABEL_SETS["fer7"].names
    counts = np.full((7, 7), 30)
    counts[2, 4] += 60
    pattern = metrics.confusion_pattern_test(counts, names)
    test, header, confusion = evaluate.pattern_in_words(pattern)
    assert test.startswith(
        f"confusion pattern of 1320 mistakes: chi-square {pattern.chi2:.1f} with 29 degrees of freedom, p "
    )
    assert f"Cohen's w {math.sqrt(pattern.chi2 / 1320):.2f}" in test and header.endswith("explain: 1 of 42")
    (cell,) = pattern.excess
    assert confusion.startswith(
        f"  fear taken for sad: 90 rows, {cell.expected:.0f} expected, +{cell.residual:.1f} standard "
    )
    assert confusion.endswith(f"errors, p {cell.p:.0e} (Holm)")
    counts += np.eye(7, k=1, dtype=int) * 900 + np.eye(7, k=-1, dtype=int) * 900
    pattern = metrics.confusion_pattern_test(counts, names)
    assert len(evaluate.pattern_in_words(pattern, top=3)) == 2 + 3 < 2 + len(pattern.excess)
    right = metrics.confusion_pattern_test(np.diag(np.arange(7)), names)
    assert evaluate.pattern_in_words(right) == ["confusion pattern: not tested, no row is misclassified"]
    few = metrics.confusion_pattern_test(np.ones((7, 7), dtype=int), names)
    assert evaluate.pattern_in_words(few)[0].endswith(
        "(42 of 42 cells have an expected count under 5: the chi-square test is rough)"
    )


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "p < 1e-300"), (1e-320, "p < 1e-300"), (1.2e-20, "p 1e-20"), (0.0042, "p 0.004"), (1.0, "p 1.000")],
)
def test_p_values_in_words(p: float, text: str) -> None:
    assert evaluate.p_text(p) == text


def test_the_pattern_is_of_these_predictions(scored: Path) -> None:
    table, values = pd.read_parquet(scored / "predictions.parquet"), metrics_of(scored)
    counts = metrics.confusion_counts(
        [EIGHT.index(name) for name in table["label"]], [EIGHT.index(name) for name in table["predicted"]], 8
    )
    pattern = metrics.confusion_pattern_test(counts, EIGHT.names)
    for key, value in pattern.scores().items():
        assert values[key] == (None if math.isnan(value) else value)
        assert values.get(f"{key}_reason") == pattern.undefined
    assert evaluate.pattern_in_words(pattern)[0] in (scored / "classification_report.txt").read_text(encoding="utf-8")


PICTURES = ("confusion_matrix", "misclassification_heatmap", "per_class", "misclassified", "affect_scatter", "affect_plane")


def test_pictures(scored: Path) -> None:
    for stem in PICTURES:
        assert read_image(scored / f"{stem}.png").std() > 10
        assert (scored / f"{stem}.png").read_bytes() == (scored / f"{stem}_val.png").read_bytes()
    picture = read_image(scored / "confusion_matrix.png")
    assert picture.shape[0] > 1.5 * picture.shape[1] > 700  # two matrices, one below the other
    left, right = np.split(picture, [picture.shape[1] // 2], axis=1)
    assert left.std() > 20 and right.std() > 20
    assert (scored / "ConfusionMatrix_lightcnn.png").read_bytes() == (scored / "confusion_matrix.png").read_bytes()
    assert (scored / "confusion_residuals.png").is_file() == (metrics_of(scored)["confusion_chi2"] is not None)
    assert not list(scored.glob("*.tmp"))


def test_pictures_that_do_not_apply_are_removed(
    scored: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(scored, out, ignore=shutil.ignore_patterns("*.pth"))
    path = write_checkpoint(tmp_path / "a.pth", labels=EIGHT, split_id=split_id_of(drawn), affect=False)
    assert evaluate.main([str(path), "--meta", str(drawn / "metadata_val.parquet"), "--out", str(out)]) == 0
    assert {path.name for path in out.glob("affect_*")} == set()
    assert {f"{stem}{suffix}.png" for stem in PICTURES[:4] for suffix in ("", "_val")} <= {p.name for p in out.glob("*.png")}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"written to {out}{os.sep}: metrics.json, ") and last.endswith("and pictures (*.png)")


def test_no_face_of_a_data_set_is_kept() -> None:
    assert not [name for name in (*report.KEPT, *report.OF_ONE_SPLIT) if name.startswith("misclassified")]
    assert "confusion_matrix.png" in report.KEPT


# Several checkpoints


@pytest.mark.usefixtures("no_pictures")
def test_ensemble_of_checkpoints(drawn: Path, tmp_path: Path) -> None:
    split_id = split_id_of(drawn)
    paths = [
        write_checkpoint(tmp_path / f"{n}.pth", labels=EIGHT, split_id=split_id, affect=n != 2, seed=n) for n in range(3)
    ]
    tables = []
    for name, members in (("a", paths[:1]), ("b", paths[1:2]), ("ab", paths[:2]), ("abc", paths)):
        flags = [*map(str, members), "--meta", str(drawn / "metadata_val.parquet"), "--out", str(tmp_path / name)]
        assert evaluate.main(flags) == 0
        tables.append(pd.read_parquet(tmp_path / name / "predictions.parquet"))
    columns = [f"p_{name}" for name in EIGHT.names] + ["valence_predicted", "arousal_predicted"]
    first, second, joined = (table[columns].to_numpy(np.float64) for table in tables[:3])
    assert np.abs(first - second).max() > 0.05
    np.testing.assert_allclose(joined, (first + second) / 2, atol=1e-6)
    assert "valence_predicted" not in tables[3] and metrics_of(tmp_path / "abc")["valence_rmse"] is None
    values = metrics_of(tmp_path / "ab")
    assert values["members"] == 2 and values["model"] == "lightcnn" and values["exp"] == "ab"
    assert values["accuracy"] == (tables[2]["label"] == tables[2]["predicted"]).mean()


def test_of_an_ensemble_each_member_has_its_own_teachers(drawn: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name / "best.pth", labels=EIGHT, split_id=split_id_of(drawn), seed=ord(name))
        record = {
            "command": f"python train.py --exp {name}",
            "args": {},
            "machine": {},
            "teachers": [{"path": f"{name}.onnx"}],
        }
        (tmp_path / name / "run.json").write_text(json.dumps(record), encoding="utf-8")
    flags = ["--meta", str(drawn / "metadata_val.parquet"), "--out", str(tmp_path / "ab")]
    assert evaluate.main([str(tmp_path / "a"), str(tmp_path / "b"), *flags]) == 0
    joined = evaluate.record_of(tmp_path / "ab")
    assert "teachers" not in joined
    assert [member["teachers"] for member in joined["members"]] == [[{"path": "a.onnx"}], [{"path": "b.onnx"}]]


def test_a_network_that_changes_while_it_is_scored_has_no_figures(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "best.pth", labels=EIGHT, split_id=split_id_of(drawn))
    predict_rows = evaluate.predict_rows

    def meanwhile(*args: Any, **options: Any) -> Any:
        write_checkpoint(path, labels=EIGHT, split_id=split_id_of(drawn), seed=1)
        return predict_rows(*args, **options)

    monkeypatch.setattr(evaluate, "predict_rows", meanwhile)
    error = error_of(capsys, path, "--meta", drawn / "metadata_val.parquet", "--out", tmp_path / "out")
    assert "has changed while it was scored" in error and not list((tmp_path / "out").glob("metrics*"))


def test_an_ensemble_needs_one_order_of_labels(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split_id = split_id_of(drawn)
    first = write_checkpoint(tmp_path / "a.pth", labels=EIGHT, split_id=split_id)
    second = write_checkpoint(tmp_path / "b.pth", labels=LABEL_SETS["ferplus8"], split_id=split_id)
    error = error_of(capsys, first, second, "--meta", drawn / "metadata_val.parquet")
    assert str(first) in error and str(second) in error and "has labels neutral, happy, surprise" in error
    assert "named twice" in error_of(capsys, first, first, "--meta", drawn / "metadata_val.parquet")


# What does not belong together


@pytest.mark.usefixtures("no_pictures")
def test_another_split_is_refused(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "a.pth", labels=LABEL_SETS["fer7"], split_id="0123456789abcdef")
    meta = pixels / "metadata_test.parquet"
    error = error_of(capsys, path, "--meta", meta, "--out", tmp_path / "out")
    assert "0123456789abcdef" in error and split_id_of(pixels) in error and "--cross_dataset" in error
    assert not (tmp_path / "out").exists()
    assert evaluate.main([str(path), "--meta", str(meta), "--out", str(tmp_path / "out"), "--cross-dataset"]) == 0
    values = metrics_of(tmp_path / "out", "metrics_test.json")
    assert values["split"] == "test" and values["split_id"] == split_id_of(pixels)
    assert values["valence_rmse"] is None and values["valence_rmse_reason"] == "no rows with valence labels"


@pytest.mark.usefixtures("no_pictures")
def test_labels_that_the_network_does_not_know(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused on data of another split; left out and counted on its own, as in its training, and with --cross_dataset."""
    path = write_checkpoint(tmp_path / "a.pth", labels=LABEL_SETS["fer7"], split_id="0123")
    meta = drawn / "metadata_val.parquet"
    error = error_of(capsys, path, "--meta", meta, "--out", tmp_path / "out")
    assert "also has contempt" in error and "--cross_dataset" in error and "fer7" in error
    own = write_checkpoint(tmp_path / "b.pth", labels=LABEL_SETS["fer7"], split_id=split_id_of(drawn))
    for checkpoint, flags in ((path, ["--cross_dataset"]), (own, [])):
        assert evaluate.main([str(checkpoint), "--meta", str(meta), "--out", str(tmp_path / "out"), *flags]) == 0
        assert "left out: 1 rows" in capsys.readouterr().out
        values = metrics_of(tmp_path / "out")
        assert values["rows"] == 22 and values["rows_left_out"] == 1 and "f1_contempt" not in values


@pytest.mark.usefixtures("no_pictures")
def test_fewer_classes_by_merging_belong_together(pixels: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.pth", labels=LABEL_SETS["fer4"], split_id=split_id_of(pixels))
    flags = ["--meta", str(pixels / "metadata_val.parquet"), "--out", str(tmp_path / "out")]
    assert evaluate.main([str(path), *flags]) == 0
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert set(table["label"]) == {"angry", "sad", "happy", "neutral"} and metrics_of(tmp_path / "out")["rows_left_out"] == 0


def test_other_errors(drawn: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = drawn / "metadata_val.parquet"
    assert "no.pth not found" in error_of(capsys, tmp_path / "no.pth", "--meta", meta)
    (tmp_path / "text.pth").write_text("text")
    assert "text.pth is not a checkpoint" in error_of(capsys, tmp_path / "text.pth", "--meta", meta)
    assert "no.parquet not found" in error_of(capsys, trained, "--meta", tmp_path / "no.parquet")
    assert "--batch_size" in error_of(capsys, trained, "--meta", meta, "--batch_size", "0")
    assert "device tpu" in error_of(capsys, trained, "--meta", meta, "--device", "tpu")
    missing = error_of(capsys, trained, "--meta", meta, "--data_root", tmp_path, "--out", tmp_path / "out")
    assert ".jpg: missing" in missing and "--data_root" in missing
    assert "File exists" in error_of(capsys, trained, "--meta", meta, "--out", tmp_path / "text.pth")


# Defaults


@pytest.mark.usefixtures("no_pictures")
def test_newest_run_and_test_split_by_default(
    pixels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no run in runs" in error_of(capsys)
    for name in ("metadata_val.parquet", "metadata_images.npy"):
        shutil.copy(pixels / name, tmp_path)
    for age_s, name in enumerate(("new", "old", "older")):
        path = write_checkpoint(Path("runs") / name / "best.pth", labels=LABEL_SETS["fer7"], split_id=split_id_of(pixels))
        os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))
    assert evaluate.main([]) == 0  # no test split here
    assert sorted(path.name for path in Path("runs").glob("*/metrics_*.json")) == ["metrics_val.json"]
    shutil.copy(pixels / "metadata_test.parquet", tmp_path)
    assert evaluate.main([]) == 0
    assert {path.name for path in Path("runs/new").glob("metrics*.json")} == {
        "metrics.json", "metrics_val.json", "metrics_test.json",
    }  # fmt: skip
    assert metrics_of(Path("runs/new"))["split"] == "test"  # the split scored last
    assert evaluate.main(["--split", "val"]) == 0
    assert metrics_of(Path("runs/new"))["split"] == "val"
    assert not list(Path("runs/old").glob("*.json"))


@pytest.mark.usefixtures("no_pictures")
def test_a_run_folder_stands_for_its_best_checkpoint(scored: Path, drawn: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    shutil.copytree(scored, run)
    (run / "metrics.json").unlink()
    assert evaluate.main([str(run), "--meta", str(drawn / "metadata_val.parquet")]) == 0
    assert metrics_of(run) == metrics_of(scored) | {"exp": "again"}


@pytest.mark.usefixtures("no_pictures")
def test_figures_of_two_splits_in_a_folder_are_made_in_one_way(
    scored: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, meta = tmp_path / "out", ["--meta", str(drawn / "metadata_val.parquet"), "--out", str(tmp_path / "out")]
    assert evaluate.main([str(scored), *meta]) == 0
    figures = metrics_of(out)
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["scored"].startswith("python evaluate.py")
    older = {key: value for key, value in figures.items() if key != "sha256"}  # kept before there was that key
    for told in (figures, older, older | {"epoch": 9}, figures | {"views": 10}):
        stays = told in (figures, older)
        (out / "metrics_test.json").write_text(json.dumps(told | {"split": "test"}), encoding="utf-8")
        for name in ("confusion_matrix_test.png", "metadata_test.parquet"):  # the second is no figure
            (out / name).touch()
        assert evaluate.main([str(scored), *meta]) == 0
        assert (out / "metrics_test.json").is_file() is (out / "confusion_matrix_test.png").is_file() is stays
    assert "was made in another way, and is removed" in capsys.readouterr().out
    assert (out / "metadata_test.parquet").is_file() and (out / "training_history.png").is_file()
    (out / "metrics_test.json").write_text("{", encoding="utf-8")  # damaged
    assert evaluate.main([str(scored), *meta]) == 0 and not (out / "metrics_test.json").exists()
    (out / "metrics_test.json").write_text(json.dumps(figures | {"split": "test"}), encoding="utf-8")
    alone = Path(shutil.copy(scored / "best.pth", tmp_path / "alone.pth"))  # a network without a record of its training
    contents = torch.load(alone, weights_only=True)
    torch.save(contents | {"exp": "another", "more": 1}, alone)
    assert evaluate.main([str(alone), *meta]) == 0
    for name in ("run.json", "history.jsonl", "training_history.png", "metrics_test.json"):
        assert not (out / name).exists()
    (out / "last.pth").touch()
    assert "is the folder of another network" in error_of(capsys, scored, *meta)


def test_where_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate.output_folder([Path("runs/a/best.pth")], None, own=None) == Path("runs/a")
    assert evaluate.output_folder([Path("weights/lightcnn.onnx")], None, own=None) == Path("runs/lightcnn")
    assert evaluate.output_folder([Path("a.pth"), Path("b.pth")], None, own=None) == Path("runs/ensemble")
    assert evaluate.output_folder([Path("a.pth")], Path("x"), own="--cross_dataset") == Path("x")
    with pytest.raises(evaluate.EvaluationError, match="--out"):
        evaluate.output_folder([Path("runs/a/best.pth")], None, own="--cross_dataset")
    Path("runs/b").mkdir(parents=True)
    Path("runs/b/best.pth").touch()
    with pytest.raises(
        evaluate.EvaluationError, match=r"last\.pth, which is not the run.s best\.pth, needs a folder of its own"
    ):
        evaluate.output_folder([Path("runs/b/last.pth")], None, own=None)
    with pytest.raises(evaluate.EvaluationError, match=r"which is not the run.s best\.pth"):
        evaluate.output_folder([Path("runs/b/best_int8.onnx")], Path("runs/b"), own=None)
    assert evaluate.output_folder([Path("runs/b/best_int8.onnx")], None, own=None) == Path("runs/best_int8")
    assert evaluate.output_folder([Path("runs/b/last.pth")], Path("runs/last"), own=None) == Path("runs/last")
    Path("runs/votes").mkdir(parents=True)
    Path("runs/votes/run.json").write_text('{"scored": "python evaluate.py runs/a --tta flip"}', encoding="utf-8")
    with pytest.raises(evaluate.EvaluationError, match="holds the figures of another scoring"):
        evaluate.output_folder([Path("weights/votes.onnx")], None, own=None)
    assert evaluate.output_folder([Path("weights/votes.onnx")], Path("runs/votes"), own=None) == Path("runs/votes")
    Path("runs/votes/run.json").write_text('{"scored": "python evaluate.py weights/votes.onnx"}', encoding="utf-8")
    assert evaluate.output_folder([Path("weights/votes.onnx")], None, own=None) == Path("runs/votes")  # the same again
    for spelling in ("./weights/votes.onnx", str(tmp_path / "weights" / "votes.onnx")):
        Path("runs/votes/run.json").write_text(json.dumps({"scored": f"python evaluate.py {spelling}"}), encoding="utf-8")
        assert evaluate.output_folder([Path("weights/votes.onnx")], None, own=None) == Path("runs/votes")
    with pytest.raises(evaluate.EvaluationError, match="is the folder of another network"):
        evaluate.output_folder([Path("runs/a/best.pth")], Path("runs/b"), own=None)
    Path("runs/b/run.json").write_text("{}", encoding="utf-8")
    assert evaluate.output_folder([Path("runs/b/best.onnx")], None, own=None) == Path("runs/b_best")


@pytest.mark.usefixtures("no_pictures")
def test_damaged_weights_have_no_figures(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = (
        write_checkpoint(tmp_path / name, labels=LABEL_SETS["fer7"], split_id=split_id_of(pixels))
        for name in ("a.pth", "b.pth")
    )
    contents = torch.load(bad, weights_only=True)
    contents["state_dict"]["classifier.bias"][2] = math.nan
    torch.save(contents, bad)
    error = error_of(capsys, good, bad, "--meta", str(pixels / "metadata_val.parquet"), "--out", str(tmp_path / "out"))
    assert "b.pth answers with no numbers" in error


@pytest.mark.usefixtures("no_pictures")
def test_rows_of_several_splits_are_no_split(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "a.pth", labels=LABEL_SETS["fer7"], split_id=split_id_of(pixels))
    error = error_of(capsys, path, "--meta", pixels / "metadata_all.parquet", "--out", tmp_path / "out")
    assert "test, train, val" in error and "metadata_val.parquet" in error
    error = error_of(capsys, path, "--meta", pixels / "metadata_test.parquet", "--split", "val", "--out", tmp_path / "out")
    assert "holds rows of test, wanted is val" in error
    assert not (tmp_path / "out").exists()


def test_pictures_in_one_file_have_no_data_root(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "a.pth", labels=LABEL_SETS["fer7"], split_id=split_id_of(pixels))
    assert "leave it out" in error_of(capsys, path, "--meta", pixels / "metadata_val.parquet", "--data_root", tmp_path)


# What is done with the probabilities before they are scored


def test_adjusted_scores_go_to_a_folder_of_their_own(
    scored: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = ["--meta", str(drawn / "metadata_val.parquet")]
    assert "--logit_adjust needs a folder of its own" in error_of(capsys, scored, *meta, "--logit_adjust", "1")
    same_folder = error_of(capsys, scored, *meta, "--logit_adjust", "1", "--out", scored)
    assert "--logit_adjust needs a folder of its own" in same_folder
    assert "a number from 0, or auto" in error_of(capsys, scored, *meta, "--out", tmp_path / "x", "--logit_adjust", "much")
    before = metrics_of(scored)
    assert evaluate.main([str(scored), *meta, "--out", str(tmp_path / "same"), "--logit_adjust", "0"]) == 0
    same = metrics_of(tmp_path / "same")
    assert same["logit_adjust"] == 0 and same["accuracy"] == before["accuracy"] and same["macro_f1"] == before["macro_f1"]
    capsys.readouterr()
    assert evaluate.main([str(scored), *meta, "--out", str(tmp_path / "auto"), "--logit_adjust", "auto"]) == 0
    assert "logit adjustment: tau " in capsys.readouterr().out
    auto = metrics_of(tmp_path / "auto")
    assert auto["macro_f1"] >= before["macro_f1"]  # chosen on these very rows
    record = json.loads((tmp_path / "auto" / "run.json").read_text(encoding="utf-8"))
    assert record["scored"].endswith("--logit_adjust auto") and record["command"].startswith("python train.py")
    assert (tmp_path / "auto" / "history.jsonl").read_bytes() == (scored / "history.jsonl").read_bytes()


def test_adjustment_needs_the_class_frequencies(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "a.pth", labels=EIGHT, split_id=split_id_of(drawn))
    flags = ("--meta", drawn / "metadata_val.parquet", "--out", tmp_path / "out", "--logit_adjust", "1")
    assert "does not know how frequent each class was" in error_of(capsys, path, *flags)


def test_confusion_counts_are_in_the_figures(scored: Path) -> None:
    values = metrics_of(scored)
    counts = np.array(values["confusion"])
    assert counts.sum() == values["rows"] and counts.trace() / values["rows"] == pytest.approx(values["accuracy"])
    recall = counts[EIGHT.index("happy"), EIGHT.index("happy")] / counts[EIGHT.index("happy")].sum()
    assert recall == pytest.approx(values["recall_happy"])


@pytest.mark.usefixtures("no_pictures")
def test_the_studys_checkpoints_are_scored_though_they_know_no_split(
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = build_model("lightcnn", classes=7, affect=False, preprocess=Preprocess(48, 1, (0.5,), (0.5,)))
    head = {f"fc.{key}": value for key, value in net.classifier.state_dict().items()}
    torch.save({"epoch": 3, "backbone": net.backbone.state_dict(), "head": head}, tmp_path / "E5.pt")
    flags = ["--meta", str(pixels / "metadata_test.parquet"), "--out", str(tmp_path / "out")]
    assert evaluate.main([str(tmp_path / "E5.pt"), *flags]) == 0
    assert "E5.pt does not say on which split it was trained" in capsys.readouterr().out
    values = metrics_of(tmp_path / "out")
    assert values["rows"] == 21 and values["label_set"] == "custom" and "f1_neutral" in values


@pytest.mark.usefixtures("no_pictures")
def test_views_and_temperature_stand_beside_the_plain_figures(scored: Path, drawn: Path, tmp_path: Path) -> None:
    meta = ["--meta", str(drawn / "metadata_val.parquet")]
    before = metrics_of(scored)
    assert "tta" not in before and "temperature" not in before
    assert evaluate.main([str(scored), *meta, "--tta", "flip", "--out", str(tmp_path / "flip")]) == 0
    flip = metrics_of(tmp_path / "flip")
    assert flip["tta"] == "flip" and flip["views"] == 2
    assert flip["accuracy_plain"] == before["accuracy"] and flip["macro_f1_plain"] == before["macro_f1"]
    loading: dict[str, Any] = {"batch_size": 64, "workers": 0, "data_root": None, "device": CPU, "tta": "flip"}
    ((plain, mirrored),), _ = evaluate.predict_rows(
        [load_checkpoint(scored / "best.pth")], meta=drawn / "metadata_val.parquet", labels=EIGHT, **loading
    )
    said = pd.read_parquet(tmp_path / "flip" / "predictions.parquet")[[f"p_{name}" for name in EIGHT.names]]
    np.testing.assert_allclose(said, (plain.probabilities + mirrored.probabilities) / 2, atol=1e-6)
    assert evaluate.main([str(scored), *meta, "--tta", "flip", "--calibrate", "--out", str(tmp_path / "both")]) == 0
    both = metrics_of(tmp_path / "both")
    assert both["accuracy"] == flip["accuracy"]  # a temperature leaves the order of the classes as it is
    assert both["expected_calibration_error_uncalibrated"] == flip["expected_calibration_error"]
    assert both["temperature"] != 1 and both["expected_calibration_error"] != flip["expected_calibration_error"]
    text = (tmp_path / "both" / "classification_report.txt").read_text(encoding="utf-8")
    assert "mean of 2 views (--tta flip)" in text and f"temperature {both['temperature']:.3f}, fitted" in text


@pytest.mark.usefixtures("no_pictures")
def test_what_is_fitted_for_the_test_split_is_fitted_on_the_validation_split(
    pixels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "a.pth", labels=LABEL_SETS["fer7"], split_id=split_id_of(pixels), affect=False)
    asked: list[str] = []
    predict_rows = evaluate.predict_rows

    def noted(members: Any, *, meta: Path, **loading: Any) -> Any:
        asked.append(meta.name)
        return predict_rows(members, meta=meta, **loading)

    monkeypatch.setattr(evaluate, "predict_rows", noted)
    flags = ["--meta", str(pixels / "metadata_test.parquet"), "--calibrate"]
    assert evaluate.main([str(path), *flags, "--out", str(tmp_path / "out")]) == 0
    assert asked == ["metadata_val.parquet", "metadata_test.parquet"]


def test_steps_by_hand() -> None:
    three = LabelSet("three", ("happy", "fear", "sad"))
    said = predictions_of([[0.5, 0.25, 0.25], [0.1, 0.3, 0.6]], None)
    soft = evaluate.Steps(three, three, temperature=2.0)(said).probabilities
    roots = np.sqrt(said.probabilities)
    np.testing.assert_allclose(soft, roots / roots.sum(axis=1, keepdims=True), rtol=1e-5)
    # Adjusted, then softened, then merged, as predict.py does: fear is summed into sad.
    four = LABEL_SETS["fer4"]
    five = LabelSet("five", ("happy", "fear", "sad", "angry", "neutral"))
    said = predictions_of([[0.3, 0.2, 0.2, 0.2, 0.1]], None)
    priors = np.array([0.4, 0.1, 0.2, 0.2, 0.1])
    joined = evaluate.Steps(five, four, priors=priors, tau=1.0, temperature=2.0)(said).probabilities[0]
    happy, fear, sad, angry, neutral = np.sqrt(said.probabilities[0] / priors)
    shares = {"happy": happy, "sad": fear + sad, "angry": angry, "neutral": neutral}
    expected = np.array([shares[name] for name in four.names])
    np.testing.assert_allclose(joined, expected / expected.sum(), rtol=1e-5)


def test_priors_are_the_shares_of_the_training_rows() -> None:
    two = LabelSet("two", ("happy", "sad"))
    member: Any = types.SimpleNamespace(labels=two, info={"class_counts": {"sad": 1, "happy": 3}})
    assert evaluate.training_priors([member], Path("a")).tolist() == [0.75, 0.25]
    other: Any = types.SimpleNamespace(labels=two, info={"class_counts": {"sad": 2, "happy": 3}})
    with pytest.raises(evaluate.EvaluationError, match="adjust each alone"):
        evaluate.training_priors([member, other], Path("a"))


@pytest.mark.usefixtures("no_pictures")
def test_every_member_of_an_ensemble_must_be_of_the_split(
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, foreign = (
        write_checkpoint(tmp_path / f"{split_id[:2]}.pth", labels=LABEL_SETS["fer7"], split_id=split_id, affect=False)
        for split_id in (split_id_of(pixels), "0123")
    )
    flags = ("--meta", pixels / "metadata_test.parquet", "--out", tmp_path / "out")
    assert "was trained on split 0123" in error_of(capsys, own, foreign, *flags)


@pytest.mark.usefixtures("no_pictures")
def test_a_head_that_saw_no_label_is_not_scored(drawn: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.pth", labels=EIGHT, split_id=split_id_of(drawn))
    contents = torch.load(path, weights_only=True) | {"affect_rows": 0}
    save_checkpoint(path, contents)
    assert evaluate.main([str(path), "--meta", str(drawn / "metadata_val.parquet"), "--out", str(tmp_path / "out")]) == 0
    values = metrics_of(tmp_path / "out")
    assert values["valence_rmse"] is None and "not trained on" in values["valence_rmse_reason"]
    assert "valence_predicted" not in pd.read_parquet(tmp_path / "out" / "predictions.parquet")


@pytest.mark.parametrize("flag", [("--tta", "flip"), ("--calibrate",), ("--label_set", "fer4")])
def test_other_figures_than_the_plain_ones_do_not_replace_them(
    scored: Path, drawn: Path, capsys: pytest.CaptureFixture[str], flag: tuple[str, ...]
) -> None:
    error = error_of(capsys, scored, "--meta", drawn / "metadata_val.parquet", *flag)
    assert f"{flag[0]} needs a folder of its own" in error


@pytest.mark.usefixtures("no_pictures")
def test_four_classes_are_sums_of_seven(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fer7, fer4 = LABEL_SETS["fer7"], LABEL_SETS["fer4"]
    path = write_checkpoint(tmp_path / "a.pth", labels=fer7, split_id=split_id_of(pixels), affect=False)
    meta = ["--meta", str(pixels / "metadata_test.parquet")]
    assert evaluate.main([str(path), *meta, "--out", str(tmp_path / "seven")]) == 0
    assert evaluate.main([str(path), *meta, "--label_set", "fer4", "--out", str(tmp_path / "four")]) == 0
    seven, four = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("seven", "four"))
    for row in range(len(seven)):
        assert four["p_angry"][row] == pytest.approx(seven["p_angry"][row] + seven["p_disgust"][row])
        assert four["p_neutral"][row] == pytest.approx(seven["p_neutral"][row] + seven["p_surprise"][row])
        assert four["label"][row] == MERGES["fer4"].get(seven["label"][row], seven["label"][row])
    assert metrics_of(tmp_path / "four")["label_set"] == "fer4" and set(four["predicted"]) <= set(fer4.names)
    refused = error_of(capsys, path, *meta, "--label_set", "affectnet8", "--out", tmp_path / "eight")
    assert "says nothing of contempt" in refused and not (tmp_path / "eight").exists()


@pytest.mark.usefixtures("no_pictures")
def test_pictures_of_the_training_are_counted_in_the_test_split(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    pictures = [" ".join(map(str, generator.integers(0, 256, 48 * 48))) for _ in range(36)]
    usages = ["Training"] * 14 + ["PublicTest"] * 7 + ["PrivateTest"] * 15
    pictures[22], pictures[25], pictures[30], pictures[31] = pictures[0], pictures[5], pictures[16], pictures[13]
    lines = [f"{row % 7},{picture},{usage}" for row, (picture, usage) in enumerate(zip(pictures, usages, strict=True))]
    (tmp_path / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]) + "\n", encoding="ascii")
    assert metadata_parallel.main(["--data", str(tmp_path / "fer2013.csv"), "--out", str(tmp_path)]) == 0
    path = write_checkpoint(tmp_path / "a.pth", labels=LABEL_SETS["fer7"], split_id=split_id_of(tmp_path), affect=False)
    flags = [str(path), "--meta", str(tmp_path / "metadata_test.parquet"), "--out", str(tmp_path / "out")]
    assert evaluate.main(flags) == 0
    values = metrics_of(tmp_path / "out")
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    unseen = table.drop(index=[22 - 21, 25 - 21, 31 - 21])  # row 30 has its picture in common with validation alone
    assert values["rows"] == 15 and values["rows_seen"] == 3
    assert values["accuracy_unseen"] == pytest.approx((unseen["label"] == unseen["predicted"]).mean())
    (tmp_path / "metadata_train.parquet").unlink()
    assert evaluate.main(flags) == 0 and "rows_seen" not in metrics_of(tmp_path / "out")


@pytest.mark.skipif("FER2013" not in os.environ, reason="FER2013 is not set: path of fer2013.parquet")
def test_fer2013_has_288_test_pictures_in_its_training_split(tmp_path: Path) -> None:
    assert metadata_parallel.main(["--data", os.environ["FER2013"], "--out", str(tmp_path)]) == 0
    dataset = FERDataset(tmp_path / "metadata_test.parquet")
    seen = evaluate.seen_in_training(dataset, tmp_path / "metadata_train.parquet")
    assert seen is not None and seen.sum() == 288


@pytest.mark.usefixtures("no_pictures")
def test_what_would_score_something_else(
    pixels: Path, voted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seven = write_checkpoint(
        tmp_path / "a" / "best.pth", labels=LABEL_SETS["fer7"], split_id=split_id_of(pixels), affect=False
    )
    eight = write_checkpoint(tmp_path / "b.pth", labels=LABEL_SETS["ferplus8"], split_id=split_id_of(pixels), affect=False)
    meta = ["--meta", str(pixels / "metadata_test.parquet")]
    assert "index with --ferplus" in error_of(capsys, eight, *meta, "--out", tmp_path / "out")
    folder = ["--out", str(tmp_path / "a")]
    second = shutil.copy(seven, tmp_path / "c.pth")
    assert "give the ensemble its own" in error_of(capsys, seven, second, *meta, *folder)
    both = [*meta, "--out", str(tmp_path / "out"), "--cross_dataset", "--calibrate"]
    assert "leave out --cross_dataset" in error_of(capsys, seven, *both)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_is_scored_on_the_splits_that_it_was_trained_with(
    pixels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_checkpoint(Path("runs/a/best.pth"), labels=LABEL_SETS["fer7"], split_id=split_id_of(pixels))
    val = pixels / "metadata_val.parquet"
    path.with_name("run.json").write_text(json.dumps({"args": {"val_meta": str(val)}}), encoding="utf-8")
    assert evaluate.default_meta(path, None) == pixels / "metadata_test.parquet"
    assert evaluate.default_meta(path, "val") == val
    assert evaluate.main(["runs/a"]) == 0
    assert metrics_of(Path("runs/a"))["split"] == "test"
    other = path.with_name("elsewhere") / "best.pth"  # without a record: this folder's
    assert evaluate.default_meta(other, None) == Path("metadata_val.parquet")


@pytest.mark.parametrize("second", ["x", "y"])
def test_several_networks_go_on_from_one_only_if_all_do(tmp_path: Path, second: str) -> None:
    paths = []
    for name, start in (("a", "x"), ("b", second)):
        (tmp_path / name).mkdir()
        record = {"args": {"seed": 1}, "command": name, "init_exp": start}
        (tmp_path / name / "run.json").write_text(json.dumps(record), encoding="utf-8")
        (tmp_path / name / "history.jsonl").write_text("{}\n", encoding="utf-8")
        paths.append(tmp_path / name / "best.pth")
    out = tmp_path / "out"
    out.mkdir()
    member = types.SimpleNamespace(info={"epoch": 3})
    evaluate.write_record(paths, [member, member], out, "score both")  # type: ignore[list-item]
    assert evaluate.record_of(out).get("init_exp") == ("x" if second == "x" else None)


def test_the_record_of_an_onnx_file_is_that_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        args = {"recipe": "r", "model": "lightcnn", "seed": seed, "epochs": 60}
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps({"args": args, "command": name}), encoding="utf-8")
        (tmp_path / "runs" / name / "history.jsonl").write_text("{}\n", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    # runs/b has another seed; the training runs/a has gone on since a file of 30 epochs was exported
    for exp, seed, epochs, there in (("b", 1, 60, False), ("none", 1, 60, False), ("a", 1, 30, False), ("a", 1, 60, True)):
        info = {"exp": exp, "recipe": "r", "model": "lightcnn", "seed": seed, "epoch": 3, "epochs": epochs}
        member = types.SimpleNamespace(info=info)
        evaluate.write_record([Path("weights/x.onnx")], [member], out, "score it")  # type: ignore[list-item]
        assert (out / "run.json").is_file() is there
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert (record["command"], record["scored"]) == ("a", "score it")
    own = Path("runs/a")  # into the folder of the training itself: its record stays as it is
    evaluate.write_record([Path("weights/x.onnx")], [member], own, "score it")  # type: ignore[list-item]
    assert evaluate.record_of(own) == {"args": args | {"seed": 1}, "command": "a"}
    (own / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(evaluate.EvaluationError, match="is damaged"):
        evaluate.record_of(own)
