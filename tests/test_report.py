"""What is kept of a run, and RESULTS.md and the study from what is kept alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_study import confused, made_up

import average
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


def keep_made_up(results: Path, **runs: dict[str, Any]) -> None:
    """Lay made-up runs into results/, as they would have been kept; a run is what differs from the plain one."""
    for name, more in runs.items():
        values = made_up(name, **more)
        run, history = values.pop("run"), values.pop("history")
        (results / name).mkdir(parents=True)
        (results / name / "metrics.json").write_text(json.dumps(values), encoding="utf-8")
        (results / name / "run.json").write_text(json.dumps(run), encoding="utf-8")
        lines = "".join(json.dumps(line) + "\n" for line in history)
        (results / name / "history.jsonl").write_text(lines, encoding="utf-8")


def cells_of(text: str, start: str) -> list[str]:
    """The cells of the first row of a Markdown table that starts so."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_what_is_kept(kept: Path, run: Path) -> None:
    names = {path.name for path in (kept / "results" / "short").iterdir()}
    pictures = {name for name in report.PICTURES if (run / name).is_file()}
    assert pictures >= {"confusion_matrix.png", "per_class.png", "affect_scatter.png", "training_history.png"}
    texts = {"run.json", "history.jsonl", "metrics.json", "metrics_val.json", "classification_report.txt"}
    assert names == texts | pictures
    for name in names - {"run.json"}:
        assert (kept / "results" / "short" / name).read_bytes() == (run / name).read_bytes()


def test_an_ensemble_is_kept_with_its_members(
    run: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, votes in ((3, 0.0), (4, 1.0)):
        member = shutil.copytree(run, tmp_path / "runs" / f"short_seed{seed}")
        record = json.loads((member / "run.json").read_text(encoding="utf-8"))
        record |= {"command": f"python train.py --seed {seed}", "args": record["args"] | {"votes_weight": votes}}
        (member / "run.json").write_text(json.dumps(record), encoding="utf-8")
    members = ["runs/short_seed3", "runs/short_seed4"]
    assert evaluate.main([*members, "--meta", str(drawn / "metadata_val.parquet"), "--out", "runs/ensemble"]) == 0
    assert report.main(["runs/ensemble"]) == 0
    kept = json.loads(Path("results/ensemble/run.json").read_text(encoding="utf-8"))
    assert [(member["name"], member["epochs"]) for member in kept["members"]] == [("short_seed3", 3), ("short_seed4", 3)]
    text = Path("RESULTS.md").read_text(encoding="utf-8")
    assert "(2 members)" in text and "with the FER+ votes of the training rows" in text  # one of them has learnt these
    trained = ("python train.py --seed 3", "python train.py --seed 4")
    commands = (*trained, "python evaluate.py runs/short_seed3 runs/short_seed4")
    assert [command for command in commands if command not in text] == []


def test_a_mean_of_weights_is_kept_with_its_members(
    run: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that go on from one, their mean, an ensemble of that mean and another run: each training once, in order, and
    what those go on from."""
    monkeypatch.chdir(tmp_path)
    meta = ["--meta", str(drawn / "metadata_val.parquet")]
    for name in ("base", "left", "right", "other"):
        folder = shutil.copytree(run, tmp_path / "runs" / name)
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        init = tmp_path / "runs/base/best.pth" if name in ("left", "right") else None
        record |= {"command": f"python train.py --exp {name}", "args": record["args"] | {"init": init and str(init)}}
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert average.main(["runs/left", str(tmp_path / "runs/right"), "--out", "runs/mean"]) == 0
    assert evaluate.main(["runs/mean", *meta]) == 0
    assert evaluate.main(["runs/mean", "runs/other", *meta, "--out", "runs/both"]) == 0
    assert report.main(["runs/base", "runs/mean", "runs/both"]) == 0
    text = Path("RESULTS.md").read_text(encoding="utf-8")
    epoch = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["epoch"]
    one = f"{epoch} of 3"
    mean, both = cells_of(text, "[mean]"), cells_of(text, "[both]")
    assert mean[0].endswith(", the mean of several checkpoints' weights)") and "mean of" not in both[0]
    assert (mean[6], both[6]) == (f"{one} + {one}; {one}", f"{one} + {one}; {one}; {one}")
    minutes = sum(json.loads(line)["time_s"] for line in (run / "history.jsonl").read_text().splitlines()) / 60
    assert mean[7].startswith(f"{3 * minutes:.0f} min") and both[7].startswith(f"{4 * minutes:.0f} min")
    typed = {line.split(":")[0]: line for line in text.splitlines() if line.startswith("- ")}
    trainings = [f"`python train.py --exp {name}`" for name in ("base", "left", "right")]
    averaging = "`python average.py runs/left runs/right --out runs/mean`"
    assert typed["- mean"].endswith(", then ".join([*trainings, averaging]))
    first, second = "`python train.py --exp other`", "`python evaluate.py runs/mean runs/other"
    assert ", then ".join([*trainings, averaging, first, second]) in typed["- both"]


def test_a_mean_of_weights_is_no_other_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_made_up(tmp_path / "results", mine_seed1={}, mine_seed2={})
    path = tmp_path / "results/mine_seed2/run.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"members": []}), encoding="utf-8")
    assert written(tmp_path) == 2
    assert "of mine_seed2 and mine_seed1 one is a mean of weights" in capsys.readouterr().err


def test_pictures_of_faces_are_never_kept(kept: Path, run: Path) -> None:
    assert (run / "misclassified.png").is_file() and (run / "misclassified_val.png").is_file()
    assert [path for path in kept.rglob("*") if "misclassified" in path.name] == []
    assert [name for name in report.KEPT if "misclassified" in name] == []
    assert "misclassified" not in (kept / "RESULTS.md").read_text(encoding="utf-8")


def test_kept_pictures_are_small_and_name_no_software(kept: Path) -> None:
    pictures = [path.read_bytes() for path in kept.rglob("*.png")]
    assert len(pictures) >= 4 and max(map(len, pictures)) < 100_000
    assert [png for png in pictures if b"tEXt" in png or b"Software" in png] == []


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
        ("D:\\fer\\runs\\two_phase_1\\best.pth", "two_phase_1/best.pth"),  # by which its run is found again
        ("/home/somebody/fer/runs/two_phase_1/last.pth", "two_phase_1/last.pth"),
        ("/home/somebody/fer/runs/two_phase_1/best_int8.onnx", "two_phase_1/best_int8.onnx"),
        ("/home/somebody/a/best.pth,runs/b,/home/somebody/fernet.onnx", "a/best.pth,runs/b,fernet.onnx"),
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
        "teachers": [{"path": "/else/runs/b/best.pth", "exp": "b"}],
        "machine": {"threads": 2},
    }
    assert report.without_machine_paths(run) == {
        "command": "python train.py --data_root=data --train_meta m.parquet --lr 1e-3",
        "args": {"runs": "runs", "lr": 0.001, "resume": None, "save_path": "where.pth"},
        "resumed": ["python train.py --resume a/last.pth"],
        "teachers": [{"path": "b/best.pth", "exp": "b"}],
        "machine": {"threads": 2},
    }


def test_results_say_what_the_metrics_say(kept: Path) -> None:
    text = (kept / "RESULTS.md").read_text(encoding="utf-8")
    values = json.loads((kept / "results/short/metrics.json").read_text(encoding="utf-8"))
    cells = cells_of(text, "[short](results/short) |")
    assert cells[1:3] == ["lightcnn", "affectnet8, val, 23 rows"]
    assert cells[3].startswith(f"**{values['accuracy']:.3f}** (") and cells[4] == f"**{values['macro_f1']:.3f}**"
    assert cells[5] == f"{values['epoch']} of 3"
    f1 = ["short", *(f"{values[f'f1_{name}']:.3f}" for name in report.LABEL_SETS["affectnet8"].names)]
    assert "| " + " | ".join(f1) + " |" in text
    valence = [f"{values[f'valence_{kind}']:.3f}" for kind in ("rmse", "mae", "pearson", "sagr", "ccc")]
    assert f"| short | valence | {' | '.join(valence)} |" in text
    for name in ("confusion matrix", "per class", "affect scatter", "training history"):
        assert f"![{name} of short](results/short/{name.replace(' ', '_')}.png)" in text
    assert text.count("<details><summary>short</summary>\n\n") == text.count("\n\n</details>\n") == 1
    assert "\npython train.py --recipe demo" in text


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bytes_from_results_alone(kept: Path, run: Path) -> None:
    keep_made_up(kept / "results", E0_seed40=confused(5), E0_seed41=confused(6), E5_seed40=confused(7))
    assert report.main([]) == 0
    before = contents(kept)
    assert len([name for name in before if name.startswith("results/study/")]) == 4
    (kept / "RESULTS.md").unlink()
    shutil.rmtree(kept / "results/study")
    assert report.main([]) == 0
    assert contents(kept) == before
    assert report.main([str(run)]) == 0  # keeping it again changes nothing either
    assert contents(kept) == before
    assert [name for name, part in before.items() if not name.endswith(".png") and b"\r" in part] == []


def test_the_results_of_this_repository_are_what_report_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(report.__file__).parent
    shutil.copytree(root / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert report.main([]) == 0
    for name in ("RESULTS.md", "results/study/study.csv", "results/study/study.tex"):
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes(), name


def test_links_lead_to_the_files(kept: Path) -> None:
    (kept / "docs").mkdir()
    assert report.main(["--out", "docs/RESULTS.md"]) == 0
    assert "(../results/short/confusion_matrix.png)" in (kept / "docs/RESULTS.md").read_text(encoding="utf-8")


def test_the_test_split_goes_before_the_last_one(kept: Path, run: Path) -> None:
    values = json.loads((run / "metrics.json").read_text(encoding="utf-8"))  # val was scored last
    test = values | {"split": "test", "accuracy": 0.123, "f1_contempt": None}
    (run / "metrics_test.json").write_text(json.dumps(test), encoding="utf-8")
    (run / "classification_report_test.txt").write_text("of the test split", encoding="utf-8")
    for name in ("confusion_matrix_test.png", "per_class_test.png", "misclassified_test.png"):
        (run / name).write_bytes(b"of the test split")
    try:
        assert report.main([str(run)]) == 0
    finally:
        for path in [*run.glob("*_test.*")]:
            path.unlink()
    assert not (kept / "results/short/misclassified.png").exists()
    for name in ("classification_report.txt", "confusion_matrix.png", "per_class.png"):
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
    assert report.main([]) == 2
    assert "no run is kept in results/ – keep one: python report.py runs/NAME" in capsys.readouterr().err
    assert not (tmp_path / "RESULTS.md").exists()


def test_a_run_that_was_not_scored(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, words in ((trained, "lacks metrics.json"), (tmp_path / "no", "lacks run.json, history.jsonl, metrics.json")):
        assert report.main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert words in error and "evaluate.py" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_figures_without_a_record_and_two_runs_of_one_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a/x", "b/x", "c/x"):
        shutil.copytree(trained, folder)
        Path(folder, "metrics.json").write_text('{"split": "val"}', encoding="utf-8")
    Path("c/x/run.json").unlink()
    assert report.main(["c/x"]) == 2
    assert "c/x holds figures without run.json" in capsys.readouterr().err
    assert report.main(["a/x", "b/x"]) == 2
    assert "two runs are called x" in capsys.readouterr().err
    for damaged in (b"[]", b"\xff\xfe"):
        Path("a/x/metrics.json").write_bytes(damaged)
        assert report.main(["a/x"]) == 2
        error = capsys.readouterr().err
        assert "a/x holds a damaged file" in error and error.count("\n") == 1
    assert not list(Path("results").glob("*"))


def test_an_interrupted_report_leaves_results_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    keep_made_up(tmp_path / "results", E0_seed40={})
    monkeypatch.setattr(report, "write_results", interrupted)
    assert written(tmp_path) == 130 and not (tmp_path / "RESULTS.md").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "lacks run.json"), (b'{"command": ', "holds a damaged file"), (b"\xff\xfe", "holds a damaged file")],
)
def test_a_damaged_result(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes | None, words: str) -> None:
    keep_made_up(tmp_path / "results", E0_seed40={})
    path = tmp_path / "results/E0_seed40/run.json"
    path.unlink() if text is None else path.write_bytes(text)
    assert written(tmp_path) == 2
    error = capsys.readouterr().err
    assert words in error and "python report.py runs/E0_seed40" in error and error.count("\n") == 1


# Every documented system beside its own figures


def written(folder: Path) -> int:
    """Write RESULTS.md from results/, both in a folder; returns the status."""
    return report.main(["--results", str(folder / "results"), "--out", str(folder / "RESULTS.md")])


def test_documented_systems_beside_their_figures(tmp_path: Path) -> None:
    keep_made_up(
        tmp_path / "results",
        E0_seed41={"accuracy": 0.62, "epoch": 1, "minutes": (2, 4), "args": {"recipe": "E0", "seed": 41}},
        E0_seed40={"accuracy": 0.60, "f1_disgust": 0.24},
        two_phase_1={"label_set": "ferplus8", "minutes": (3, 3, 3), "epoch": 3},
        two_phase={"args": {"init": "runs/two_phase_1/best.pth"}, "recall_fear": 0.41},
        four_class={"label_set": "fer4", "model": "resnet18_gray"},
        BEST_seed42={"args": {"recipe": "mixup"}, "split": "val", "f1_fear": None},
    )
    assert written(tmp_path) == 0
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    machine = "2 threads of Made Up 1, float32"
    # Accuracies 0.60 and 0.62: mean 0.61, deviations 0.01 each, std = sqrt(0.0002 / 1) = 0.0141.
    assert cells_of(text, "[E0]") == [
        "[E0](results/E0_seed40) light CNN: softmax, cross-entropy",
        "0.633 / 0.534, disgust F1 0.069<sup>1</sup>",
        "**0.610 ± 0.014**",
        "**0.400 ± 0.000**",
        "disgust F1 0.220, fear F1 0.300, fear recall 0.250",
        "[40](results/E0_seed40), [41](results/E0_seed41)",
        "2, 1 of 2",
        f"4 min, {machine}",  # the mean of 2 and 6
    ]
    assert cells_of(text, "[two_phase]")[1:3] == ["0.67 / –, fear recall 0.43<sup>2</sup>", "**0.500**"]
    assert cells_of(text, "[two_phase]")[4:] == [
        "disgust F1 0.200, fear F1 0.300, fear recall 0.410",
        "[–](results/two_phase)",
        "3 of 3 + 2 of 2",
        f"11 min, {machine}",
    ]
    assert cells_of(text, "[four_class]")[1:5] == ["0.50–0.60 / –", "**0.500**", "**0.400**", "angry F1 0.100"]
    assert cells_of(text, "[BEST]")[:5] == [
        "[BEST](results/BEST_seed42) (light CNN: mixup)",
        "–",
        "**0.500** (val)",
        "**0.400** (val)",
        "disgust F1 0.200, fear recall 0.250",
    ]
    table, _, below = text.partition("## Every run")
    order = [line.split("]")[0] for line in table.splitlines() if line.startswith("| [")]
    assert order == ["| [E0", "| [two_phase", "| [four_class", "| [BEST"]
    notes = [line for line in table.splitlines() if line.startswith("<sup>")]
    assert [note[:26] for note in notes] == ["<sup>1</sup> E0: one run; ", "<sup>2</sup> two_phase: th"]
    assert "Not among the kept runs yet: E1, E2, E2b, E3, E4, E5, E6, two_phase_as_written, four_class_better, " in table
    assert [line for line in table.splitlines() if line.startswith("- ")] == [
        "- E0: `python train.py --exp E0_seed40`",
        "- two_phase: `python train.py --exp two_phase_1`, then `python train.py --exp two_phase`",
        "- four_class: `python train.py --exp four_class`",
        "- BEST: `python train.py --exp BEST_seed42`",
    ]
    assert "| [two_phase_1](results/two_phase_1) |" in below


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.618, "0.618"), (0.67, "0.67"), (0.5, "0.50"), ((0.5, 0.6), "0.50–0.60"), (None, "–")],
)
def test_said(value: float | tuple[float, float] | None, text: str) -> None:
    assert report.said(value) == text


def test_a_gpu_and_an_adjustment_are_named(tmp_path: Path) -> None:
    keep_made_up(tmp_path / "results", E0_seed40={"logit_adjust": 0.5})
    path = tmp_path / "results/E0_seed40/run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    run["machine"] |= {"device": "Made Up GPU", "precision": "bfloat16, which it multiplies itself"}
    path.write_text(json.dumps(run), encoding="utf-8")
    assert written(tmp_path) == 0
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert cells_of(text, "[E0_seed40]")[2] == "fer7, test, 3,589 rows, logits adjusted by τ 0.5"
    assert cells_of(text, "[E0_seed40]")[6] == cells_of(text, "[E0]")[7] == "2 min, Made Up GPU, bfloat16"
    assert cells_of(text, "[E0]")[0].endswith("cross-entropy, logits adjusted by τ 0.5")


@pytest.mark.parametrize("other", [{"split": "val"}, {"label_set": "fer4"}, {"logit_adjust": 1.0}, {"views": 2}])
def test_no_mean_of_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any]) -> None:
    keep_made_up(tmp_path / "results", E0_seed40={}, E0_seed41=other)
    assert written(tmp_path) == 2
    error = capsys.readouterr().err
    assert "E0_seed40 is scored on fer7, test" in error and "python evaluate.py runs/E0_seed41" in error
    assert error.count("\n") == 1 and not (tmp_path / "RESULTS.md").exists()


@pytest.mark.parametrize("other", [{"split_id": "b"}, {"members": 3}, {"parameters": 7}])
def test_no_mean_of_other_pictures_or_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any]
) -> None:
    keep_made_up(tmp_path / "results", E0_seed40={}, E0_seed41=other)
    assert written(tmp_path) == 2
    ((key, value),) = other.items()
    assert f"E0_seed41 has {key} {value}, E0_seed40 None: they are not one variant" in capsys.readouterr().err


def test_what_stands_beside_the_figures(tmp_path: Path) -> None:
    calibrated = {
        "temperature": 1.25,
        "expected_calibration_error_uncalibrated": 0.0814,
        "expected_calibration_error": 0.0123,
    }
    views = {"tta": "ten_crop", "views": 10, "accuracy_plain": 0.7001, "macro_f1_plain": 0.6002}
    seen = {"rows_seen": 288, "accuracy_unseen": 0.6903, "macro_f1_unseen": 0.5904}
    keep_made_up(tmp_path / "results", E0_seed40={}, E1_seed42=views | seen | calibrated)
    assert written(tmp_path) == 0
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| E1_seed42 | 0.700 / 0.600 | 0.690 / 0.590 (288 fewer) | 0.081 | 0.012 | 1.250 |" in text
    assert "| E0_seed40 | – / –" not in text
    assert cells_of(text, "[E1_seed42]")[2] == "fer7, test, 3,589 rows, mean of 10 views"


def retrained(folder: Path, **settings: Any) -> None:
    """Change the settings that a kept run was trained with."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    run["args"] |= settings
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")


def test_no_mean_of_what_was_trained_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_made_up(tmp_path / "results", mine_seed1={}, mine_seed2={})
    for seed in (1, 2):
        retrained(tmp_path / f"results/mine_seed{seed}", seed=seed, lr=1e-3, val_meta=f"{seed}.parquet")
    assert written(tmp_path) == 0
    retrained(tmp_path / "results/mine_seed2", lr=2e-3)
    assert written(tmp_path) == 2
    assert "mine_seed2 was trained with --lr 0.002, mine_seed1 with 0.001" in capsys.readouterr().err
    retrained(tmp_path / "results/mine_seed2", lr=1e-3, seed=1)
    assert written(tmp_path) == 2
    assert "mine_seed1 and mine_seed2 are one variant with one seed" in capsys.readouterr().err


def test_what_an_older_record_lacks_and_earlier_phases_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_made_up(tmp_path / "results", mine_seed1={}, mine_seed2={"args": {"sampler": "default"}})
    assert written(tmp_path) == 0  # what the first lacks was so then
    retrained(tmp_path / "results/mine_seed2", sampler="balanced")
    assert written(tmp_path) == 2
    assert "mine_seed2 was trained with --sampler balanced, mine_seed1 with default" in capsys.readouterr().err
    retrained(tmp_path / "results/mine_seed2", sampler="default", init="runs/first_seed2/best.pth")
    keep_made_up(tmp_path / "results", first_seed1={}, first_seed2={})
    assert written(tmp_path) == 2
    assert "of mine_seed2 and mine_seed1 one goes on from another kept run" in capsys.readouterr().err
    retrained(tmp_path / "results/mine_seed1", init="runs/first_seed1/best.pth")
    assert written(tmp_path) == 0
    (tmp_path / "results/first_seed2").rename(tmp_path / "results/other_seed2")  # else the two are a group that is refused
    retrained(tmp_path / "results/other_seed2", lr=0.5)
    retrained(tmp_path / "results/mine_seed2", init="runs/other_seed2/best.pth")
    assert written(tmp_path) == 2
    assert "other_seed2 was trained with --lr 0.5, first_seed1 with 0.001" in capsys.readouterr().err


def test_a_run_that_is_refused_is_not_kept(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lightcnn_seed41", "lightcnn_seed42"):
        shutil.copytree(run, tmp_path / "runs" / name)
    retrained(tmp_path / "runs" / "lightcnn_seed42", lr=0.5)
    out = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "RESULTS.md")]
    assert report.main([str(tmp_path / "runs" / "lightcnn_seed41"), *out]) == 0
    before = (tmp_path / "RESULTS.md").read_bytes()
    assert report.main([str(tmp_path / "runs" / "lightcnn_seed42"), *out]) == 2
    assert "they are not one variant" in capsys.readouterr().err
    assert [folder.name for folder in (tmp_path / "results").iterdir() if folder.name != "study"] == ["lightcnn_seed41"]
    assert report.main(out) == 0 and (tmp_path / "RESULTS.md").read_bytes() == before
    kept = {path: path.read_bytes() for path in (tmp_path / "results/lightcnn_seed41").iterdir()}
    retrained(tmp_path / "runs" / "lightcnn_seed41", lr=0.5)
    runs = [str(tmp_path / "runs" / name) for name in ("lightcnn_seed41", "nothing_there")]
    assert report.main([*runs, *out]) == 2  # what was kept of the first before comes back
    assert {path: path.read_bytes() for path in (tmp_path / "results/lightcnn_seed41").iterdir()} == kept
    (tmp_path / "runs/lightcnn_seed41/run.json").write_text("{", encoding="utf-8")
    capsys.readouterr()
    assert report.main([runs[0], *out]) == 2
    assert "lightcnn_seed41 holds a damaged file" in capsys.readouterr().err
    (tmp_path / "results/lightcnn_seed41/metrics.json").unlink()
    assert report.main(out) == 2 and "lacks metrics.json" in capsys.readouterr().err


def test_what_differs_from_the_recipe_is_said(tmp_path: Path) -> None:
    keep_made_up(tmp_path / "results", E2b_seed42={})
    retrained(tmp_path / "results/E2b_seed42", loss="wce", weight_mode="inv_sqrt", val_meta="elsewhere.parquet")
    assert written(tmp_path) == 0
    assert "here with" not in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    retrained(tmp_path / "results/E2b_seed42", weight_mode="effective", batch_size=512)
    assert written(tmp_path) == 0
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    said = cells_of(text, "[E2b]")[0]
    assert said.endswith("(inverse root), here with --weight_mode effective --batch_size 512")


def test_every_seed_has_its_own_adjustment_and_its_scoring_is_shown(tmp_path: Path) -> None:
    keep_made_up(tmp_path / "results", E0_after_seed40={"logit_adjust": 0.5}, E0_after_seed41={"logit_adjust": 0.25})
    path = tmp_path / "results/E0_after_seed40/run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(run | {"scored": "python evaluate.py a --logit_adjust auto"}), encoding="utf-8")
    assert written(tmp_path) == 0
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "logits adjusted by τ 0.25 to 0.5" in cells_of(text, "[E0_after]")[0]
    assert "`, then `python evaluate.py a --logit_adjust auto`" in text
    assert "\npython evaluate.py a --logit_adjust auto\n```" in text


def test_no_path_of_this_machine_in_a_scoring() -> None:
    run = {"command": "python train.py", "args": {}, "scored": "python evaluate.py /tmp/x/runs/a --out /tmp/x/b"}
    assert report.without_machine_paths(run)["scored"] == "python evaluate.py a --out b"


# The study


def test_the_study_is_written_and_shown(tmp_path: Path) -> None:
    keep_made_up(tmp_path / "results", E0_seed40=confused(5), E0_seed41={}, mixup_seed40={})
    assert written(tmp_path) == 0
    study = contents(tmp_path / "results/study")
    assert set(study) == {"study.csv", "study.tex", "study_f1.png", "study_confusion.png"}
    assert study["study.csv"].decode().splitlines()[1].startswith('E0,"light CNN: softmax, cross-entropy",40;41,2,0.500000,')
    assert study["study.tex"].count(b"\\\\") == 3  # the head and two rows
    for name in ("study_f1.png", "study_confusion.png"):
        assert study[name].startswith(b"\x89PNG") and len(study[name]) < 100_000
        assert b"tEXt" not in study[name] and b"Software" not in study[name]
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "[as CSV](results/study/study.csv), [for LaTeX](results/study/study.tex)" in text
    assert "![study f1](results/study/study_f1.png)\n\n![study confusion](results/study/study_confusion.png)\n" in text
    keep_made_up(tmp_path / "later", E0_seed40={})  # as an older scoring wrote it, without counts
    shutil.copytree(tmp_path / "later", tmp_path / "results", dirs_exist_ok=True)
    assert written(tmp_path) == 0
    assert not (tmp_path / "results/study/study_confusion.png").exists()
    assert "study_confusion" not in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


def test_without_a_variant_there_is_no_study(tmp_path: Path) -> None:
    keep_made_up(tmp_path / "results", four_class={"label_set": "fer4"})
    assert written(tmp_path) == 0
    assert not (tmp_path / "results/study").exists()
    (tmp_path / "results/study").mkdir()
    (tmp_path / "results/study/notes.md").write_text("mine", encoding="utf-8")
    assert written(tmp_path) == 0
    assert contents(tmp_path / "results/study") == {"notes.md": b"mine"}
    assert "study" not in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
