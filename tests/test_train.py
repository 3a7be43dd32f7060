"""Recipes, schedule, staged freezing, early stopping; short real runs: what they write, resuming, and what goes wrong."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import short_training

import evaluate
import train
from faces import read_image
from labels import LABEL_SETS
from metadata_parallel import read_metadata
from models import MODELS, load_checkpoint, read_checkpoint

STAGES = MODELS["resnet50"].stages


def history_of(run: Path) -> list[dict[str, Any]]:
    """The lines of history.jsonl."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history without what a clock put into it; NaN as null."""
    return [{key: None if value != value else value for key, value in line.items() if key != "time_s"} for line in history]


def recipe(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """What --print_recipe shows."""
    assert train.main([*flags, "--print_recipe"]) == 0
    return json.loads(capsys.readouterr().out)


def error_of(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line with which a training is refused."""
    capsys.readouterr()
    assert train.main(list(flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ") and error.count("\n") == 1
    return error


# Recipes


def test_resnet50_is_the_multitask_report(capsys: pytest.CaptureFixture[str]) -> None:
    shown = recipe(capsys, "--model", "resnet50")
    stated = {
        "train_meta": "metadata_train.parquet", "val_meta": "metadata_val.parquet", "epochs": 100, "batch_size": 8,
        "lr": 1e-4, "weight_decay": 1e-3, "img_size": 224, "vggface2_ckpt": "weight/resnet50_vggface2.pth",
        "unfreeze_all_at": None, "save_path": "FER_resnet50.pth", "optimizer": "adamw", "schedule": "cosine",
        "warmup_epochs": 0, "dropout": 0.7, "label_smoothing": 0.1, "loss": "wce", "weight_mode": "inv", "reg_weight": 0.5,
        "patience": 15, "select": "accuracy", "augment": "report", "affect": True, "weights": "auto",
    }  # fmt: skip
    assert {key: shown[key] for key in stated} == stated


def test_lightcnn_is_e0(capsys: pytest.CaptureFixture[str]) -> None:
    shown = recipe(capsys)
    stated = {
        "model": "lightcnn", "recipe": "lightcnn", "epochs": 30, "batch_size": 256, "lr": 1e-3, "optimizer": "adam",
        "schedule": "cosine", "weight_decay": 0.0, "img_size": 48, "dropout": 0.3, "grad_clip": 5.0, "loss": "ce",
        "label_smoothing": 0.0, "select": "macro_f1", "affect": False, "weights": "none", "seed": 42,
    }  # fmt: skip
    assert {key: shown[key] for key in stated} == stated


def test_every_recipe_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    settings = set(recipe(capsys))
    for name, row in train.RECIPES.items():
        assert row["model"] in MODELS
        assert set(row) <= settings  # no misspelt flag
        shown = recipe(capsys, "--recipe", name)
        assert shown["recipe"] == name and all(shown[key] == value for key, value in row.items())
        may_be_empty = {"freeze_epochs", "unfreeze_all_at", "grad_clip", "save_path", "data_root", "label_set", "exp"}
        may_be_empty |= {"workers", "amp", "resume", "drw_epoch", "init", "test_meta", "backbone_lr", "attention", "stem"}
        assert {key for key, value in shown.items() if value is None} <= may_be_empty


def test_flags_override_and_hyphens_work(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--model",
        "resnet50",
        "--batch-size",
        "16",
        "--img-size=64",
        "--freeze-epochs",
        "5",
        "--no-affect",
        "--lr",
        "1e-3",
    ]
    plain = recipe(capsys, "--model", "resnet50")
    changed = {"batch_size": 16, "img_size": 64, "freeze_epochs": 5, "affect": False, "lr": 1e-3}
    assert recipe(capsys, *flags) == plain | changed
    assert recipe(capsys, "--recipe", "demo", "--model", "resnet18")["model"] == "resnet18"


@pytest.mark.parametrize(
    "flags",
    [
        "--epochs -1", "--batch_size 0", "--img_size 4", "--dropout 1.5", "--lr -1", "--lr nan", "--label_smoothing 2",
        "--workers -1", "--seed -1", "--beta 1", "--warmup_epochs -1", "--unfreeze_all_at 0", "--patience -1",
    ],
)  # fmt: skip
def test_numbers_out_of_range(capsys: pytest.CaptureFixture[str], flags: str) -> None:
    name, value = flags.split()
    error = error_of(capsys, name, value)
    assert name in error and "must lie between" in error


# Schedule, stages, early stopping


@pytest.mark.parametrize("epochs", [1, 2, 30, 100])
def test_cosine_is_torchs_cosine_annealing(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(1, epochs + 1):
        expected = optimizer.param_groups[0]["lr"]
        factor = train.learning_rate_factor(epoch, schedule="cosine", epochs=epochs, warmup_epochs=0)
        assert factor == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_and_then_the_cosine_falls() -> None:
    factors = [train.learning_rate_factor(epoch, schedule="cosine", epochs=7, warmup_epochs=3) for epoch in range(1, 8)]
    expected = [0.25, 0.5, 0.75, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert factors == pytest.approx(expected)
    constant = [train.learning_rate_factor(epoch, schedule="constant", epochs=4, warmup_epochs=1) for epoch in range(1, 5)]
    assert constant == [0.5, 1, 1, 1]
    assert train.learning_rate_factor(3, schedule="cosine", epochs=3, warmup_epochs=3) == 0.75


@pytest.mark.parametrize(
    ("freeze_epochs", "unfreeze_all_at", "expected"),
    [
        (3, None, [0, 0, 0, 1, 1, 1]),
        (3, 5, [0, 0, 0, 1, 2, 2]),
        (3, 2, [0, 2, 2, 2, 2, 2]),
        (0, None, [1, 1, 1, 1, 1, 1]),
        (0, 1, [2, 2, 2, 2, 2, 2]),
        (None, None, [2, 2, 2, 2, 2, 2]),
        (None, 4, [2, 2, 2, 2, 2, 2]),
    ],
)
def test_frozen_in_epoch(freeze_epochs: int | None, unfreeze_all_at: int | None, expected: list[int]) -> None:
    table = (*STAGES, ())
    assert STAGES == (("conv1", "bn1", "layer1", "layer2", "layer3"), ("conv1", "bn1", "layer1", "layer2"))
    for epoch, stage in enumerate(expected, start=1):
        frozen = train.frozen_in_epoch(epoch, stages=STAGES, freeze_epochs=freeze_epochs, unfreeze_all_at=unfreeze_all_at)
        assert frozen == table[stage], epoch


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
    """After every step the mean moves by a tenth of its distance, starting from the weights of the first step."""
    update, seen = train.AveragedModel.update_parameters, []

    def watched(average: Any, model: Any) -> None:
        update(average, model)
        seen.append((model.classifier.bias.detach().clone(), average.module.classifier.bias.detach().clone()))

    monkeypatch.setattr(train.AveragedModel, "update_parameters", watched)
    assert train.main([*short_training(drawn, tmp_path), "--epochs", "1", "--ema", "0.9", "--exp", "mean"]) == 0
    expected = seen[0][0]
    for weights, mean in seen[1:]:
        expected = 0.9 * expected + 0.1 * weights
        torch.testing.assert_close(mean, expected)
    assert torch.equal(read_checkpoint(tmp_path / "mean" / "best.pth")["state_dict"]["classifier.bias"], seen[-1][1])


def test_interrupted_before_the_first_epoch_ends(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, epoch=1)
    assert train.main([*short_training(drawn, tmp_path), "--exp", "cut"]) == 130
    assert "no epoch was finished" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "last.pth").exists()


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


def test_staged_freezing_in_a_real_run(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    flags = [
        "--recipe",
        "resnet18",
        "--weights",
        "none",
        "--freeze_epochs",
        "1",
        "--unfreeze_all_at",
        "3",
        "--exp",
        "staged",
    ]
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
    ):
        assert "cannot change" in error_of(capsys, "--resume", str(run), *flags)
    assert "does not fit" in error_of(capsys, "--resume", str(run), "--img_size", "48")
    other = ["--train_meta", str(pixels / "metadata_train.parquet"), "--val_meta", str(pixels / "metadata_val.parquet")]
    assert "split" in error_of(capsys, "--resume", str(run), *other)
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--weight_mode inv", "--loss wce"),
        ("--beta 0.5", "--loss wce"),
        ("--reg_weight 3 --no-affect", "--affect"),
        ("--exp ../outside", "plain name"),
        ("--lr 0", "--lr must lie between"),
    ],
)
def test_flags_that_would_do_nothing_or_harm(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert message in error_of(capsys, *short_training(drawn, tmp_path / "runs"), *words.split())
    assert not (tmp_path / "runs").exists()


def test_a_better_network_does_not_keep_the_figures_of_the_last_one(drawn: Path, tmp_path: Path) -> None:
    flags = [*short_training(drawn, tmp_path), "--exp", "a"]
    assert train.main([*flags, "--epochs", "1"]) == 0
    (tmp_path / "a" / "metrics_val.json").write_text("{}", encoding="utf-8")
    assert train.main(["--resume", str(tmp_path / "a"), "--epochs", "4"]) == 0
    assert read_checkpoint(tmp_path / "a" / "best.pth")["epoch"] > 1  # else this shows nothing
    assert not (tmp_path / "a" / "metrics_val.json").exists()


def test_a_finished_run_is_not_resumed(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*short_training(drawn, tmp_path), "--exp", "a", "--epochs", "1"]) == 0
    assert "larger --epochs" in error_of(capsys, "--resume", str(tmp_path / "a"))


# The documented systems


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("E1", {"head": "arcface", "arc_s": 30.0, "arc_m": 0.5, "loss": "ce", "epochs": 30}),
        ("E2", {"head": "softmax", "loss": "wce", "weight_mode": "inv"}),
        ("E2b", {"head": "softmax", "loss": "wce", "weight_mode": "inv_sqrt", "beta": 0.999}),
        ("E3", {"head": "arcface", "loss": "wce", "weight_mode": "inv"}),
        ("E4", {"head": "softmax", "loss": "focal", "focal_gamma": 2.0, "weight_mode": "inv_sqrt", "epochs": 10}),
        ("E5", {"head": "softmax", "loss": "ce", "sampler": "balanced", "epochs": 30, "batch_size": 256, "lr": 1e-3}),
        ("E6", {"head": "arcface", "loss": "focal", "epochs": 10}),
        ("two_phase_1", {"epochs": 15, "loss": "wce", "label_smoothing": 0.1, "weights": "imagenet", "optimizer": "adam"}),
        ("resnet34_attention", {"epochs": 12, "schedule": "plateau", "backbone_lr": 1e-4, "lr": 1e-3, "optimizer": "adam"}),
        (
            "resnet18_gray",
            {"label_set": "fer4", "epochs": 20, "batch_size": 64, "lr": 1e-3, "optimizer": "adam", "schedule": "step"}
            | {"step_epochs": 7, "gamma": 0.1, "img_size": 48, "weights": "none", "loss": "ce", "save_optimizer": True},
        ),
    ],
)
def test_recipes_are_as_documented(capsys: pytest.CaptureFixture[str], name: str, stated: dict[str, Any]) -> None:
    shown = recipe(capsys, "--recipe", name)
    assert {key: shown[key] for key in stated} == stated


def test_variants_of_the_study_change_what_they_say_and_no_more() -> None:
    assert train.RECIPES["E0"] == train.RECIPES["lightcnn"]
    for name in ("E1", "E2", "E2b", "E3", "E4", "E5", "E6"):
        changed = {key for key, value in train.RECIPES[name].items() if value != train.RECIPES["E0"][key]}
        assert changed <= {"head", "loss", "weight_mode", "sampler", "epochs"} and changed


@pytest.mark.parametrize(("patience", "gamma"), [(0, 0.5), (2, 0.1)])
def test_plateau_is_torchs_reduce_on_plateau(patience: int, gamma: float) -> None:
    losses = [1.0, 0.9, 0.91, 0.92, 0.899, 0.95, 0.96, 0.97, 0.98, 0.5, 0.6, 0.7, 0.8, 0.9]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=gamma, patience=patience)
    for done in range(len(losses)):
        factor = train.learning_rate_factor(
            done + 1, schedule="plateau", epochs=14, warmup_epochs=0, gamma=gamma, plateau_patience=patience,
            val_losses=losses[:done],
        )  # fmt: skip
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        scheduler.step(losses[done])
    assert optimizer.param_groups[0]["lr"] < 1.0


def test_step_is_torchs_step() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    for epoch in range(1, 21):
        factor = train.learning_rate_factor(epoch, schedule="step", epochs=20, warmup_epochs=0, step_epochs=7, gamma=0.1)
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_mixup_share_is_the_larger_one() -> None:
    assert train.mixup_share(0.0) == 1.0
    torch.manual_seed(0)
    shares = [train.mixup_share(1.0) for _ in range(2000)]
    assert all(0.5 <= share <= 1.0 for share in shares)
    assert sum(shares) / 2000 == pytest.approx(0.75, abs=0.01)  # Beta(1, 1) is uniform


def test_every_option_of_the_loss_trains(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One epoch each; the options reach the history or the log, and ArcFace's checkpoint its head."""
    flags = [*short_training(drawn, tmp_path), "--epochs", "1"]
    variants = {
        "arcface": "--head arcface --arc_s 20 --arc_m 0.3",
        "ldam": "--head cosine --loss ldam --drw_epoch 2",
        "focal": "--loss focal --focal_gamma 1 --weight_mode effective --beta 0.99",
        "adjusted": "--loss logit_adjusted --tau 0.5 --sampler balanced",
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--arc_m 0.3", "--arc_m does nothing here – add --head arcface"),
        ("--arc_s 10", "add --head arcface or --head cosine"),
        ("--tau 2", "add --loss logit_adjusted"),
        ("--focal_gamma 1", "add --loss focal"),
        ("--drw_epoch 2", "add --loss wce or --loss focal or --loss ldam"),
        ("--gamma 0.5", "add --schedule step or --schedule plateau"),
        ("--step_epochs 3", "add --schedule step"),
        ("--loss ldam", "add --head cosine"),
        ("--reg_loss ccc --no-affect", "add --affect"),
        ("--attention se", "lightcnn has no place for --attention"),
        ("--stem stride1", "lightcnn has no place for --stem"),
        ("--init a.pth --weights imagenet", "leave one out"),
        ("--init a.pth", "a.pth not found"),
        ("--epochs 0", "--resume CKPT"),
        ("--epochs 0 --resume", "--resume CKPT"),
    ],
)
def test_options_that_lack_what_they_need(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert message in error_of(capsys, *short_training(drawn, tmp_path / "runs"), *words.split())
    assert not (tmp_path / "runs").exists()


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
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*short_training(pixels, tmp_path), "--epochs", "1"]
    assert train.main([*flags, "--exp", "scored", "--score_test", "--save_optimizer"]) == 0
    values = json.loads((tmp_path / "scored" / "metrics.json").read_text(encoding="utf-8"))
    assert (values["split"], values["rows"]) == ("test", 21)
    assert "optimizer" in read_checkpoint(tmp_path / "scored" / "best.pth")
    assert train.main([*flags, "--exp", "not", "--no-score_test"]) == 0
    assert not (tmp_path / "not" / "metrics.json").exists()
    capsys.readouterr()
    gone = ["--test_meta", str(tmp_path / "none.parquet")]
    assert train.main([*flags, "--exp", "none", "--score_test", *gone]) == 0
    assert "none.parquet is not there, so there is no test split to score" in capsys.readouterr().out


def test_no_epochs_only_score_a_checkpoint(trained: Path, drawn: Path, tmp_path: Path) -> None:
    """The figures are those saved at training, to the last digit, and no training file is written."""
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
    assert not (tmp_path / "again" / "last.pth").exists() and not (tmp_path / "again" / "history.jsonl").exists()
