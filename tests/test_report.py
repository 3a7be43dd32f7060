"""What is kept of a run, and RESULTS.md from what is kept alone."""

import json
import shutil
from pathlib import Path

import pytest

import evaluate
import report


@pytest.fixture(scope="module")
def run(trained: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and scored run, in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    shutil.copytree(trained, folder)
    assert evaluate.main([str(folder), "--meta", str(drawn / "metadata_val.parquet")]) == 0
    return folder


@pytest.fixture
def kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with results/short and RESULTS.md, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    assert report.main([str(run)]) == 0
    return tmp_path


def test_what_is_kept(kept: Path, run: Path) -> None:
    names = {path.name for path in (kept / "results" / "short").iterdir()}
    assert names == {
        "run.json", "history.jsonl", "metrics.json", "metrics_val.json", "classification_report.txt",
        "confusion_matrix.png", "training_history.png",
    }  # fmt: skip
    for name in names - {"run.json"}:
        assert (kept / "results" / "short" / name).read_bytes() == (run / name).read_bytes()


def test_no_path_of_this_machine_is_kept(kept: Path, run: Path, drawn: Path) -> None:
    original = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert original["args"]["train_meta"] == str(drawn / "metadata_train.parquet")  # absolute
    text = [
        path.read_text(encoding="utf-8") for path in kept.rglob("*") if path.suffix in (".json", ".jsonl", ".txt", ".md")
    ]
    assert len(text) == 6
    assert not [part for part in text if str(drawn.parent) in part or str(run.parent) in part]
    stored = json.loads((kept / "results/short/run.json").read_text(encoding="utf-8"))
    assert stored["args"]["train_meta"] == "metadata_train.parquet" and stored["args"]["epochs"] == 3
    assert "--train_meta metadata_train.parquet --val_meta metadata_val.parquet --runs runs" in stored["command"]
    assert stored["versions"] == original["versions"] and stored["machine"] == original["machine"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metadata_train.parquet", "metadata_train.parquet"),
        ("../data/fer", "../data/fer"),
        ("/home/somebody/fer/metadata_train.parquet", "metadata_train.parquet"),
        ("C:\\Users\\somebody\\fer data", "fer data"),
        ("D:/fer/", "fer"),
        ("/", "."),
        ("imagenet", "imagenet"),
        ("", ""),
    ],
)
def test_portable(text: str, expected: str) -> None:
    assert report.portable(text) == expected


def test_paths_below_the_current_folder_become_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = {
        "command": f"python train.py --data_root={tmp_path}/data --train_meta '/my files/m.parquet' --lr 1e-3",
        "args": {"runs": str(tmp_path / "runs"), "lr": 0.001, "resume": None, "save_path": "/else/where.pth"},
        "resumed": ["python train.py --resume /else/runs/a/last.pth"],
        "machine": {"threads": 2},
    }
    assert report.without_machine_paths(run) == {
        "command": "python train.py --data_root=data --train_meta m.parquet --lr 1e-3",
        "args": {"runs": "runs", "lr": 0.001, "resume": None, "save_path": "where.pth"},
        "resumed": ["python train.py --resume last.pth"],
        "machine": {"threads": 2},
    }


def test_results_say_what_the_metrics_say(kept: Path) -> None:
    text = (kept / "RESULTS.md").read_text(encoding="utf-8")
    values = json.loads((kept / "results/short/metrics.json").read_text(encoding="utf-8"))
    (row,) = [line for line in text.splitlines() if line.startswith("| [short](results/short) |")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1:3] == ["lightcnn", "affectnet8, val, 23 rows"]
    assert cells[3].startswith(f"**{values['accuracy']:.3f}** (") and cells[4] == f"**{values['macro_f1']:.3f}**"
    assert cells[5] == f"{values['epoch']} of 3"
    f1 = ["short", *(f"{values[f'f1_{name}']:.3f}" for name in report.LABEL_SETS["affectnet8"].names)]
    assert "| " + " | ".join(f1) + " |" in text
    valence = [f"{values[f'valence_{kind}']:.3f}" for kind in ("rmse", "mae", "pearson", "sagr", "ccc")]
    assert f"| short | valence | {' | '.join(valence)} |" in text
    assert "![confusion matrix of short](results/short/confusion_matrix.png)" in text
    assert "\npython train.py --recipe demo" in text


def test_the_same_bytes_from_results_alone(kept: Path, run: Path) -> None:
    written = (kept / "RESULTS.md").read_bytes()
    (kept / "RESULTS.md").unlink()
    assert report.main([]) == 0
    assert (kept / "RESULTS.md").read_bytes() == written
    assert report.main([str(run)]) == 0  # keeping it again changes nothing either
    assert (kept / "RESULTS.md").read_bytes() == written
    assert b"\r" not in written


def test_links_lead_to_the_files(kept: Path) -> None:
    (kept / "docs").mkdir()
    assert report.main(["--out", "docs/RESULTS.md"]) == 0
    assert "(../results/short/confusion_matrix.png)" in (kept / "docs/RESULTS.md").read_text(encoding="utf-8")


def test_the_test_split_goes_before_the_last_one(kept: Path, run: Path) -> None:
    values = json.loads((run / "metrics.json").read_text(encoding="utf-8"))  # val was scored last
    test = values | {"split": "test", "accuracy": 0.123, "f1_contempt": None}
    (run / "metrics_test.json").write_text(json.dumps(test), encoding="utf-8")
    (run / "classification_report_test.txt").write_text("of the test split", encoding="utf-8")
    (run / "confusion_matrix_test.png").write_bytes(b"of the test split")
    try:
        assert report.main([str(run)]) == 0
    finally:
        for path in [*run.glob("*_test.*")]:
            path.unlink()
    for name in ("classification_report.txt", "confusion_matrix.png"):
        assert (kept / "results/short" / name).read_bytes() == b"of the test split"
    text = (kept / "RESULTS.md").read_text(encoding="utf-8")
    assert "**0.123**" in text and "affectnet8, test, 23 rows" in text
    assert next(line for line in text.splitlines() if line.startswith("| short |")).endswith("| – |")


def test_what_a_run_no_longer_has_is_not_kept(kept: Path, run: Path) -> None:
    stale = kept / "results/short/metrics_test.json"
    stale.write_text("{}", encoding="utf-8")
    assert report.main([str(run)]) == 0
    assert not stale.exists()


def test_nothing_kept_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.main([]) == 0
    assert "No run is kept yet" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "runs in it: 0" in capsys.readouterr().out


def test_a_run_that_was_not_scored(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, words in ((trained, "lacks metrics.json"), (tmp_path / "no", "lacks run.json, history.jsonl, metrics.json")):
        assert report.main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert words in error and "evaluate.py" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_result(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kept / "results/short/run.json").unlink()
    assert report.main([]) == 2
    error = capsys.readouterr().err
    assert "lacks run.json" in error and error.count("\n") == 1
