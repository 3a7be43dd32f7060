"""Tests of the mean of weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import average
import evaluate
from fer_transform import FERDataset
from models import ModelError, load_checkpoint, save_checkpoint


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
    assert len(record["members"]) == 1 and record["args"] == trained["args"] | {"exp": "mean"}
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


@pytest.mark.parametrize(
    ("reason", "status", "words"),
    [
        (KeyboardInterrupt, 130, "\naverage.py: interrupted\n"),
        (torch.OutOfMemoryError, 2, "average.py: out of memory – give --device cpu\n"),
    ],
)
def test_what_ends_it_is_a_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    reason: type[BaseException],
    status: int,
    words: str,
) -> None:
    def ended(*_: object) -> None:
        raise reason

    monkeypatch.setattr(average, "average", ended)
    assert average.main([str(run), str(run / "last.pth"), "--out", str(tmp_path / "mean")]) == status
    assert capsys.readouterr().err == words and not (tmp_path / "mean").exists()


def test_batchnorm_is_measured_on_the_training_rows(
    trained: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta, out = drawn / "metadata_train.parquet", tmp_path / "measured"
    assert average.main([str(trained), "--train_meta", str(meta), "--out", str(out), "--device", "cpu"]) == 0
    assert f"BatchNorm measured on {meta} – is it better?" in capsys.readouterr().out
    before, after = load_checkpoint(trained), load_checkpoint(out)
    dataset = FERDataset(meta, labels=before.labels, preprocess=before.preprocess)
    images = torch.stack([dataset[row][0] for row in range(len(dataset))])
    seen: dict[str, torch.Tensor] = {}
    for name, layer in after.model.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    with torch.no_grad():
        after.model(images)
    # The first layer's input does not depend on other layers' statistics: its are those of all pictures, as one batch.
    first = next(iter(seen))
    state = after.model.state_dict()
    torch.testing.assert_close(state[f"{first}.running_mean"], seen[first].mean(dim=(0, 2, 3)), rtol=0.02, atol=2e-3)
    torch.testing.assert_close(state[f"{first}.running_var"], seen[first].var(dim=(0, 2, 3)), rtol=0.05, atol=2e-3)
    for key, value in before.model.state_dict().items():
        measured = key.endswith((".running_mean", ".running_var"))
        assert torch.equal(value, state[key]) != measured or key.endswith(".num_batches_tracked"), key
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["command"].startswith("python average.py ") and "scored" not in record
    assert [(member["name"], member["epochs"]) for member in record["members"]] == [(trained.name, 3)]


def test_rows_that_batchnorm_cannot_be_measured_on(
    trained: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "measured"]
    error = error_of(capsys, trained, "--train_meta", drawn / "metadata_val.parquet", *out)
    assert "holds rows of val, wanted is train" in error
    assert "not found" in error_of(capsys, trained, "--train_meta", tmp_path / "none.parquet", *out)
    contents = torch.load(trained / "best.pth", weights_only=True)
    save_checkpoint(tmp_path / "other.pth", contents | {"split_id": "0123"})
    error = error_of(capsys, tmp_path / "other.pth", "--train_meta", drawn / "metadata_train.parquet", *out)
    assert "was trained on split 0123" in error
    dataset, network = FERDataset(drawn / "metadata_train.parquet"), load_checkpoint(trained)
    without: Any = network._replace(model=torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="has no BatchNorm to measure"):
        average.measure(without, dataset, torch.device("cpu"))
    dataset.y_cls = dataset.y_cls[:1]
    with pytest.raises(ModelError, match="one picture has no variance"):
        average.measure(network, dataset, torch.device("cpu"))
    assert not (tmp_path / "measured").exists()


def test_what_has_no_mean_is_refused(run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "mean"]
    assert "two checkpoints or more" in error_of(capsys, run, *out)
    assert "two checkpoints or more" in error_of(capsys, run, run / "best.pth", *out)
    assert "each named once" in error_of(capsys, run, run / "last.pth", run / "best.pth", *out)
    assert "not found" in error_of(capsys, run, tmp_path / "none.pth", *out)
    assert "is an ONNX file – give checkpoints" in error_of(capsys, run, "weights/fernet_votes.onnx.gz", *out)
    for flag in (["--data_root", tmp_path], ["--device", "cpu"]):
        assert "do nothing here – add --train_meta" in error_of(capsys, run, run / "last.pth", *out, *flag)
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
