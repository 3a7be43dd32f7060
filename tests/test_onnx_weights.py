"""Networks that are put back from their ONNX files: they answer as before, learn from there, or are refused."""

import gzip
import json
import shutil
import sys
from pathlib import Path

from faces import Preprocess

import numpy as np
import pytest
import torch
from conftest import error_of, short_training
from torch import nn

import export
import train
from labels import LABEL_SETS
from models import build_model, describe, load_checkpoint, save_checkpoint
from onnx_network import ModelError
from onnx_weights import read_weights, trainable

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-export.txt")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install -r requirements-export.txt")

PREPROCESS = Preprocess(32, 1, (0.5,), (0.25,))


def exported(folder: Path, name: str, kind: str, **options: object) -> tuple[Path, Path]:
    """A checkpoint of a network whose BatchNorm does something, and its ONNX file."""
    torch.manual_seed(0)
    arguments: dict[str, object] = {"affect": True, **options}
    model = build_model(name, classes=7, preprocess=PREPROCESS, **arguments)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    description = describe(name, labels=LABEL_SETS["fer7"], preprocess=PREPROCESS, **arguments)  # type: ignore[arg-type]
    save_checkpoint(folder / "best.pth", description | {"state_dict": model.state_dict()})
    checkpoint, path = load_checkpoint(folder / "best.pth"), folder / "float32.onnx"
    export.write_float32(checkpoint, path)
    if kind == "half":
        export.write_half(path, folder / "half.onnx")
    elif kind == "int8":
        export.write_int8(path, folder / "int8.onnx", list(pictures(16)))
    export.write_metadata(folder / f"{kind}.onnx", export.describe_file(checkpoint, {}))
    return folder / "best.pth", folder / f"{kind}.onnx"


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(1))


VOTED = {"width": 8, "attention": "cbam", "votes": True}


def test_weights_of_a_packed_file(tmp_path: Path) -> None:
    _, path = exported(tmp_path, "lightcnn", "int8")
    packed = tmp_path / "int8.onnx.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    plain, same = read_weights(path), read_weights(packed)
    assert plain.keys() == same.keys() and all(np.array_equal(plain[name], same[name]) for name in plain)


@pytest.mark.parametrize(
    ("name", "options", "kind", "close"),
    [
        ("fernet", VOTED, "float32", 1e-5),
        ("fernet", VOTED, "half", 1e-2),
        ("fernet", VOTED, "int8", 5e-2),
        ("lightcnn", {}, "float32", 1e-5),
        ("resnet18_gray", {"attention": "spatial"}, "float32", 1e-5),
    ],
)
def test_put_back_it_answers_as_before(
    tmp_path: Path, name: str, options: dict[str, object], kind: str, close: float
) -> None:
    source, file = exported(tmp_path, name, kind, **options)
    before, images = load_checkpoint(source), pictures(32)
    again = trainable(file, images)
    assert again.labels == before.labels and again.preprocess == before.preprocess
    with torch.no_grad():
        wanted, found = before.model(pictures(8)), again.model(pictures(8))
    for head, values in wanted._asdict().items():
        if values is not None:
            torch.testing.assert_close(getattr(found, head), values, rtol=0, atol=close * float(values.abs().max()))
    # Its BatchNorm is that of these pictures: it answers alike while it trains.
    training = again.model.train()
    for module in training.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        alike = training(images).logits
        expected = before.model(images).logits
    torch.testing.assert_close(alike, expected, rtol=0, atol=2 * close * float(expected.abs().max()))
    spread = [values for key, values in again.model.state_dict().items() if key.endswith("running_var")]
    assert spread and all((values > 0).all() for values in spread)


def test_integers_are_scaled_by_channel(tmp_path: Path) -> None:
    """Against the float32 file: half a step at most, of the 126 of each channel, or of the whole tensor in linear layers."""
    _, file = exported(tmp_path, "fernet", "int8", width=8)
    plain, rounded = read_weights(tmp_path / "float32.onnx"), read_weights(file)
    compared = [name for name, values in plain.items() if values.ndim > 1 and name in rounded]
    assert "backbone.6.conv1.weight" in compared and "classifier.weight" in compared
    for name in compared:
        rows = np.abs(plain[name]).reshape(len(plain[name]), -1).max(axis=1)
        rows = np.full_like(rows, rows.max()) if plain[name].ndim == 2 else rows
        off = np.abs(plain[name] - rounded[name]).reshape(len(rows), -1).max(axis=1)
        assert (off <= rows / 63 * 0.51 + 1e-7).all(), name
        assert off.max() > 0


def test_a_training_goes_on_from_an_onnx_file(
    trained: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metas = ["--train_meta", str(drawn / "metadata_train.parquet"), "--val_meta", str(drawn / "metadata_val.parquet")]
    assert export.main([str(trained), str(tmp_path / "short.onnx"), *metas, "--int8", "--calibration", "40"]) == 0
    capsys.readouterr()
    flags = [*short_training(drawn, tmp_path), "--epochs", "1", "--lr", "1e-6", "--init", str(tmp_path / "short.onnx")]
    assert train.main([*flags, "--exp", "on"]) == 0
    said = capsys.readouterr().out
    assert "short.onnx: 34 of 34 backbone tensors loaded; head kept by name" in said and "new: nothing" in said
    before = [json.loads(line) for line in (trained / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    after = json.loads((tmp_path / "on" / "history.jsonl").read_text(encoding="utf-8"))
    assert after["val_loss"] == pytest.approx(min(line["val_loss"] for line in before), abs=0.1)


def test_what_cannot_be_trained_on(
    trained: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = exported(tmp_path, "lightcnn", "float32", head="arcface")  # its class vectors are stored as directions
    with pytest.raises(ModelError, match=r"cannot be trained on, for its classifier\.weight – give the checkpoint"):
        trainable(file, pictures(4))
    source, file = exported(tmp_path, "fernet", "float32", width=8)
    checkpoint = load_checkpoint(source)
    described = export.describe_file(checkpoint, {})
    export.write_metadata(file, described | {"model_args": described["model_args"] | {"width": 16}})
    with pytest.raises(ModelError, match=r"cannot be trained on, for its backbone\.0\.weight"):
        trainable(file, pictures(4))
    export.write_metadata(file, {key: value for key, value in described.items() if key != "model_args"})
    with pytest.raises(ModelError, match="does not say how its network is built"):
        trainable(file, pictures(4))
    # A file whose graph does more than its weights tell.
    export.write_metadata(file, described)
    model = onnx.load(str(file))
    turned = onnx.helper.make_node("Neg", ["logits_before"], ["logits"])
    for node in model.graph.node:
        node.output[:] = ["logits_before" if name == "logits" else name for name in node.output]
    model.graph.node.append(turned)
    onnx.save(model, str(file))
    with pytest.raises(ModelError, match="put back, it answers otherwise"):
        trainable(file, pictures(32))
    # And by train.py, in one line.
    shutil.copy(file, tmp_path / "a.onnx")
    error = error_of(capsys, *short_training(drawn, tmp_path), "--init", str(tmp_path / "a.onnx"))
    assert "a.onnx cannot be trained on" in error
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match=r"pip install -r requirements-export\.txt"):
        read_weights(file)
