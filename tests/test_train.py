"""Early stopping; short real runs: what they write, staged freezing, resuming, and what goes wrong."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from faces import Preprocess, read_image

import pytest
import torch
from conftest import error_of, short_training

import evaluate
import metadata_parallel
import models
import settings
import train
from fer_transform import BatchLoader, FERDataset, make_loader
from labels import LABEL_SETS
from losses import build_loss
from metadata_parallel import read_metadata
from models import build_model, load_checkpoint, read_checkpoint, save_checkpoint


def history_of(run: Path) -> list[dict[str, Any]]:
    """The lines of history.jsonl."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history without what a clock put into it; NaN as null."""
    return [{key: None if value != value else value for key, value in line.items() if key != "time_s"} for line in history]


# Early stopping


def line(epoch: int, accuracy: float, rmse: float | None, macro_f1: float = 0.0) -> dict[str, float]:
    """A line of the history as far as early stopping reads it; `rmse` None for a network without that head."""
    affect = {} if rmse is None else {"valence_rmse": rmse - 0.1, "arousal_rmse": rmse + 0.1}
    return {"epoch": epoch, "accuracy": accuracy, "macro_f1": macro_f1} | affect


def stopped_at(rows: list[tuple[float, float | None]], patience: int) -> tuple[int | None, int]:
    """The epoch in which early stopping is due (None: never), and the best epoch by accuracy until then."""
    progress = train.Progress(select="accuracy", patience=patience)
    for epoch, (accuracy, rmse) in enumerate(rows, start=1):
        progress.update(line(epoch, accuracy, rmse))
        if progress.exhausted:
            return epoch, progress.best_epoch
    return None, progress.best_epoch


@pytest.mark.parametrize(
    ("rows", "patience", "expected"),
    [
        # Accuracy stands still from epoch 2 on, RMSE improves until 4: only then do two epochs count.
        ([(0.5, 0.5), (0.6, 0.4), (0.6, 0.39), (0.5, 0.38), (0.6, 0.38), (0.6, 0.4), (0.7, 0.3)], 2, (6, 2)),
        # RMSE gets worse, accuracy improves.
        ([(0.5, 0.5), (0.6, 0.6), (0.7, 0.7), (0.7, 0.8), (0.8, 0.9)], 2, (None, 5)),
        # Without the head accuracy alone counts.
        ([(0.5, None), (0.4, None), (0.5, None), (0.6, None), (0.6, None)], 3, (None, 4)),
        ([(0.5, None), (0.4, None), (0.5, None), (0.5, None), (0.6, None)], 3, (4, 1)),
        # The mean of the two counts, and undefined figures are no improvement.
        ([(0.5, 0.5), (0.5, math.nan), (0.5, math.nan)], 2, (3, 1)),
        ([(0.5, 0.5)] * 50, 0, (None, 1)),
        # The first of equal epochs is the best.
        ([(0.5, 0.5), (0.7, 0.5), (0.7, 0.4)], 15, (None, 2)),
    ],
)
def test_early_stopping(rows: list[tuple[float, float | None]], patience: int, expected: tuple[int | None, int]) -> None:
    assert stopped_at(rows, patience) == expected


def test_the_best_epoch_goes_by_the_selected_score() -> None:
    progress = train.Progress(select="macro_f1", patience=2)
    chosen = [progress.update(line(*row)) for row in [(1, 0.7, None, 0.3), (2, 0.6, None, 0.5), (3, 0.65, None, 0.4)]]
    assert chosen == [True, True, False]
    assert progress.best_epoch == 2 and progress.exhausted  # accuracy, by which it stops, was best in epoch 1


def test_of_the_validation_losses_the_smallest_chooses_the_epoch() -> None:
    progress = train.Progress(select="val_loss", patience=0)
    rows = [(1, 0.7, 0.9), (2, 0.6, 0.8), (3, 0.8, math.nan), (4, 0.8, 0.8), (5, 0.5, 0.75), (6, 0.9, 0.76)]
    chosen = [progress.update(line(epoch, accuracy, None) | {"val_loss": loss}) for epoch, accuracy, loss in rows]
    assert chosen == [True, True, False, False, True, False] and progress.best_epoch == 5


# A run


def test_a_run_writes_its_folder(trained: Path, drawn: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"best.pth", "last.pth", "history.jsonl", "run.json", "training_history.png"} <= names
    assert len(list(trained.glob("events.out.tfevents.*"))) == 1
    assert not [name for name in names if name.endswith(".tmp")]
    assert read_image(trained / "training_history.png").std() > 10
    copy, best = read_checkpoint(trained.parent / "copy.pth"), read_checkpoint(trained / "best.pth")
    assert all(torch.equal(value, best["state_dict"][key]) for key, value in copy.pop("state_dict").items())
    assert repr(copy) == repr({key: value for key, value in best.items() if key != "state_dict"})  # NaN is not itself
    run = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert run["command"].startswith("python train.py --recipe demo --epochs 3 ")
    assert run["args"]["batch_size"] == 32 and run["args"]["recipe"] == "demo" and run["args"]["lr"] == 1e-3
    assert run["versions"]["torch"] == str(torch.__version__) and run["machine"]["device"] == "cpu"
    assert run["machine"]["precision"] == "float32, as asked (--no-amp)"


def test_history_and_checkpoints_agree(trained: Path, drawn: Path) -> None:
    history = history_of(trained)
    _, info = read_metadata(drawn / "metadata_train.parquet")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row["lr"] for row in history] == pytest.approx([1e-3, 0.75e-3, 0.25e-3])
    for row in history:
        assert row["train_loss"] == pytest.approx(row["train_loss_cls"] + 0.5 * row["train_loss_reg"], rel=1e-6)
        assert 0 <= row["train_accuracy"] <= 1 and row["train_loss_reg"] > 0
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    accuracies = [row["accuracy"] for row in history]
    best = load_checkpoint(trained / "best.pth")
    assert best.info["epoch"] == 1 + accuracies.index(max(accuracies))
    assert untimed([best.info["metrics"]]) == untimed([history[best.info["epoch"] - 1]])
    assert best.labels is LABEL_SETS["affectnet8"] and best.preprocess.size_px == 24
    assert best.info["split_id"] == info["split_id"] and best.info["exp"] == "short" and best.info["seed"] == 3
    last = read_checkpoint(trained / "last.pth")
    assert last["epoch"] == 3 and len(last["history"]) == 3 and "optimizer" in last
    assert "optimizer" not in best.info and "args" not in best.info  # slim


def test_training_and_evaluation_cannot_disagree(
    trained: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "write_pictures", lambda *_, **__: None)
    for name in ("best.pth", "last.pth"):
        out = tmp_path / name
        assert evaluate.main([str(trained / name), "--meta", str(drawn / "metadata_val.parquet"), "--out", str(out)]) == 0
        scored = json.loads((out / "metrics_val.json").read_text(encoding="utf-8"))
        row = history_of(trained)[scored["epoch"] - 1]
        shared = set(row) & set(scored) - {"epoch"}
        assert {"accuracy", "macro_f1", "f1_happy", "roc_auc_macro", "valence_ccc", "arousal_rmse"} <= shared
        assert {key: row[key] for key in shared} == {key: scored[key] for key in shared}  # to the last digit


def test_the_curves_are_in_tensorboard(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained)).Reload()
    curves = {
        "val/accuracy": "accuracy", "train/loss": "train_loss", "rate/lr": "lr", "valence/ccc": "valence_ccc",
        "val/loss": "val_loss", "f1/happy": "f1_happy",
    }  # fmt: skip
    for name, key in curves.items():
        assert [event.value for event in board.Scalars(name)] == pytest.approx([row[key] for row in history_of(trained)])
    groups = {name.split("/")[0] for name in board.Tags()["scalars"]}
    assert groups == {"train", "val", "rate", "f1", "precision", "recall", "valence", "arousal"}
    assert not [name for name in board.Tags()["scalars"] if "baseline" in name or "rows" in name]


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Ctrl-C after the training pass of an epoch, before its validation."""
    validate, passes = train.validate, [0]

    def interrupted(*args: Any, **options: Any) -> dict[str, float]:
        passes[0] += 1
        if passes[0] == epoch:
            raise KeyboardInterrupt
        return validate(*args, **options)

    monkeypatch.setattr(train, "validate", interrupted)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    trained: Path, drawn: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*short_training(drawn, tmp_path), "--workers", workers, "--exp", "cut"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=3)
        assert train.main(flags) == 130
    advice = capsys.readouterr().err
    assert f"--resume {tmp_path / 'cut' / 'last.pth'}" in advice and "Traceback" not in advice
    assert load_checkpoint(tmp_path / "cut" / "last.pth").info["epoch"] == 2  # usable as it is
    assert len(history_of(tmp_path / "cut")) == 2
    torch.manual_seed(99)  # what the session drew before must not matter
    assert train.main(["--resume", "--runs", str(tmp_path)]) == 0
    assert "resumed after epoch 2" in capsys.readouterr().out
    assert untimed(history_of(tmp_path / "cut")) == untimed(history_of(trained))
    for name in ("best.pth", "last.pth"):
        whole, resumed = read_checkpoint(trained / name), read_checkpoint(tmp_path / "cut" / name)
        assert whole["epoch"] == resumed["epoch"]
        assert whole["state_dict"].keys() == resumed["state_dict"].keys()
        assert all(torch.equal(value, resumed["state_dict"][key]) for key, value in whole["state_dict"].items())
    moments = [read_checkpoint(run / "last.pth")["optimizer"]["state"] for run in (trained, tmp_path / "cut")]
    for index, state in moments[0].items():
        assert all(torch.equal(value, moments[1][index][key]) for key, value in state.items())
    run = json.loads((tmp_path / "cut" / "run.json").read_text(encoding="utf-8"))
    assert run["command"].endswith("--exp cut") and run["resumed"] == [f"python train.py --resume --runs {tmp_path}"]


def test_a_running_mean_is_resumed_as_well(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--ema", "0.9", "--schedule", "plateau", "--plateau_patience", "0", "--mixup", "0.3"]
    flags = [*short_training(drawn, tmp_path), *options, "--sampler", "balanced"]
    assert train.main([*flags, "--exp", "whole"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=3)
        assert train.main([*flags, "--exp", "cut"]) == 130
    assert train.main(["--resume", str(tmp_path / "cut")]) == 0
    assert untimed(history_of(tmp_path / "cut")) == untimed(history_of(tmp_path / "whole"))
    whole, resumed = (read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "cut"))
    for key in ("state_dict", "unaveraged"):
        assert all(torch.equal(value, resumed[key][name]) for name, value in whole[key].items())
    assert not torch.equal(whole["state_dict"]["classifier.weight"], whole["unaveraged"]["classifier.weight"])


def test_the_running_mean_by_hand(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean starts from the weights of the first step; its decay is 0.6, in the first steps less: (1 + n) / (10 + n)."""
    update, seen = train.AveragedModel.update_parameters, []

    def watched(average: Any, model: Any) -> None:
        update(average, model)
        seen.append((model.classifier.bias.detach().clone(), average.module.classifier.bias.detach().clone()))

    monkeypatch.setattr(train.AveragedModel, "update_parameters", watched)
    assert train.main([*short_training(drawn, tmp_path), "--batch_size", "16", "--ema", "0.6", "--exp", "mean"]) == 0
    expected = seen[0][0]
    for steps, (weights, mean) in enumerate(seen[1:], start=1):
        decay = min(0.6, (1 + steps) / (10 + steps))
        expected = decay * expected + (1 - decay) * weights
        torch.testing.assert_close(mean, expected)
    assert len(seen) > 13  # so that both decays occur
    assert torch.equal(read_checkpoint(tmp_path / "mean" / "last.pth")["state_dict"]["classifier.bias"], seen[-1][1])


def test_interrupted_before_the_first_epoch_ends(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, epoch=1)
    assert train.main([*short_training(drawn, tmp_path), "--exp", "cut"]) == 130
    assert "no epoch was finished" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "last.pth").exists()


def test_a_folder_with_another_network_or_its_figures_is_not_trained_into(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, holds in (("mean", "best.pth"), ("scored", "metrics.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / holds).write_bytes(b"")
        flags = [*short_training(drawn, tmp_path), "--exp", name]
        assert f"{name} holds another network or its figures" in error_of(capsys, *flags)
        assert [path.name for path in (tmp_path / name).iterdir()] == [holds]


def test_names_of_runs(drawn: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "last.pth").read_bytes()
    error = error_of(capsys, *short_training(drawn, trained.parent), "--exp", "short")
    assert "short is there already" in error and "--resume" in error
    assert (trained / "last.pth").read_bytes() == before
    for expected in ("demo_seed3", "demo_seed3-2"):
        assert train.main([*short_training(drawn, tmp_path), "--epochs", "1"]) == 0
        assert (tmp_path / expected / "best.pth").is_file()
        assert load_checkpoint(tmp_path / expected / "best.pth").info["exp"] == expected


def test_early_stopping_ends_a_run(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies = iter([0.2, 0.4, 0.3, 0.4, 0.9])

    def validate(*_: Any, **__: Any) -> dict[str, float]:
        accuracy = next(accuracies)
        affect = dict.fromkeys(("valence_rmse", "arousal_rmse", "valence_ccc", "arousal_ccc"), 0.5)
        return {"val_loss": 1.0, "accuracy": accuracy, "macro_f1": accuracy} | affect

    monkeypatch.setattr(train, "validate", validate)
    assert train.main([*short_training(drawn, tmp_path), "--epochs", "9", "--patience", "2", "--exp", "stop"]) == 0
    output = capsys.readouterr().out
    assert "stopped: neither accuracy nor RMSE has improved for 2 epochs" in output and "best epoch 2" in output
    assert [row["accuracy"] for row in history_of(tmp_path / "stop")] == [0.2, 0.4, 0.3, 0.4]
    assert load_checkpoint(tmp_path / "stop" / "best.pth").info["epoch"] == 2
    assert "--patience 0" in error_of(capsys, "--resume", str(tmp_path / "stop"))
    assert train.main(["--resume", str(tmp_path / "stop"), "--patience", "0", "--epochs", "5"]) == 0
    assert load_checkpoint(tmp_path / "stop" / "best.pth").info["epoch"] == 5


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_staged_freezing_in_a_real_run(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """Which children of the backbone moved in which epoch, parameters and BatchNorm statistics apart."""
    one_epoch = train.train_one_epoch
    moved: list[tuple[set[str], set[str]]] = []

    def watched(model: Any, *args: Any, **options: Any) -> dict[str, float]:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        means = one_epoch(model, *args, **options)
        changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
        buffers = {name for name, _ in model.named_buffers()}
        moved.append(
            (
                {key.removeprefix("backbone.").split(".")[0] for key in changed if key not in buffers},
                {key.removeprefix("backbone.").split(".")[0] for key in changed if key in buffers},
            )
        )
        return means

    monkeypatch.setattr(train, "train_one_epoch", watched)
    flags = ["--recipe", "resnet18", "--weights", "none", "--freeze_epochs", "1", "--unfreeze_all_at", "3"]
    flags += ["--exp", "staged", "--optimizer", optimizer]
    data = short_training(drawn, tmp_path)[2:]
    assert train.main([*flags, *data, "--img_size", "32"]) == 0
    heads = {"classifier", "regressor"}
    assert moved == [
        ({"layer4"} | heads, {"layer4"}),
        ({"layer3", "layer4"} | heads, {"layer3", "layer4"}),
        (
            {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"} | heads,
            {"bn1", "layer1", "layer2", "layer3", "layer4"},
        ),
    ]


def test_without_affect_labels_and_with_another_label_set(
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*short_training(pixels, tmp_path), "--epochs", "1", "--label_set", "fer4", "--exp", "four", "--loss", "wce"]
    assert train.main([*flags, "--amp", "--weight_mode", "inv"]) == 0  # in bfloat16
    output = capsys.readouterr().out
    assert "no training row has them" in output and "class weights: angry 0." in output and "rows of fer4" in output
    (row,) = history_of(tmp_path / "four")
    assert row["train_loss_reg"] == 0 and row["valence_rmse"] is None and row["arousal_ccc"] is None
    best = load_checkpoint(tmp_path / "four" / "best.pth")
    assert best.labels is LABEL_SETS["fer4"] and best.info["affect_rows"] == 0
    assert {value.dtype for value in best.model.parameters()} == {torch.float32}


# What goes wrong


def test_rows_that_are_trained_on_validate_nothing(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("1", "2"):
        flags = ["--data", str(drawn / "data"), "--out", str(tmp_path / seed), "--seed", seed, "--workers", "1"]
        assert metadata_parallel.main(flags) == 0
    flags = short_training(tmp_path / "1", tmp_path / "runs")
    other = tmp_path / "2" / "metadata_val.parquet"
    flags[flags.index("--val_meta") + 1] = str(other)
    trained_on = set(read_metadata(tmp_path / "1" / "metadata_train.parquet")[0]["path"])
    shared = len(trained_on & set(read_metadata(other)[0]["path"]))
    assert shared > 0 and f"{shared} validation rows of {other} are training rows of" in error_of(capsys, *flags)
    flags = [*short_training(tmp_path / "1", tmp_path / "runs"), "--score_test", "--test_meta"]
    assert "holds rows of val, wanted is test" in error_of(capsys, *flags, str(tmp_path / "1" / "metadata_val.parquet"))
    assert not (tmp_path / "runs").exists()


def test_a_test_split_that_is_of_another_index_is_refused_beforehand(
    drawn: Path, pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*short_training(drawn, tmp_path), "--score_test", "--test_meta", str(pixels / "metadata_test.parquet")]
    assert "is of another split than" in error_of(capsys, *flags) and not list(tmp_path.iterdir())
    flags[-1] = str(drawn / "metadata_tset.parquet")
    assert "metadata_tset.parquet" in error_of(capsys, *flags) and not list(tmp_path.iterdir())


def test_a_network_of_another_split_may_know_the_validation_rows(
    trained: Path, pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*short_training(pixels, tmp_path), "--epochs", "1", "--init", str(trained)]
    assert train.main(flags) == 0
    assert "best.pth was trained on another split, which may hold validation rows" in capsys.readouterr().out


def test_classes_that_the_data_do_not_have_are_not_trained(
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*short_training(pixels, tmp_path), "--label_set", "affectnet8"]
    assert "has fer7 and nothing for contempt" in error_of(capsys, *flags) and not list(tmp_path.iterdir())


def test_a_folder_is_no_file_for_the_best_network(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*short_training(drawn, tmp_path), "--save_path", str(tmp_path)]
    assert f"is a folder – give a file in it: {tmp_path}/best.pth" in error_of(capsys, *flags)


def test_without_votes_nobody_learns_the_classes_of_ferplus(
    drawn: Path, pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (drawn, pixels):
        error = error_of(capsys, *short_training(folder, tmp_path), "--label_set", "ferplus8")
        assert "has no FER+ votes – index FER2013 with --ferplus" in error


def test_copies_of_one_training_are_refused(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun would train copies of one network" in error_of(capsys, *short_training(drawn, tmp_path))


def test_missing_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "metadata_train.parquet not found" in error_of(capsys, "--model", "lightcnn")
    assert list(tmp_path.iterdir()) == []


def test_offline_weights(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "resnet18", *short_training(drawn, tmp_path / "runs")[2:]]
    assert "--weights none" in error_of(capsys, *flags)
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_no_number(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "smaller --lr" in error_of(capsys, *short_training(drawn, tmp_path), "--lr", "1e30", "--exp", "nan")


def test_unknown_device(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "device tpu is not available" in error_of(capsys, *short_training(drawn, tmp_path), "--device", "tpu")


def test_what_cannot_be_resumed(
    drawn: Path, pixels: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no run in" in error_of(capsys, "--resume", "--runs", str(tmp_path))
    assert "give the run's last.pth" in error_of(capsys, "--resume", str(trained / "best.pth"))
    assert "not found" in error_of(capsys, "--resume", str(tmp_path / "no.pth"))
    run = tmp_path / "copied"
    shutil.copytree(trained, run)
    for flags in (
        ["--optimizer", "sgd"],
        ["--no-affect"],
        ["--model", "resnet18"],
        ["--exp", "other"],
        ["--recipe", "lightcnn"],
        ["--select", "macro_f1"],
        ["--img_size", "48"],
        ["--init", "other.pth"],
        ["--seed", "4"],
    ):
        assert "cannot change" in error_of(capsys, "--resume", str(run), *flags)
    other = ["--train_meta", str(pixels / "metadata_train.parquet"), "--val_meta", str(pixels / "metadata_val.parquet")]
    assert "split" in error_of(capsys, "--resume", str(run), *other)
    assert "last.pth and cannot change" in error_of(capsys, "--resume", str(run), "--select", "val_loss")
    weights = (run / "best.pth").read_bytes()
    (run / "best.pth").unlink()
    assert "is not there – put it beside last.pth" in error_of(capsys, "--resume", str(run), "--epochs", "4")
    (run / "best.pth").write_bytes(weights)
    (run / "run.json").write_text("{", encoding="utf-8")
    assert "run.json is damaged" in error_of(capsys, "--resume", str(run), "--epochs", "4")
    assert (run / "last.pth").read_bytes() == (trained / "last.pth").read_bytes()


def test_freezing_flags_that_would_do_nothing_are_refused(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--train_meta", str(drawn / "metadata_train.parquet"), "--val_meta", str(drawn / "metadata_val.parquet")]
    assert train.main(["--model", "lightcnn", "--freeze_epochs", "1", *common]) == 2
    assert "no stages to freeze" in capsys.readouterr().err
    assert train.main(["--model", "resnet18", "--weights", "none", "--unfreeze_all_at", "2", *common]) == 2
    assert "nothing is frozen" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_only_training_rows_are_trained_and_only_validation_rows_choose(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = short_training(drawn, tmp_path / "runs")
    everything, val = str(drawn / "metadata_all.parquet"), str(drawn / "metadata_val.parquet")
    assert "the training parquet holds rows of val" in error_of(capsys, *flags, "--train_meta", everything)
    assert "the validation parquet holds rows of train" in error_of(capsys, *flags, "--val_meta", everything)
    assert "the training parquet holds rows of val" in error_of(capsys, *flags, "--train_meta", val)
    assert not (tmp_path / "runs").exists()


def test_a_better_network_does_not_keep_the_figures_of_the_last_one(drawn: Path, tmp_path: Path) -> None:
    flags = [*short_training(drawn, tmp_path), "--exp", "a"]
    assert train.main([*flags, "--epochs", "1"]) == 0
    (tmp_path / "a" / "metrics_val.json").write_text("{}", encoding="utf-8")
    assert train.main(["--resume", str(tmp_path / "a"), "--epochs", "4"]) == 0
    assert read_checkpoint(tmp_path / "a" / "best.pth")["epoch"] > 1  # else this shows nothing
    assert not (tmp_path / "a" / "metrics_val.json").exists()


def test_epochs_that_compare_by_the_loss_have_one_loss(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*short_training(drawn, tmp_path), "--loss", "wce", "--exp", "a", "--epochs", "1"]
    for more in (["--select", "val_loss"], ["--schedule", "plateau"]):
        error = error_of(capsys, *flags, "--drw_epoch", "1", *more)
        assert f"{' '.join(more)}: the validation loss is another one from --drw_epoch on" in error
    assert train.main([*flags, "--select", "val_loss"]) == 0
    resumed = ["--resume", str(tmp_path / "a"), "--epochs", "2"]
    assert "--label_smoothing is 0.0 in" in error_of(capsys, *resumed, "--label_smoothing", "0.1")
    assert train.main(resumed) == 0


def test_a_finished_run_is_not_resumed(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*short_training(drawn, tmp_path), "--exp", "a", "--epochs", "1"]) == 0
    assert "larger --epochs" in error_of(capsys, "--resume", str(tmp_path / "a"))


# The documented systems


def test_the_larger_share_of_a_mixture() -> None:
    assert train.larger_share(0.0) == 1.0
    torch.manual_seed(0)
    shares = [train.larger_share(1.0) for _ in range(2000)]
    assert all(0.5 <= share <= 1.0 for share in shares)
    assert sum(shares) / 2000 == pytest.approx(0.75, abs=0.01)  # Beta(1, 1) is uniform


def test_every_option_of_the_loss_trains(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One epoch each; the options reach the history or the log, and ArcFace's checkpoint its head."""
    flags = [*short_training(drawn, tmp_path), "--epochs", "1"]
    variants = {
        "arcface": "--head arcface --arc_s 20 --arc_m 0.3",
        "ldam": "--head cosine --loss ldam",
        "focal": "--loss focal --focal_gamma 1 --weight_mode effective --beta 0.99",
        "adjusted": "--loss logit_adjusted --tau 0.5 --sampler balanced",
        "cutmix": "--cutmix 0.4",
        "sam": "--sam 0.05",
        "mixup": "--mixup 0.4 --reg_loss ccc+mse --backbone_lr 1e-4",
    }
    for exp, words in variants.items():
        assert train.main([*flags, "--exp", exp, *words.split()]) == 0, exp
    losses = {exp: history_of(tmp_path / exp)[0]["train_loss"] for exp in variants}
    assert len(set(losses.values())) == len(variants) and all(math.isfinite(value) for value in losses.values())
    best = load_checkpoint(tmp_path / "arcface" / "best.pth")
    assert best.model.classifier.scale == 20.0 and best.info["model_args"]["head"] == "arcface"
    counts = best.info["class_counts"]
    assert sum(counts.values()) == len(read_metadata(drawn / "metadata_train.parquet")[0])
    groups = read_checkpoint(tmp_path / "mixup" / "last.pth")["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 1e-3])


def test_a_plateau_lowers_the_rate_of_the_next_epochs(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 1.1, 1.2, 0.5])
    monkeypatch.setattr(train, "validate", lambda *_, **__: {"val_loss": next(losses), "accuracy": 0.5, "macro_f1": 0.5})
    flags = [*short_training(drawn, tmp_path), "--epochs", "4", "--schedule", "plateau", "--plateau_patience", "0"]
    assert train.main([*flags, "--gamma", "0.5", "--exp", "plateau"]) == 0
    assert [row["lr"] for row in history_of(tmp_path / "plateau")] == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4])


def test_the_balanced_sampler_orders_the_training(drawn: Path, tmp_path: Path) -> None:
    args = settings.parse_args([*short_training(drawn, tmp_path), "--sampler", "balanced"])
    dataset = FERDataset(drawn / "metadata_train.parquet")
    order = [list(train.prepare_order(args, dataset, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)]
    assert order[0] == order[1] != order[2] and len(order[0]) == len(dataset) > len(set(order[0]))  # with replacement
    args.sampler = "default"
    assert sorted(train.prepare_order(args, dataset, torch.Generator())) == list(range(len(dataset)))


class Brightness(torch.nn.Module):
    """Logits (b, −b), affect (b, b) and votes from the brightness b of a picture; `seen` are the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> models.Output:
        self.seen.append(images)
        rows = images.mean(dim=(1, 2, 3))
        logits = torch.stack([rows, -rows], dim=1) * self.scale
        return models.Output(logits, torch.stack([rows, rows], dim=1), logits.repeat(1, 4))


def one_epoch(network: Any, batches: Any, criterion: Any, *, lr: float, **options: Any) -> dict[str, float]:
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    options = {
        "grad_clip": None,
        "mixup": 0.0,
        "cutmix": 0.0,
        "sam": 0.0,
        "teacher": None,
        "average": None,
        "label": "test",
    } | options
    scaler, device = torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu")
    return train.train_one_epoch(
        network, batches, criterion, optimizer, scaler, device=device, dtype=torch.float32, **options
    )


def test_the_figures_of_an_epoch_are_means_over_its_rows() -> None:
    """45 batches of one or two rows, fetched from the device in three parts; at a rate of 0 the network stays as it is."""
    generator = torch.Generator().manual_seed(1)
    brightness, y_cls = torch.randn(67, generator=generator), torch.randint(2, (67,), generator=generator)
    rows = torch.arange(67).split([1, 2] * 22 + [1])
    images = brightness[:, None, None, None].expand(67, 1, 2, 2)
    batches: Any = [(images[part], y_cls[part], torch.full((len(part), 2), math.nan), {}) for part in rows]
    means = one_epoch(Brightness(), batches, build_loss("ce", counts=torch.ones(2), reg_weight=0.5), lr=0.0)
    logits = torch.stack([brightness, -brightness], dim=1)
    assert means["train_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, y_cls).item(), rel=1e-5)
    assert means["train_accuracy"] == pytest.approx((logits.argmax(dim=1) == y_cls).double().mean().item())
    assert 0.3 < means["train_accuracy"] < 0.7 and len(batches) > 2 * train.FETCHED_EVERY


def test_sharpness_aware_minimisation_descends_by_the_gradient_uphill() -> None:
    """Of brightness 1 and class 1 the loss at scale s is log(1 + exp(2 s)), its gradient 2 / (1 + exp(−2 s))."""
    batch: Any = (torch.ones(2, 1, 4, 4), torch.tensor([1, 1]), torch.full((2, 2), math.nan), {})
    network = Brightness()
    means = one_epoch(network, [batch], build_loss("ce", counts=torch.ones(2), reg_weight=0.0), lr=0.5, sam=0.3)
    assert network.scale.item() == pytest.approx(1.0 - 0.5 * 2 / (1 + math.exp(-2 * 1.3)), rel=1e-5)
    assert means["train_loss"] == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)  # of the weights as they are


def test_uphill_the_weights_are_moved_and_the_statistics_at_rest() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    pictures = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    network(pictures).square().sum().backward()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    with train.uphill(network, 0.5):
        moves = [now - before[name] for name, now in network.named_parameters()]
        network(pictures + 1.0)
    assert torch.cat([move.flatten() for move in moves]).norm().item() == pytest.approx(0.5, rel=1e-4)
    along = torch.nn.functional.cosine_similarity(
        torch.cat([move.flatten() for move in moves]), torch.cat([gradient.flatten() for gradient in gradients]), dim=0
    )
    assert along.item() == pytest.approx(1.0, abs=1e-5)
    after = network.state_dict()
    assert all(torch.equal(after[name], kept) for name, kept in before.items())
    with train.uphill(network, 0.5):
        network(pictures * math.inf)  # as in float16
    assert all(torch.equal(network.state_dict()[name], kept) for name, kept in before.items())
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    with train.uphill(network, 0.5):
        assert all(torch.equal(now, before[name]) for name, now in network.named_parameters())
    network.eval()(pictures)
    assert network[1].track_running_stats


def test_gradients_are_clipped() -> None:
    batch: Any = (torch.ones(2, 1, 4, 4), torch.tensor([1, 1]), torch.full((2, 2), math.nan), {})
    criterion = build_loss("ce", counts=torch.ones(2), reg_weight=0.5)
    moved = []
    for grad_clip in (None, 1e-3):
        network = Brightness()
        one_epoch(network, [batch], criterion, lr=1.0, grad_clip=grad_clip)
        moved.append(abs(network.scale.item() - 1.0))
    assert moved[0] > 0.1 and moved[1] == pytest.approx(1e-3, rel=0.01)


def test_validation_has_the_whole_loss_and_the_votes(drawn: Path, voted: Path) -> None:
    torch.manual_seed(0)
    device, preprocess = torch.device("cpu"), Preprocess(24, 1, (0.5,), (0.25,))
    dataset = FERDataset(drawn / "metadata_val.parquet", preprocess=preprocess)
    model = build_model("lightcnn", classes=8, affect=True, preprocess=preprocess).eval()
    criterion = build_loss("ce", counts=torch.ones(8), reg_weight=0.5)
    loader = make_loader(dataset, batch_size=64, workers=0, device=device)
    found = train.validate(model, loader, criterion, device=device, label="test")
    with torch.inference_mode():
        output = model(torch.stack([dataset[row][0] for row in range(len(dataset))]))
    parts = criterion(output.logits, output.affect, dataset.y_cls, dataset.y_reg)
    assert found["val_loss"] == pytest.approx(parts.total.item(), rel=1e-5) and 0.5 * parts.affect.item() > 0.01
    assert found["accuracy"] == pytest.approx((output.logits.argmax(dim=1) == dataset.y_cls).double().mean().item())

    rows = FERDataset(voted / "metadata_val.parquet", preprocess=preprocess)
    two = build_model("fernet", classes=7, affect=False, preprocess=preprocess, width=8, votes=True).eval()
    torch.nn.init.normal_(two.votes.weight, std=5.0)  # type: ignore[union-attr, arg-type]
    loader = make_loader(rows, batch_size=64, workers=0, device=device)
    criterion = build_loss("ce", counts=torch.ones(7), reg_weight=0.5)
    found = train.validate(two, loader, criterion, device=device, label="test")
    with torch.inference_mode():
        said = two(torch.stack([rows[row][0] for row in range(len(rows))])).votes.argmax(dim=1).tolist()
    won = rows.majority()
    assert won is not None and (won < 0).any()  # rows without a majority do not count
    pairs = [(mine, theirs) for mine, theirs in zip(said, won.tolist(), strict=True) if theirs >= 0]
    assert found["ferplus8_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_the_last_line_tells_of_the_best_epoch(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([(0.3, 0.1), (0.4, 0.2), (0.2, 0.3)])

    def validate(*_: Any, **__: Any) -> dict[str, float]:
        accuracy, macro_f1 = next(scores)
        return {"val_loss": 1.0, "accuracy": accuracy, "macro_f1": macro_f1}

    monkeypatch.setattr(train, "validate", validate)
    assert train.main([*short_training(drawn, tmp_path), "--exp", "a"]) == 0
    said = capsys.readouterr().out
    assert "best epoch 2 by validation accuracy: accuracy 0.4000, macro F1 0.2000; " in said


@pytest.mark.parametrize("live", [False, True])
def test_mixup_blends_pictures_and_both_labels(monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    """One step with a share of 0.7 and the two rows swapped; one of the four affect labels is missing. What a network says
    of the mixtures is of their rows, in whatever order these were mixed."""
    monkeypatch.setattr(train, "larger_share", lambda alpha: 0.7)
    monkeypatch.setattr(torch, "randperm", lambda count: torch.tensor([1, 0]))
    images = torch.stack([torch.full((1, 4, 4), 1.0), torch.full((1, 4, 4), -2.0)])
    y_cls, y_reg = torch.tensor([0, 1]), torch.tensor([[0.5, math.nan], [-0.5, 0.25]])
    teacher, votes = torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.full((2, 8), math.nan)
    votes[0] = torch.tensor([0.5, 0.25, 0.25, *[0.0] * 5])  # the second row has none
    criterion = build_loss("ce", counts=torch.ones(2), reg_weight=0.5, votes_weight=1.0, teacher_weight=0.5)
    network = Brightness()
    soft, asked = {"votes": votes} | ({} if live else {"teacher": teacher}), []

    def answer(images: torch.Tensor) -> dict[str, torch.Tensor]:
        asked.append(images)
        return {"teacher": teacher}

    batch = (images, y_cls, y_reg, soft)
    means = one_epoch(network, [batch], criterion, lr=0.1, mixup=1.0, teacher=answer if live else None)
    assert not live or torch.equal(asked[0], network.seen[0])
    blended = torch.tensor([0.7 - 0.6, 0.3 - 1.4])
    torch.testing.assert_close(network.seen[0].mean(dim=(1, 2, 3)), blended)
    logits, affect = torch.stack([blended, -blended], dim=1), torch.stack([blended, blended], dim=1)
    first, second = (
        criterion(
            logits,
            affect,
            y_cls[rows],
            y_reg[rows],
            logits.repeat(1, 4),
            {"votes": votes[rows], "teacher": teacher if live else teacher[rows]},
        )
        for rows in (torch.tensor([0, 1]), torch.tensor([1, 0]))
    )
    assert first.votes.item() != second.votes.item()
    assert means["train_loss"] == pytest.approx((0.7 * first.total + 0.3 * second.total).item(), rel=1e-5)
    assert math.isfinite(means["train_loss_reg"]) and network.scale.isfinite()


def test_cutmix_pastes_a_rectangle_of_the_share_that_it_says() -> None:
    torch.manual_seed(0)
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 10, 14)
    covered = torch.zeros(10, 14)
    for _ in range(300):
        mixed, share, other = train.mix(images, mixup=0.0, cutmix=1.0)
        assert other is not None and 0.5 <= share <= 1.0
        foreign = mixed != images
        expected = torch.where(foreign, images[other], images)
        assert torch.equal(mixed, expected)
        moved = next((row for row in range(6) if other[row] != row), None)
        if moved is None or share == 1.0:
            continue
        rows, columns = (foreign[moved, 0].any(dim=axis).nonzero().flatten() for axis in (1, 0))
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert foreign[moved, 0].sum() == area == round((1 - share) * 140)
        covered += foreign[moved, 0]
    assert covered.min() > 0 and images.eq(torch.arange(6.0).reshape(6, 1, 1, 1)).all()


def test_mixup_and_cutmix_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count).flip(0))
    torch.manual_seed(0)
    images = torch.rand(4, 1, 24, 24)
    pasted = [bool((train.mix(images, mixup=5.0, cutmix=5.0)[0] == images).any()) for _ in range(200)]
    assert 70 < sum(pasted) < 130
    same, share, other = train.mix(images, mixup=0.0, cutmix=0.0)
    assert same is images and share == 1.0 and other is None


def test_a_run_made_before_a_setting_existed_is_resumed(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree(trained, run)
    contents = torch.load(run / "last.pth", weights_only=True)
    for name in ("head", "ema", "mixup", "sampler", "backbone_lr", "init"):
        del contents["args"][name]
    torch.save(contents, run / "last.pth")
    assert train.main(["--resume", str(run), "--epochs", "4"]) == 0
    assert len(history_of(run)) == 4


def test_rates_and_decay_may_change_on_resuming(drawn: Path, tmp_path: Path) -> None:
    flags = [*short_training(drawn, tmp_path), "--backbone_lr", "1e-4", "--schedule", "constant", "--epochs", "1"]
    assert train.main([*flags, "--exp", "rates"]) == 0
    more = ["--epochs", "2", "--lr", "4e-3", "--backbone_lr", "1e-3", "--weight_decay", "0.25"]
    assert train.main(["--resume", str(tmp_path / "rates"), *more]) == 0
    groups = read_checkpoint(tmp_path / "rates" / "last.pth")["optimizer"]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.25), (4e-3, 0.25)]


def test_a_complete_run_without_its_picture_is_finished(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "cut"
    shutil.copytree(trained, run)
    (run / "training_history.png").unlink()  # killed between the last epoch and the end
    assert train.main(["--resume", str(run)]) == 0
    assert (run / "training_history.png").is_file() and len(history_of(run)) == 3


def test_scoring_alone_does_not_overwrite_another_run(
    trained: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / name)
    flags = [*short_training(drawn, tmp_path), "--epochs", "0", "--resume", str(tmp_path / "a" / "best.pth")]
    assert "is another training's" in error_of(capsys, *flags, "--exp", "b")
    assert not (tmp_path / "b" / "metrics.json").exists()
    flags[-1] = str(tmp_path / "a")
    assert train.main([*flags, "--exp", "a"]) == 0 and (tmp_path / "a" / "metrics.json").is_file()


def test_what_of_a_picture_is_seen(trained: Path) -> None:
    """As much as in training; and of --init not how faces lay in its pictures."""
    for name, keep in (("lightcnn", 44 / 48), ("randaugment", 1.0), ("fernet", 1.0)):
        args = settings.parse_args(["--recipe", "E0", "--augment", name])
        assert train.choose_preprocess(args, None, None).keep == keep
        initial = load_checkpoint(trained)
        aligned = replace(initial.preprocess, margin=0.1, landmarks=(0.5,) * 10)
        seen = train.choose_preprocess(args, None, initial._replace(preprocess=aligned))
        assert (seen.keep, seen.margin, seen.landmarks, seen.size_px) == (keep, 0.0, None, 48)


def test_vggface2_input_needs_vggface2_weights(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build_model("resnet18", classes=8, affect=True, preprocess=Preprocess(32, 3, (0.5,) * 3, (0.5,) * 3)).backbone
    torch.save(state.state_dict(), tmp_path / "resnet18.pth")
    common = [*short_training(drawn, tmp_path)[2:], "--epochs", "1", "--img_size", "32", "--vggface2_preprocess", "bgr255"]
    monkeypatch.setattr(train, "load_pretrained", lambda *_, **__: "ResNet18_Weights.IMAGENET1K_V1: loaded")
    assert "is for VGGFace2 weights" in error_of(capsys, "--model", "resnet18", *common)
    monkeypatch.undo()
    flags = ["--model", "resnet18", *common, "--vggface2_ckpt", str(tmp_path / "resnet18.pth"), "--exp", "vgg"]
    assert train.main(flags) == 0
    said = capsys.readouterr().out
    assert "100 of 100 backbone tensors" in said and "frozen: conv1" in said and "warning: the first BatchNorm" in said
    best = load_checkpoint(tmp_path / "vgg" / "best.pth")
    assert best.preprocess.order == "bgr" and best.preprocess.std == (1 / 255,) * 3
    second = [*short_training(drawn, tmp_path)[2:], "--epochs", "1", "--img_size", "32", "--exp", "second"]
    assert train.main(["--model", "resnet18", *second, "--init", str(tmp_path / "vgg" / "best.pth")]) == 0
    assert load_checkpoint(tmp_path / "second" / "best.pth").preprocess == best.preprocess  # as its backbone knows it
    assert train.main(["--resume", str(tmp_path / "second"), "--epochs", "2"]) == 0
    assert load_checkpoint(tmp_path / "second" / "last.pth").preprocess == best.preprocess


def test_deferred_weights_start_in_their_epoch(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_epoch, weighting = train.train_one_epoch, []

    def watched(model: Any, loader: Any, criterion: Any, *args: Any, **options: Any) -> dict[str, float]:
        weighting.append(criterion.weighting)
        return one_epoch(model, loader, criterion, *args, **options)

    monkeypatch.setattr(train, "train_one_epoch", watched)
    flags = [*short_training(drawn, tmp_path), "--exp", "drw", "--loss", "wce", "--drw_epoch", "3"]
    assert train.main(flags) == 0
    assert weighting == [False, False, True]


def test_a_second_phase_takes_backbone_and_head_by_name(
    trained: Path, pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From eight AffectNet classes to FER2013's seven, with another order."""
    started: dict[str, torch.Tensor] = {}
    prepare = train.prepare_network

    def watched(*args: Any) -> Any:
        model = prepare(*args)
        started.update({key: value.clone() for key, value in model.state_dict().items()})
        return model

    monkeypatch.setattr(train, "prepare_network", watched)
    flags = [*short_training(pixels, tmp_path), "--epochs", "1", "--exp", "second", "--init", str(trained / "best.pth")]
    assert train.main(flags) == 0
    said = capsys.readouterr().out
    assert "head kept by name: angry, disgust, fear, happy, sad, surprise, neutral; new: nothing" in said
    first = read_checkpoint(trained / "best.pth")["state_dict"]
    for index, name in enumerate(LABEL_SETS["fer7"].names):
        row = LABEL_SETS["affectnet8"].index(name)
        assert torch.equal(started["classifier.weight"][index], first["classifier.weight"][row])
        assert torch.equal(started["classifier.bias"][index], first["classifier.bias"][row])
    assert torch.equal(started["backbone.0.weight"], first["backbone.0.weight"])
    assert torch.equal(started["regressor.weight"], first["regressor.weight"])


def test_the_test_split_is_scored_after_training_where_the_recipe_says_so(
    pixels: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*short_training(pixels, tmp_path), "--epochs", "1"]
    assert train.main([*flags, "--exp", "scored", "--score_test", "--save_optimizer"]) == 0
    values = json.loads((tmp_path / "scored" / "metrics.json").read_text(encoding="utf-8"))
    assert (values["split"], values["rows"]) == ("test", 21)
    assert "optimizer" in read_checkpoint(tmp_path / "scored" / "best.pth")
    assert train.main([*flags, "--exp", "not", "--no-score_test"]) == 0
    assert not (tmp_path / "not" / "metrics.json").exists()
    capsys.readouterr()
    assert not (drawn / "metadata_test.parquet").exists()
    assert train.main([*short_training(drawn, tmp_path), "--epochs", "1", "--exp", "none", "--score_test"]) == 0
    assert "metadata_test.parquet is not there, so there is no test split to score" in capsys.readouterr().out


def test_no_epochs_only_score_a_checkpoint(
    trained: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are those saved at training, to the last digit; no network is written, but where this one comes from."""
    flags = [*short_training(drawn, tmp_path), "--epochs", "0", "--resume", str(trained / "best.pth"), "--exp", "again"]
    assert train.main([*flags, "--test_meta", str(drawn / "metadata_val.parquet")]) == 0
    scored = json.loads((tmp_path / "again" / "metrics.json").read_text(encoding="utf-8"))
    saved = load_checkpoint(trained / "best.pth").info["metrics"]
    shared = set(saved) & set(scored) - {"epoch"}
    assert {"accuracy", "macro_f1", "f1_disgust", "valence_ccc"} <= shared
    assert {key: saved[key] for key in shared if scored[key] is not None} == {
        key: scored[key] for key in shared if scored[key] is not None
    }
    assert (tmp_path / "again" / "confusion_matrix.png").is_file()
    assert not list((tmp_path / "again").glob("*.pth"))
    record = json.loads((tmp_path / "again" / "run.json").read_text(encoding="utf-8"))
    assert record["command"] == json.loads((trained / "run.json").read_text(encoding="utf-8"))["command"]
    assert record["scored"].startswith(f"python evaluate.py {trained / 'best.pth'}")
    test = ["--test_meta", str(drawn / "metadata_test.parquet"), "--exp", "other"]
    handed: list[list[str]] = []

    def take(argv: list[str]) -> int:
        handed.append(argv)
        return 0

    monkeypatch.setattr(evaluate, "main", take)
    for declined, split in ((), "test"), (("--no-score_test", "--label_set", "affectnet7"), "val"):
        assert train.main([*flags, *test, *declined]) == 0
        assert str(drawn / f"metadata_{split}.parquet") in handed[-1]
        assert ("--label_set affectnet7" in " ".join(handed[-1])) == (split == "val")


# Our own network


def fernet_flags(data: Path, runs: Path, *more: str) -> list[str]:
    flags = ["--recipe", "fernet_votes", "--epochs", "2", "--width", "8", "--img_size", "24", "--batch_size", "16"]
    flags += ["--warmup_epochs", "0", "--device", "cpu", "--no-amp", "--workers", "0", "--runs", str(runs), "--seed", "3"]
    return [
        *flags,
        "--train_meta",
        str(data / "metadata_train.parquet"),
        "--val_meta",
        str(data / "metadata_val.parquet"),
        *more,
    ]


def test_training_pictures_grow(
    voted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    step = BatchLoader.__iter__

    def noted(loader: BatchLoader) -> Any:
        for batch in step(loader):
            seen.append(batch[0].shape[-1])
            yield batch

    monkeypatch.setattr(BatchLoader, "__iter__", noted)
    validated: list[int] = []
    infer = train.run_inference

    def measured(model: Any, loader: Any, **more: Any) -> Any:
        validated.extend({batch[0].shape[-1] for batch in loader})
        assert len(list(loader)) == len(loader)
        return infer(model, loader, **more)

    monkeypatch.setattr(train, "run_inference", measured)
    flags = fernet_flags(voted, tmp_path, "--no-score_test", "--exp", "grown")
    assert train.main([*flags, "--first_size", "16", "--warmup_epochs", "0"]) == 0
    assert sorted(set(seen)) == [16, 24] and seen == sorted(seen)
    assert validated == [line["size_px"] for line in history_of(tmp_path / "grown")] and set(validated) == {16, 24}
    last = str(tmp_path / "grown" / "last.pth")
    state = read_checkpoint(last)
    save_checkpoint(last, state | {"history": state["history"][:1]})  # as if interrupted while pictures are small
    assert train.main(["--resume", last, "--epochs", "1", "--warmup_epochs", "0"]) == 2
    assert "has seen no pictures of 24 px yet – give a larger --epochs" in capsys.readouterr().err
    best = load_checkpoint(tmp_path / "grown" / "best.pth")
    assert best.preprocess.size_px == 24 and best.info["metrics"]["size_px"] == 24


def test_epochs_of_small_pictures_are_not_chosen_and_do_not_stop() -> None:
    progress = train.Progress(select="accuracy", patience=2, size_px=48)
    for epoch in range(1, 5):
        assert not progress.update({"epoch": epoch, "accuracy": 0.9, "size_px": 32})
    assert not progress.exhausted and progress.best_epoch == 0
    assert progress.update({"epoch": 5, "accuracy": 0.5, "size_px": 48}) and progress.best_epoch == 5


def test_votes_are_learnt_by_a_second_head_and_scored_by_its_label_set(voted: Path, tmp_path: Path) -> None:
    assert train.main([*fernet_flags(voted, tmp_path), "--score_test", "--exp", "votes"]) == 0
    history = history_of(tmp_path / "votes")
    parts = history[0]
    assert parts["train_loss"] == pytest.approx(parts["train_loss_cls"] + parts["train_loss_votes"], rel=1e-4)
    values = json.loads((tmp_path / "votes" / "metrics.json").read_text(encoding="utf-8"))
    assert (values["label_set"], values["rows"], values["split"]) == ("fer7", 21, "test")
    best = tmp_path / "votes" / "best.pth"
    assert load_checkpoint(best).labels.name == "fer7" and load_checkpoint(best, label_set="fer4").labels.name == "fer7"
    eight = load_checkpoint(best, label_set="ferplus8")
    stored = read_checkpoint(best)["state_dict"]
    assert eight.labels.name == "ferplus8" and torch.equal(eight.model.classifier.weight, stored["votes.weight"])
    meta = ["--meta", str(voted / "metadata_test.parquet"), "--out", str(tmp_path / "eight")]
    assert evaluate.main([str(best), *meta, "--label_set", "ferplus8"]) == 0
    values = json.loads((tmp_path / "eight" / "metrics.json").read_text(encoding="utf-8"))
    assert values["label_set"] == "ferplus8" and values["rows"] + values["rows_left_out"] == 21 > values["rows"]


def test_a_resumed_training_in_memory_equals_an_uninterrupted_one(
    voted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*fernet_flags(voted, tmp_path), "--no-score_test", "--cutmix", "1", "--first_size", "16"]
    assert train.main([*flags, "--exp", "whole"]) == 0
    real, calls = train.train_one_epoch, []

    def stop_in_the_second(*args: Any, **kwargs: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(train, "train_one_epoch", stop_in_the_second)
    assert train.main([*flags, "--exp", "cut"]) == 130
    monkeypatch.setattr(train, "train_one_epoch", real)
    assert train.main(["--resume", str(tmp_path / "cut")]) == 0
    whole, resumed = (read_checkpoint(tmp_path / name / "last.pth")["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_votes_are_not_learnt_twice(voted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, *fernet_flags(voted, tmp_path, "--label_set", "ferplus8"))
    assert "--votes_weight: the second head would learn the same classes" in message


def test_norms_and_biases_need_not_decay(voted: Path, tmp_path: Path) -> None:
    args = settings.parse_args(fernet_flags(voted, tmp_path, "--backbone_lr", "0.05"))
    model = build_model("fernet", classes=7, affect=False, preprocess=Preprocess(24, 1, (0.5,), (0.25,)), width=8)
    groups = train.prepare_optimizer(args, model).param_groups
    assert [(group["weight_decay"], group["share"]) for group in groups] == [
        (5e-4, 0.5),
        (0.0, 0.5),
        (5e-4, 1.0),
        (0.0, 1.0),
    ]
    assert all((p.ndim > 1) == (group["weight_decay"] > 0) for group in groups for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_votes_are_asked_for_where_there_are_none(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "index with --ferplus" in error_of(capsys, *fernet_flags(pixels, tmp_path))


def test_a_student_learns_from_the_predictions_of_another(voted: Path, tmp_path: Path) -> None:
    flags = [*fernet_flags(voted, tmp_path), "--no-score_test", "--epochs", "1"]
    assert train.main([*flags, "--exp", "master"]) == 0
    meta = ["--meta", str(voted / "metadata_train.parquet"), "--tta", "flip"]
    assert evaluate.main([str(tmp_path / "master"), *meta, "--out", str(tmp_path / "said")]) == 0
    teacher = ["--teacher", str(tmp_path / "said" / "predictions.parquet")]
    assert train.main([*flags, "--exp", "student", *teacher, "--teacher_weight", "0.9"]) == 0
    alone, taught = (history_of(tmp_path / name)[0] for name in ("master", "student"))
    assert alone["train_loss_cls"] != taught["train_loss_cls"]
    assert alone["train_loss_votes"] == pytest.approx(taught["train_loss_votes"], rel=0.2)
    missing = ["--teacher", str(tmp_path / "none.parquet"), "--exp", "no"]
    assert train.main([*flags, *missing]) == 2


def test_votes_that_come_by_way_of_another_network_are_recorded(voted: Path, tmp_path: Path) -> None:
    flags = [*fernet_flags(voted, tmp_path), "--no-score_test", "--epochs", "1"]
    alone = [*flags, "--votes_weight", "0"]
    assert train.main([*alone, "--exp", "alone"]) == 0
    assert train.main([*flags, "--exp", "votes"]) == 0
    assert train.main([*alone, "--exp", "taught", "--teacher", str(tmp_path / "votes")]) == 0
    assert train.main([*alone, "--exp", "after", "--init", str(tmp_path / "taught")]) == 0
    assert train.main(["--resume", str(tmp_path / "after" / "last.pth"), "--epochs", "2"]) == 0
    meta = ["--meta", str(voted / "metadata_train.parquet"), "--tta", "flip"]
    assert evaluate.main([str(tmp_path / "votes"), *meta, "--out", str(tmp_path / "said")]) == 0
    table = tmp_path / "said" / "predictions.parquet"
    assert train.main([*alone, "--exp", "by_table", "--teacher", str(table)]) == 0
    (teacher,) = evaluate.record_of(tmp_path / "by_table")["teachers"]
    assert teacher == {"path": str(table), "exp": "votes", "sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
    for name, behind in (("alone", False), ("votes", True), ("taught", True), ("after", True), ("by_table", True)):
        checkpoint = load_checkpoint(tmp_path / name / "best.pth")
        assert evaluate.record_of(tmp_path / name)["voted"] is checkpoint.info["voted"] is models.voted(checkpoint) is behind


def test_a_student_asks_two_networks(voted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*fernet_flags(voted, tmp_path), "--no-score_test", "--epochs", "1", "--mixup", "0.4"]
    assert train.main([*flags, "--exp", "master"]) == 0
    assert train.main([*flags, "--exp", "other", "--seed", "4"]) == 0
    named = f"{tmp_path / 'master'},{tmp_path / 'other'}"
    assert train.main([*flags, "--exp", "student", "--teacher", named, "--teacher_weight", "0.9"]) == 0
    alone, taught = (history_of(tmp_path / name)[0] for name in ("master", "student"))
    assert alone["train_loss_cls"] != taught["train_loss_cls"] and alone["train_loss_votes"] != taught["train_loss_votes"]
    record = evaluate.record_of(tmp_path / "student")
    assert [(one["path"], one["exp"]) for one in record["teachers"]] == [
        (path, Path(path).name) for path in named.split(",")
    ]
    resumed = ["--resume", str(tmp_path / "student" / "last.pth"), "--epochs", "2"]
    weights = (tmp_path / "other" / "best.pth").read_bytes()
    shutil.copyfile(tmp_path / "master" / "best.pth", tmp_path / "other" / "best.pth")
    capsys.readouterr()
    assert f"was begun with other teachers ({tmp_path / 'master'}, {tmp_path / 'other'})" in error_of(capsys, *resumed)
    (tmp_path / "other" / "best.pth").write_bytes(weights)
    for another in (named.split(",")[0], "votes"):
        assert "was begun with other teachers" in error_of(capsys, *resumed, "--teacher", another)
    more = ["--epochs", "2", "--teacher", named, "--teacher_weight", "0.9"]
    begun_alone = str(tmp_path / "master" / "last.pth")
    assert "was begun with other teachers (none)" in error_of(capsys, "--resume", begun_alone, *more)
    assert train.main(resumed) == 0
    assert evaluate.record_of(tmp_path / "student")["teachers"] == record["teachers"]
    capsys.readouterr()
    assert "not found" in error_of(capsys, *flags, "--exp", "no", "--teacher", f"{named},runs/none.onnx")
