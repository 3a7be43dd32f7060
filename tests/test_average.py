"""Tests of the mean of weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import average
import evaluate
from models import load_checkpoint, save_checkpoint


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the short training, its last.pth with other weights and another epoch than its best.pth."""
    folder = tmp_path / "a"
    shutil.copytree(trained, folder)
    contents = torch.load(folder / "last.pth", weights_only=True)
    state = {key: value + 0.5 if value.is_floating_point() else value for key, value in contents["state_dict"].items()}
    best = torch.load(folder / "best.pth", weights_only=True)
    save_checkpoint(folder / "best.pth", best | {"epoch": 1})
    save_checkpoint(folder / "last.pth", contents | {"state_dict": state, "epoch": 3})
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    capsys.readouterr()
    assert average.main([str(flag) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("average.py: ") and error.count("\n") == 1
    return error


def test_the_mean_of_two_epochs(run: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mean"
    assert average.main([str(run), str(run / "last.pth"), "--out", str(out)]) == 0
    assert "the mean of 2 checkpoints" in capsys.readouterr().out
    best, last, mean = (load_checkpoint(path) for path in (run / "best.pth", run / "last.pth", out))
    compared = 0
    for key, value in mean.model.state_dict().items():
        if value.is_floating_point():
            first, second = best.model.state_dict()[key], last.model.state_dict()[key]
            torch.testing.assert_close(value, first * 0.5 + second * 0.5, rtol=0, atol=1e-6)
            compared += not torch.equal(first, second)
    assert compared > 10  # running statistics too
    assert mean.labels == best.labels and mean.preprocess == best.preprocess
    kept = ("split_id", "seed", "recipe", "affect_rows", "class_counts", "label_set")
    assert {key: mean.info[key] for key in kept} == {key: best.info[key] for key in kept}
    assert mean.info["exp"] == "mean" and mean.info.get("epoch") is None
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["command"] == f"python average.py {run} {run / 'last.pth'} --out {out}"
    member, trained = record["members"][0], json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert len(record["members"]) == 1 and record["args"] == trained["args"]
    assert (member["name"], member["epoch"], member["epochs"]) == ("a", "1, 3", 3)
    assert member["command"] == trained["command"]
    for name in ("history.jsonl", "training_history.png"):  # once
        assert (out / name).read_bytes() == (run / name).read_bytes()
    # It is scored as any other, and what is made of it keeps its record.
    scored = tmp_path / "scored"
    flags = ["--meta", str(drawn / "metadata_val.parquet"), "--tta", "flip", "--out", str(scored)]
    assert evaluate.main([str(out), *flags]) == 0
    again = json.loads((scored / "run.json").read_text(encoding="utf-8"))
    assert again["members"] == record["members"] and again["scored"].startswith("python evaluate.py ")


def test_what_has_no_mean_is_refused(run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "mean"]
    assert "two checkpoints or more" in error_of(capsys, run, *out)
    assert "two checkpoints or more" in error_of(capsys, run, run / "best.pth", *out)
    assert "each named once" in error_of(capsys, run, run / "last.pth", run / "best.pth", *out)
    assert "not found" in error_of(capsys, run, tmp_path / "none.pth", *out)
    assert "is an ONNX file – give checkpoints" in error_of(capsys, run, "weights/fernet_votes.onnx", *out)
    other = tmp_path / "other.pth"
    contents = torch.load(trained / "best.pth", weights_only=True)
    for key, value in (("split_id", "0123"), ("labels", contents["labels"][::-1])):
        save_checkpoint(other, contents | {key: value})
        assert f"{other} has another {key} than {run / 'best.pth'}" in error_of(capsys, run, other, *out)
    assert not (tmp_path / "mean").exists()
    assert "is there already" in error_of(capsys, run, trained, "--out", run)
    record = (run / "run.json").read_text(encoding="utf-8")
    (run / "run.json").write_text("{", encoding="utf-8")
    assert "run.json is damaged" in error_of(capsys, run, run / "last.pth", *out)
    (run / "run.json").write_text(record, encoding="utf-8")
    assert average.main([str(run), str(run / "last.pth"), "--out", str(tmp_path / "mean")]) == 0  # nothing was left behind
