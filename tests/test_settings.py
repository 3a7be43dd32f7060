"""Recipes, the command line over them, what is refused, and what the settings mean for an epoch."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import error_of, short_training

import settings
import train
from labels import LabelSet
from models import BACKBONE_OPTIONS, MODELS
from recipes import FREEZE_PRETRAINED, RECIPES

STAGES = MODELS["resnet50"].stages


def recipe(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """What --print_recipe shows."""
    assert train.main([*flags, "--print_recipe"]) == 0
    return json.loads(capsys.readouterr().out)


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


def test_a_refinement_goes_on_from_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    shown = recipe(capsys, "--recipe", "fernet_votes_refine")
    stated = {"epochs": 4, "lr": 5e-3, "augment": "fernet_light", "mixup": 0.0, "votes_weight": 1.0, "width": 40}
    assert {key: shown[key] for key in stated} == stated
    with pytest.raises(settings.TrainingError, match="fernet_refine goes on from a trained network – add --init"):
        settings.parse_args(["--recipe", "fernet_refine"])
    assert settings.parse_args(["--recipe", "fernet_refine", "--init", "a.pth"]).init == "a.pth"


def test_a_network_keeps_the_form_of_the_one_it_goes_on_from() -> None:
    flags = ["--recipe", "fernet_refine", "--init", "a.pth"]
    args = settings.parse_args(flags)
    theirs = {"width": 48, "stem": "stride1", "depth": 2, "stochastic_depth": 0.1, "dropout": 0.5}
    lines = settings.take_form(args, theirs).splitlines()
    assert lines == ["network: --stem stride1, as a.pth has it", "network: --width 48, as a.pth has it"]
    assert (args.width, args.stem, args.depth, args.stochastic_depth, args.dropout) == (48, "stride1", None, None, 0.3)
    args = settings.parse_args([*flags, "--stem", "stride2", "--width", "32"])  # whoever says so may change it
    assert settings.take_form(args, theirs) == "" and (args.width, args.stem) == (32, "stride2")
    assert settings.take_form(settings.parse_args(flags), {"width": 40}) == ""


def test_a_recipe_with_another_network_leaves_out_what_that_lacks() -> None:
    args = settings.parse_args(["--recipe", "fernet", "--model", "resnet18_gray"])
    assert args.width is None and args.lr == RECIPES["fernet"]["lr"]
    assert (
        settings.parse_args(["--recipe", "fernet", "--model", "resnet18_gray", "--width", "32"]).width == 32
    )  # refused later


def test_variants_of_the_study_change_what_they_say_and_no_more() -> None:
    assert RECIPES["E0"] == RECIPES["lightcnn"]
    for name in ("E1", "E2", "E2b", "E3", "E4", "E5", "E6"):
        changed = {key for key, value in RECIPES[name].items() if value != RECIPES["E0"][key]}
        assert changed <= {"head", "loss", "weight_mode", "sampler", "epochs"} and changed


def test_every_recipe_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    settings = set(recipe(capsys))
    for name, row in RECIPES.items():
        assert row["model"] in MODELS
        assert set(row) <= settings  # no misspelt flag
        shown = recipe(capsys, "--recipe", name)
        if name in FREEZE_PRETRAINED:  # their weights are pretrained unless --weights none says otherwise
            row = row | {"freeze_epochs": 3}
            assert recipe(capsys, "--recipe", name, "--weights", "none")["freeze_epochs"] is None
            assert recipe(capsys, "--recipe", name, "--weights", "none", "--init", "a.pth")["freeze_epochs"] == 3
        assert shown["recipe"] == name and all(shown[key] == value for key, value in row.items())
        may_be_empty = {"freeze_epochs", "unfreeze_all_at", "grad_clip", "save_path", "data_root", "label_set", "exp"}
        may_be_empty |= {
            "workers",
            "amp",
            "resume",
            "class_weight",
            "drw_epoch",
            "first_size",
            "init",
            "test_meta",
            "backbone_lr",
            "teacher",
            *BACKBONE_OPTIONS,
        }
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--weight_mode inv", "--loss wce"),
        ("--beta 0.5", "--loss wce"),
        ("--reg_weight 3 --no-affect", "--affect"),
        ("--exp ../outside", "plain name"),
        ("--exp my\trun", "without blanks"),
        ("--lr 0", "--lr must lie between"),
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
        ("--loss wce --weight_mode inv --beta 0.5", "--beta does nothing here – add --weight_mode effective"),
        ("--loss wce --drw_epoch 9", "--drw_epoch 9 comes after the last of 3 epochs"),
        ("--vggface2_ckpt a.pth", "--vggface2_ckpt does nothing here – add --weights auto or --weights vggface2"),
        ("--test_meta a.parquet", "--test_meta does nothing here – add --score_test"),
        ("--teacher_weight 0.3", "--teacher_weight does nothing here – add --teacher CKPT"),
        ("--mixup inf", "--mixup must lie between"),
        ("--class_weight fear=2", "--class_weight does nothing here – add --loss"),
        ("--loss wce --class_weight fear", "--class_weight fear: give LABEL=FACTOR, above 0, of neutral, happy"),
        ("--loss wce --class_weight fear=0", "--class_weight fear=0: give LABEL=FACTOR, above 0"),
        ("--loss wce --class_weight fright=2", "--class_weight fright=2: give LABEL=FACTOR, above 0"),
        ("--warmup_epochs 3", "--warmup_epochs 3 leaves none of 3 epochs – give a smaller one"),
        ("--first_size 16", "--first_size does nothing here – add --augment fernet"),
        ("--augment fernet --first_size 16", "--first_size: lightcnn takes pictures of one size"),
        ("--augment fernet --img_size 24 --first_size 32", "--first_size 32 is more than --img_size 24"),
        ("--init a.pth", "a.pth not found"),
        (
            "--model resnet50 --weights auto --init a.pth --vggface2_preprocess bgr255",
            "--weights does nothing here: weights and",
        ),
        ("--model resnet18 --init a.pth --vggface2_ckpt b.pth", "--vggface2_ckpt does nothing here"),
        ("--epochs 0", "--resume CKPT"),
        ("--epochs 0 --resume", "--resume CKPT"),
    ],
)
def test_options_that_lack_what_they_need(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert message in error_of(capsys, *short_training(drawn, tmp_path / "runs"), *words.split(" "))
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_stands_for_its_best_checkpoint(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By which report.py finds the phase that went before."""
    assert recipe(capsys, "--model", "resnet18", "--init", str(trained))["init"] == str(trained / "best.pth")
    assert recipe(capsys, "--model", "resnet18", "--init", "runs/a.pth")["init"] == "runs/a.pth"


# Schedule, stages


@pytest.mark.parametrize(
    ("epochs", "first_size", "expected"),
    [
        (6, 32, [32, 32, 40, 40, 48, 48]),
        (7, 32, [32, 32, 40, 40, 48, 48, 48]),
        (2, 48, [48, 48]),
        (2, None, [48, 48]),
        (2, 32, [40, 48]),
        (1, 32, [48]),
        (4, 44, [44, 44, 48, 48]),
    ],
)
def test_size_in_epoch(epochs: int, first_size: int | None, expected: list[int]) -> None:
    sizes = [
        settings.size_in_epoch(epoch, epochs=epochs, first_size=first_size, img_size=48) for epoch in range(1, epochs + 1)
    ]
    assert sizes == expected


@pytest.mark.parametrize("epochs", [1, 2, 30, 100])
def test_cosine_is_torchs_cosine_annealing(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(1, epochs + 1):
        expected = optimizer.param_groups[0]["lr"]
        factor = settings.learning_rate_factor(epoch, schedule="cosine", epochs=epochs, warmup_epochs=0)
        assert factor == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_and_then_the_cosine_falls() -> None:
    factors = [settings.learning_rate_factor(epoch, schedule="cosine", epochs=7, warmup_epochs=3) for epoch in range(1, 8)]
    expected = [0.25, 0.5, 0.75, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert factors == pytest.approx(expected)
    constant = [
        settings.learning_rate_factor(epoch, schedule="constant", epochs=4, warmup_epochs=1) for epoch in range(1, 5)
    ]
    assert constant == [0.5, 1, 1, 1]
    assert settings.learning_rate_factor(3, schedule="cosine", epochs=3, warmup_epochs=3) == 0.75


def test_step_is_torchs_step() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    for epoch in range(1, 21):
        factor = settings.learning_rate_factor(epoch, schedule="step", epochs=20, warmup_epochs=0, step_epochs=7, gamma=0.1)
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("patience", "gamma"), [(0, 0.5), (2, 0.1)])
def test_plateau_is_torchs_reduce_on_plateau(patience: int, gamma: float) -> None:
    losses = [1.0, 0.9, 0.91, 0.92, 0.899, 0.95, 0.96, 0.97, 0.98, 0.5, 0.6, 0.7, 0.8, 0.9]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=gamma, patience=patience)
    for done in range(len(losses)):
        factor = settings.learning_rate_factor(
            done + 1, schedule="plateau", epochs=14, warmup_epochs=0, gamma=gamma, plateau_patience=patience,
            val_losses=losses[:done],
        )  # fmt: skip
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        scheduler.step(losses[done])
    assert optimizer.param_groups[0]["lr"] < 1.0


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
        frozen = settings.frozen_in_epoch(epoch, stages=STAGES, freeze_epochs=freeze_epochs, unfreeze_all_at=unfreeze_all_at)
        assert frozen == table[stage], epoch


def test_settings_reach_what_they_name() -> None:
    """Each of the loss's settings changes the loss of a batch, or the order of the rows, as its function says."""
    from losses import REG_LOSSES, build_loss, class_weights

    counts, three = torch.tensor([80.0, 15.0, 5.0]).double(), LabelSet("three", ("happy", "fear", "disgust"))
    logits, y_cls = torch.tensor([[3.0, 1.0, -2.0], [0.5, 2.0, 1.0]]), torch.tensor([0, 2])
    for words, loss, options in (
        ("--loss logit_adjusted --tau 0.7", "logit_adjusted", {"tau": 0.7}),
        ("--loss focal --focal_gamma 0.5", "focal", {"focal_gamma": 0.5}),
        ("--loss wce --weight_mode effective --beta 0.9", "wce", {"weight_mode": "effective", "beta": 0.9}),
        ("--head arcface --arc_m 0.2 --arc_s 12", "ce", {"scale": 12.0, "arcface_margin": 0.2}),
        ("--head cosine --loss ldam --arc_s 12", "ldam", {"scale": 12.0}),
        ("--label_smoothing 0.3", "ce", {"label_smoothing": 0.3}),
    ):
        criterion = train.prepare_loss(settings.parse_args(words.split()), counts, three)
        expected = build_loss(loss, counts=counts, reg_weight=0.5, **options)  # type: ignore[arg-type]
        plain = build_loss("ce", counts=counts, reg_weight=0.5)
        found = criterion.classification(logits, y_cls)
        assert found == expected.classification(logits, y_cls) != plain.classification(logits, y_cls), words
    assert build_loss("focal", counts=counts, focal_gamma=0.5, reg_weight=0.5).focal_gamma == 0.5
    weighted = build_loss("wce", counts=counts, weight_mode="effective", beta=0.9, reg_weight=0.5)
    assert weighted.weights is not None and torch.equal(weighted.weights, class_weights(counts, "effective", 0.9))
    words = "--affect --reg_loss ccc+mse --teacher a.parquet --teacher_weight 0.9"
    criterion = train.prepare_loss(settings.parse_args(words.split()), counts, three)
    assert criterion.reg_loss is REG_LOSSES["ccc+mse"] and criterion.teacher_weight == 0.9
    words = "--loss wce --class_weight disgust=2,Fear=1.5"
    criterion, plain = (
        train.prepare_loss(settings.parse_args(flags.split()), counts, three) for flags in (words, "--loss wce")
    )
    assert criterion.weights is not None and plain.weights is not None
    torch.testing.assert_close(criterion.weights / plain.weights, torch.tensor([1.0, 1.5, 2.0]))
