"""Export: the ONNX files answer as their checkpoints do, say what they are, and are refused where they would not."""

import gzip
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

from faces import Face, Preprocess

import numpy as np
import pytest
import torch

import evaluate
import export
import metadata_parallel
import models
import train
from fer_transform import FERDataset
from inference import fit_temperature
from labels import LABEL_SETS
from metadata_parallel import read_metadata
from models import build_model, describe, load_checkpoint, save_checkpoint
from onnx_network import METADATA_KEY, ModelError, OnnxNetwork
from predict import EmotionPredictor

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-export.txt")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install -r requirements-export.txt")


def error_of(capsys: pytest.CaptureFixture[str], *flags: str | Path) -> str:
    """The one line with which an export is refused."""
    capsys.readouterr()
    assert export.main([str(flag) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("export.py: ") and error.count("\n") == 1
    return error


def metas(folder: Path) -> list[str]:
    return ["--train_meta", str(folder / "metadata_train.parquet"), "--val_meta", str(folder / "metadata_val.parquet")]


@pytest.fixture(scope="module")
def exported(trained: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network as ONNX file, with the temperature of the validation split."""
    out = tmp_path_factory.mktemp("exported") / "new" / "short.onnx"
    assert export.main([str(trained), str(out), *metas(drawn)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["short.onnx"]  # nothing temporary is left
    return out


def test_the_file_answers_as_the_checkpoint(exported: Path, trained: Path) -> None:
    checkpoint, network = load_checkpoint(trained / "best.pth"), OnnxNetwork(exported)
    size, channels = checkpoint.preprocess.size_px, checkpoint.preprocess.channels
    for rows in (1, 5):  # any number of images
        images = torch.randn(rows, channels, size, size)
        with torch.inference_mode():
            expected = checkpoint.model(images)
        said = network(images.numpy())
        np.testing.assert_allclose(said["logits"], expected.logits.numpy(), atol=1e-4)
        np.testing.assert_allclose(said["affect"], expected.affect.numpy(), atol=1e-4)


def test_the_file_says_what_it_is(exported: Path, trained: Path, drawn: Path) -> None:
    checkpoint, network = load_checkpoint(trained / "best.pth"), OnnxNetwork(exported)
    assert network.heads == {"logits": checkpoint.labels} and network.preprocess == checkpoint.preprocess
    said = export.score_heads(checkpoint, checkpoint.model, drawn / "metadata_val.parquet")["logits"]
    assert network.affect and network.temperatures["logits"] == pytest.approx(fit_temperature(said), rel=0.01)
    assert abs(network.temperatures["logits"] - 1.0) > 0.05  # or the line above says nothing
    for key in ("model", "exp", "epoch", "split_id", "seed", "affect_rows", "class_counts"):
        assert network.info[key] == checkpoint.info[key]
    assert network.info["parameters"] == sum(values.numel() for values in checkpoint.model.parameters())


def test_an_exported_file_is_scored_as_its_checkpoint(
    exported: Path, trained: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "write_pictures", lambda *_, **__: None)
    values = []
    for name, path in (("file", exported), ("checkpoint", trained / "best.pth")):
        flags = ["--meta", str(drawn / "metadata_val.parquet"), "--out", str(tmp_path / name)]
        assert evaluate.main([str(path), *flags]) == 0
        values.append(json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")))
    assert values[0].keys() == values[1].keys()
    assert values[0]["split_id"] == values[1]["split_id"]
    for key in ("accuracy", "macro_f1", "valence_ccc", "parameters", "epoch"):
        assert values[0][key] == pytest.approx(values[1][key], abs=1e-4)


def test_eight_bit_integers_are_smaller_and_answer_alike(exported: Path, trained: Path, drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    assert export.main([str(trained), str(out), *metas(drawn), "--int8", "--calibration", "40"]) == 0
    assert out.stat().st_size < 0.45 * exported.stat().st_size
    images = torch.randn(20, 1, 24, 24).numpy()
    small, plain = OnnxNetwork(out)(images)["logits"], OnnxNetwork(exported)(images)["logits"]
    assert np.abs(small - plain).max() > 0 and np.corrcoef(small.ravel(), plain.ravel())[0, 1] > 0.98
    initializers = onnx.load(str(out)).graph.initializer
    weights = [onnx.numpy_helper.to_array(each) for each in initializers if each.data_type == onnx.TensorProto.INT8]
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights if weight.ndim > 1)
    assert 60 <= largest <= 64  # two products of 8 bits and 7 stay below 2¹⁵, in which processors without VNNI add them


def test_half_precision_is_half_the_size_and_computes_in_float32(
    exported: Path, trained: Path, drawn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half.onnx"
    assert export.main([str(trained), str(out), *metas(drawn), "--half"]) == 0
    assert out.stat().st_size < 0.6 * exported.stat().st_size
    images = torch.randn(20, 1, 24, 24).numpy()
    half, plain = OnnxNetwork(out)(images)["logits"], OnnxNetwork(exported)(images)["logits"]
    assert half.dtype == np.float32 and 0 < np.abs(half - plain).max() < 0.02
    checkpoint = load_checkpoint(trained / "best.pth")
    for values in checkpoint.model.parameters():
        if values.numel() >= export.HALVED_FROM:
            values.data = values.data.half().float()
    with torch.inference_mode():  # BatchNorm is folded into the convolutions before they are halved: nearly the same
        np.testing.assert_allclose(half, checkpoint.model(torch.from_numpy(images)).logits.numpy(), atol=0.02)


def test_both_heads_of_a_network_are_in_its_file(voted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--recipe", "fernet_votes", "--epochs", "1", "--warmup_epochs", "0", "--width", "8", "--img_size", "24"]
    flags += ["--batch_size", "16", "--device", "cpu", "--no-score_test", "--runs", str(tmp_path), "--exp", "two"]
    assert train.main([*flags, *metas(voted)]) == 0
    said = capsys.readouterr().out
    assert f"score it: python evaluate.py {tmp_path / 'two' / 'best.pth'} --split val" in said
    assert 0.0 <= json.loads((tmp_path / "two" / "history.jsonl").read_text(encoding="utf-8"))["ferplus8_accuracy"] <= 1.0
    assert export.main([str(tmp_path / "two"), *metas(voted)]) == 0
    assert "neither scored nor calibrated" not in capsys.readouterr().out
    path = tmp_path / "two" / "best.onnx"
    network = OnnxNetwork(path)
    assert network.heads == {"logits": LABEL_SETS["fer7"], "votes": LABEL_SETS["ferplus8"]}
    assert network.temperatures.keys() == {"logits", "votes"} and not network.affect
    images = torch.randn(3, 1, 24, 24)
    checkpoint, eight = (
        load_checkpoint(tmp_path / "two" / name, label_set="ferplus8") for name in ("best.pth", "best.onnx")
    )
    assert eight.labels == checkpoint.labels == LABEL_SETS["ferplus8"]
    asked = {
        None: ("votes", "ferplus8"),
        "ferplus8": ("votes", "ferplus8"),
        "fer7": ("logits", "fer7"),
        "fer4": ("logits", "fer4"),
        "affectnet8": ("votes", "affectnet8"),  # the other head knows no contempt
    }
    for label_set, (head, answered) in asked.items():
        predictor = EmotionPredictor(path, label_set=label_set, detector="none")
        assert (predictor.head, predictor.labels.name) == (head, answered)
        for name in ("best.pth", "best.onnx"):
            scored = load_checkpoint(tmp_path / "two" / name, label_set=label_set)
            assert scored.labels == (LABEL_SETS["ferplus8"] if head == "votes" and label_set else LABEL_SETS["fer7"])
    with torch.inference_mode():
        softened = checkpoint.model(images).logits / network.temperatures["votes"]
        np.testing.assert_allclose(eight.model(images).logits, softened, atol=1e-5)


def test_without_a_validation_split_nothing_is_fitted(
    trained: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, alone = tmp_path / "a.onnx", shutil.copy(trained / "best.pth", tmp_path)  # without a record of its training
    assert export.main([str(alone), str(out)]) == 0  # the folder's own parquet files, if any, are of another split
    assert OnnxNetwork(out).temperatures == {"logits": 1.0} and OnnxNetwork(out).info["epochs"] is None
    planned = json.loads((trained / "run.json").read_text(encoding="utf-8"))["args"]["epochs"]
    assert OnnxNetwork(exported).info["epochs"] == planned > 0
    assert "temperatures: none, for want of validation pictures" in capsys.readouterr().out


def test_the_parquets_of_the_run_or_of_this_folder_are_used_by_themselves(
    trained: Path, exported: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = shutil.copy(trained / "best.pth", tmp_path)
    for folder, source in ((tmp_path, trained), (drawn, alone)):
        monkeypatch.chdir(folder)
        assert export.main([str(source), str(tmp_path / "a.onnx")]) == 0
        assert OnnxNetwork(tmp_path / "a.onnx").temperatures == OnnxNetwork(exported).temperatures


def test_rows_found_by_themselves_must_belong_to_the_network(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_labels(*_: object, **__: object) -> None:
        raise evaluate.EvaluationError("labelled anew")

    monkeypatch.setattr(export, "check_belongs", other_labels)
    assert export.main([str(trained), str(tmp_path / "a.onnx")]) == 0
    assert "note: labelled anew\n" in (out := capsys.readouterr().out) and "temperatures: none" in out
    assert export.main([str(trained), str(tmp_path / "a.onnx"), "--val_meta", "metadata_val.parquet"]) == 2
    (tmp_path / "folder.onnx").mkdir()
    assert export.main([str(trained), str(tmp_path / "folder.onnx")]) == 2
    assert "folder.onnx is a folder – give the name of a file" in capsys.readouterr().err


def test_every_kind_of_file_is_scored_for_itself(
    trained: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Happy(torch.nn.Module):  # in the place of the written files
        def __init__(self, network: OnnxNetwork) -> None:
            super().__init__()

        def forward(self, images: torch.Tensor) -> models.Output:
            logits = torch.zeros(len(images), 8)
            logits[:, LABEL_SETS["affectnet8"].index("happy")] = 1.0
            return models.Output(logits, None)

    monkeypatch.setattr(export, "OnnxModule", Happy)
    monkeypatch.setattr(export, "largest_difference", lambda *_: 0.0)
    assert export.main([str(trained), str(tmp_path / "a.onnx"), *metas(drawn), "--half"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines if "accuracy on the validation split" in line]
    truth = FERDataset(drawn / "metadata_val.parquet").y_cls
    happy = (truth == LABEL_SETS["affectnet8"].index("happy")).double().mean().item()
    accuracy = load_checkpoint(trained / "best.pth").info["metrics"]["accuracy"]
    assert happy != accuracy
    said = [(first, last) for first, *_, last in words]
    assert said == [("checkpoint", f"{accuracy:.4f}"), ("float32", f"{happy:.4f}"), ("half", f"{happy:.4f}")]


def test_the_head_that_is_scored_is_the_one_named() -> None:
    output = models.Output(torch.zeros(2, 7), None, torch.ones(2, 8))
    network = torch.nn.Identity()
    for name in ("logits", "votes"):
        assert torch.equal(export.HeadFirst(network, name)(output).logits, getattr(output, name))  # type: ignore[arg-type]


def test_a_file_that_would_answer_otherwise_is_not_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for difference in (2e-4, float("nan")):
        monkeypatch.setattr(export, "largest_difference", lambda *_, difference=difference: difference)
        error = error_of(capsys, trained, tmp_path / "a.onnx")
        assert "answers otherwise" in error and not list(tmp_path.iterdir())


def test_the_difference_is_measured(trained: Path, exported: Path) -> None:
    checkpoint = load_checkpoint(trained / "best.pth")
    images = torch.randn(4, 1, 24, 24)
    assert export.largest_difference(checkpoint, exported, images) < 1e-4
    with torch.no_grad():
        checkpoint.model.classifier.bias[2] += 0.5
    assert export.largest_difference(checkpoint, exported, images) == pytest.approx(0.5, abs=1e-4)


def test_a_later_output_that_is_no_number_counts(trained: Path, exported: Path) -> None:
    checkpoint = load_checkpoint(trained / "best.pth")
    assert checkpoint.model.regressor is not None
    with torch.no_grad():
        checkpoint.model.regressor.bias[0] = math.nan  # `affect` comes after `logits`
    assert math.isnan(export.largest_difference(checkpoint, exported, torch.randn(4, 1, 24, 24)))


@pytest.mark.parametrize(("flag", "name"), [(None, "best.onnx"), ("--half", "best_half.onnx"), ("--int8", "best_int8.onnx")])
def test_names_of_files_beside_the_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str | None, name: str
) -> None:
    shutil.copy(trained / "best.pth", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "export", lambda checkpoint, source, out, **_: [f"{out.write_bytes(b'0')} byte"])
    assert export.main([str(tmp_path / "best.pth"), *([flag] if flag else [])]) == 0
    assert {path.name for path in tmp_path.glob("*.onnx")} == {name}


def test_what_cannot_be_exported(
    trained: Path,
    exported: Path,
    drawn: Path,
    pixels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "not found" in error_of(capsys, tmp_path / "none.pth")
    assert "must end in .onnx" in error_of(capsys, trained, tmp_path / "a.pth")
    assert "an ONNX file already" in error_of(capsys, exported)
    alone = shutil.copy(trained / "best.pth", tmp_path)  # without a record of its training
    assert "give --train_meta" in error_of(capsys, alone, tmp_path / "a.onnx", "--int8")
    assert "none.parquet not found" in error_of(capsys, trained, "--train_meta", tmp_path / "none.parquet")
    assert "--calibration" in error_of(capsys, trained, "--int8", "--calibration", "0", *metas(drawn))
    train_meta, val_meta = metas(drawn)[1::2]
    assert "holds rows of val, wanted is train" in error_of(capsys, trained, "--train_meta", val_meta)
    assert "holds rows of train, wanted is val" in error_of(capsys, trained, "--val_meta", train_meta)
    error = error_of(capsys, trained, tmp_path / "a.onnx", *metas(pixels))
    assert "was trained on another split than that of" in error and "--cross_dataset" not in error
    assert "and leave out --detector_model" in error_of(capsys, trained, *metas(drawn), "--detector_model", val_meta)
    named = str(tmp_path / "none.onnx")
    monkeypatch.setenv("FER_DETECTOR", named)
    error = error_of(capsys, trained, *metas(drawn), "--detector_model", named)
    assert error.endswith("FER_DETECTOR names, is not there – unset it\n")  # this script has no --detector


def test_pictures_that_have_moved(
    trained: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):  # relative to this folder, where there are none
        shutil.copy(drawn / f"metadata_{split}.parquet", tmp_path)
    shutil.copy(trained / "best.pth", tmp_path)  # without a record of where they were
    root = str(drawn / read_metadata(drawn / "metadata_val.parquet")[1]["data_root"])
    assert export.main(["best.pth", "plain.onnx"]) == 0  # it needs none
    said = capsys.readouterr().out
    assert said.count("not found – say where the data is: --data_root DIR") == 2 and "temperatures: none" in said
    assert "--data_root DIR" in error_of(capsys, "best.pth", "--val_meta", "metadata_val.parquet")
    assert export.main(["best.pth", "scored.onnx", "--data_root", root]) == 0
    assert "note: " not in (said := capsys.readouterr().out) and "temperatures: affectnet8 " in said
    (tmp_path / "run.json").write_text(json.dumps({"args": {"data_root": root}}), encoding="utf-8")
    assert export.main(["best.pth", "scored.onnx"]) == 0 and "temperatures: affectnet8 " in capsys.readouterr().out


# How faces lie in the training pictures


@pytest.fixture(autouse=True)
def no_yunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector of a fresh clone, whatever this machine has."""
    monkeypatch.setattr(export, "find_yunet", lambda model=None: model)


def test_crops_are_measured_by_both_detectors(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YuNet finds a face in two of three pictures, the cascade two faces in every third and one in the others."""
    dataset = FERDataset(drawn / "metadata_train.parquet", preprocess=Preprocess(48, 1, (0.5,), (0.5,), margin=0.3))
    calls = {"yunet": 0, "haar": 0}

    def yunet(image: np.ndarray) -> list[Face]:
        assert image.shape == (192, 192, 3)
        calls["yunet"] += 1
        moved = 0.96 * (calls["yunet"] % 2)  # half a hundredth of the side, on average
        places = tuple((19.2 * at + moved, 19.2 * (at + 1)) for at in range(5))
        return [Face(10, 10, 100, 120, 0.9, places)] if calls["yunet"] % 3 else []

    def haar(image: np.ndarray) -> list[Face]:
        calls["haar"] += 1
        return [Face(0, 0, 160, 150, math.nan)] * (1 if calls["haar"] % 3 else 2)

    monkeypatch.setattr(export, "make_detector", lambda name, model: (yunet, name))
    monkeypatch.setattr(export, "haar_faces", haar)
    preprocess, line = export.measure_crops(dataset, "yunet.onnx", 60)
    assert preprocess.landmarks is not None
    assert preprocess.landmarks[::2] == pytest.approx([0.0025, 0.1025, 0.2025, 0.3025, 0.4025], abs=1e-4)
    assert preprocess.landmarks[1::2] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], abs=1e-4)
    assert preprocess.margin == pytest.approx(0.1) and calls["yunet"] == 60  # (192 / 160 − 1) / 2
    assert line == "crops: landmarks of 40, boxes of 40 of 60 training pictures; margin 0.1"
    monkeypatch.setattr(export, "make_detector", lambda name, model: (lambda image: [], name))
    assert export.measure_crops(dataset, "yunet.onnx", 60)[0].landmarks is None


def test_what_was_measured_is_in_the_file(
    trained: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tuple(range(10))
    monkeypatch.setattr(
        export, "measure_crops", lambda dataset, model, count: (replace(dataset.preprocess, landmarks=template), "measured")
    )
    flags = [str(trained), str(tmp_path / "a.onnx"), *metas(drawn), "--detector_model", "yunet.onnx"]
    assert export.main(flags) == 0
    assert OnnxNetwork(tmp_path / "a.onnx").preprocess.landmarks == template
    assert capsys.readouterr().out.startswith("measured\n")


@pytest.mark.skipif("YUNET" not in os.environ, reason="YUNET is not set: path of YuNet's ONNX file")
@pytest.mark.skipif("FER2013" not in os.environ, reason="FER2013 is not set: path of fer2013.parquet")
def test_faces_of_fer2013_lie_alike(tmp_path: Path) -> None:
    assert metadata_parallel.main(["--data", os.environ["FER2013"], "--out", str(tmp_path)]) == 0
    dataset = FERDataset(tmp_path / "metadata_train.parquet", preprocess=Preprocess(48, 1, (0.5,), (0.5,)))
    preprocess, _ = export.measure_crops(dataset, os.environ["YUNET"], 60)
    assert preprocess.landmarks is not None
    x, y = np.array(preprocess.landmarks).reshape(5, 2).T
    assert x[0] + x[1] == pytest.approx(1, abs=0.05) and x[3] + x[4] == pytest.approx(1, abs=0.05)  # in the middle
    assert 0.3 < y[0] < 0.45 and 0.7 < y[3] < 0.8 and 0.3 < x[1] - x[0] < 0.45


# Reading such files


def test_a_packed_file_is_the_same_network(exported: Path, trained: Path, drawn: Path, tmp_path: Path) -> None:
    packed, again = tmp_path / "Short.onnx.GZ", tmp_path / "again.onnx.gz"
    packed.write_bytes(gzip.compress(exported.read_bytes()))
    assert export.main([str(trained), str(again), *metas(drawn)]) == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == [packed.name, again.name]
    assert again.read_bytes()[4:8] == bytes(4)  # no time of packing: the same network has the same bytes
    plain = OnnxNetwork(exported)
    images = (
        np.random.default_rng(0).normal(size=(3, 1, plain.preprocess.size_px, plain.preprocess.size_px)).astype(np.float32)
    )
    for path in (packed, again):
        network = OnnxNetwork(path)
        assert network.info == plain.info and network.temperatures == plain.temperatures
        np.testing.assert_array_equal(network(images)["logits"], plain(images)["logits"])
    assert evaluate.digests([packed]) == evaluate.digests([exported])  # records name the network, not how it is kept
    assert load_checkpoint(packed).labels == load_checkpoint(exported).labels
    assert isinstance(EmotionPredictor(packed, detector="none").network, OnnxNetwork)
    assert evaluate.output_folder([again], None, own=None) == Path("runs/again")


@pytest.mark.parametrize("damage", ["short", "plain", "broken"])
def test_a_packed_file_that_is_damaged_is_named(exported: Path, tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(exported.read_bytes())
    path = tmp_path / "a.onnx.gz"
    middle = bytes(byte ^ 0xFF for byte in packed[1000:1100])
    path.write_bytes({"short": packed[:-100], "plain": b"no gzip", "broken": packed[:1000] + middle + packed[1100:]}[damage])
    with pytest.raises(ModelError, match=r"a\.onnx\.gz cannot be unpacked .* – copy or export it again"):
        OnnxNetwork(path)


def test_other_onnx_files_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not found"):
        OnnxNetwork(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network", encoding="utf-8")
    with pytest.raises(ModelError, match="no ONNX file that can be run"):
        OnnxNetwork(tmp_path / "text.onnx")
    model = onnx.load(str(exported))
    stored = json.loads(model.metadata_props[0].value)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(stored | {"format": 99})})
    onnx.save(model, str(tmp_path / "new.onnx"))
    with pytest.raises(ModelError, match="has format 99"):
        OnnxNetwork(tmp_path / "new.onnx")
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(ModelError, match="not a network of this project"):
        OnnxNetwork(tmp_path / "bare.onnx")


def test_every_network_can_be_exported(tmp_path: Path) -> None:
    """The ones that differ in kind: plain and residual, windows that overhang (5 px to 3), attention, cosine head."""
    for name, size_px, options in (
        ("fernet", 40, {"width": 8, "attention": "se"}),
        ("resnet34_attention", 32, {}),
        ("lightcnn", 32, {"head": "arcface"}),
    ):
        channels = models.MODELS[name].channels
        preprocess = Preprocess(size_px, channels, (0.5,) * channels, (0.25,) * channels)
        model = build_model(name, classes=7, affect=False, preprocess=preprocess, **options).eval()  # type: ignore[arg-type]
        description = describe(name, labels=LABEL_SETS["fer7"], preprocess=preprocess, affect=False, **options)
        save_checkpoint(tmp_path / f"{name}.pth", description | {"state_dict": model.state_dict()})
        assert export.main([str(tmp_path / f"{name}.pth")]) == 0, name
        nodes = onnx.load(str(tmp_path / f"{name}.onnx")).graph.node
        pools = [{a.name: a.i for a in node.attribute} for node in nodes if node.op_type == "AveragePool"]
        assert not any(pool.get("ceil_mode") and pool.get("count_include_pad") for pool in pools)  # runtimes differ on these
        assert name != "fernet" or pools
