"""Networks, freezing, checkpoints, weights from elsewhere, and the choice of device and precision."""

import pickle
import urllib.error
from collections import OrderedDict
from pathlib import Path
from typing import Any

from faces import Preprocess

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import backbones
import models
from labels import LABEL_SETS
from models import (
    MODELS,
    VGGFACE2_CKPT,
    ModelError,
    build_model,
    load_backbone,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
)

GREY_48 = Preprocess(48, 1, (0.5,), (0.5,))
GREY_16 = Preprocess(16, 1, (0.5,), (0.5,))
COLOUR_32 = Preprocess(32, 3, models.IMAGENET_MEAN, models.IMAGENET_STD)
FER7 = LABEL_SETS["fer7"]


def light(*, affect: bool = True, preprocess: Preprocess = GREY_16, seed: int = 0) -> models.ExpressionNet:
    """A light CNN for FER2013's classes with fixed weights, whose BatchNorm has seen data."""
    torch.manual_seed(seed)
    model = build_model("lightcnn", classes=7, affect=affect, preprocess=preprocess)
    model.train()
    with torch.no_grad():
        model(torch.randn(8, preprocess.channels, preprocess.size_px, preprocess.size_px))
    return model.eval()


def contents_of(model: models.ExpressionNet, preprocess: Preprocess = GREY_16, **more: Any) -> dict[str, Any]:
    """What `train.py` would store of a light CNN."""
    description = models.describe("lightcnn", labels=FER7, preprocess=preprocess, affect=model.regressor is not None)
    return description | {"state_dict": model.state_dict(), "epoch": 3, "metrics": {"accuracy": 0.5}} | more


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Networks


@pytest.mark.parametrize("affect", [True, False])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_network_gives_logits_and_affect(name: str, affect: bool) -> None:
    spec = MODELS[name]
    preprocess = Preprocess(32, spec.channels, spec.mean, spec.std)
    model = build_model(name, classes=8, affect=affect, preprocess=preprocess).eval()
    with torch.no_grad():
        output = model(torch.randn(2, spec.channels, 32, 32))
    assert output.logits.shape == (2, 8)
    assert (output.affect.shape == (2, 2)) if affect else (output.affect is None)
    assert model.dropout.p == (0.0 if name == "lightcnn" else spec.dropout)


def test_parameters_of_the_light_cnn() -> None:
    convolutions = 9 * (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    batch_norms = 2 * (32 + 32 + 64 + 64 + 128 + 128)
    dense = (128 * 6 * 6 + 1) * 256 + (256 + 1) * 128
    heads = (128 + 1) * (7 + 2)
    assert parameters_of(build_model("lightcnn", classes=7, affect=True, preprocess=GREY_48)) == (
        convolutions + batch_norms + dense + heads
    )
    assert parameters_of(build_model("lightcnn", classes=7, affect=False, preprocess=GREY_48)) == (
        convolutions + batch_norms + dense + (128 + 1) * 7
    )


@pytest.mark.parametrize(
    ("name", "published"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_parameters_of_the_resnets(name: str, published: int) -> None:
    """torchvision publishes the number with a head for 1,000 classes."""
    features = 2048 if name == "resnet50" else 512
    model = build_model(name, classes=8, affect=True, preprocess=COLOUR_32)
    assert parameters_of(model) == published - (features + 1) * 1000 + (features + 1) * (8 + 2)


def test_light_cnn_is_the_documents() -> None:
    layers = list(build_model("lightcnn", classes=7, affect=False, preprocess=GREY_48).backbone.children())
    kinds = [type(layer).__name__ for layer in layers]
    block = ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["MaxPool2d"]
    assert kinds == block * 3 + ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)] == [
        (4608, 256),
        (256, 128),
    ]
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.3]


def test_grey_resnet_and_dropout() -> None:
    model = build_model("resnet18", classes=7, affect=True, preprocess=Preprocess(32, 1, (0.5,), (0.5,)), dropout=0.25)
    assert model.dropout.p == 0.25
    assert model.eval()(torch.randn(2, 1, 32, 32)).logits.shape == (2, 7)


def fernet_parameters(width: int) -> int:
    """Convolutions and BatchNorms of the backbone, counted block by block."""
    half, total = width // 2, 0
    total += 9 * (half + half * width) + 2 * (half + width)
    width_in = width
    for out in (width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width):
        total += 9 * (width_in * out + out * out) + 4 * out
        total += 0 if width_in == out else width_in * out + 2 * out
        width_in = out
    return total


@pytest.mark.parametrize("width", [16, 48])
def test_parameters_of_fernet(width: int) -> None:
    model = build_model("fernet", classes=7, affect=False, preprocess=GREY_48, width=width)
    assert parameters_of(model) == fernet_parameters(width) + (8 * width + 1) * 7
    assert [layer.drop for layer in model.backbone.modules() if isinstance(layer, backbones.ResidualBlock)] == [0.0] * 8


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 12), ("stride2", 24), ("pool", 24), ("stride1", 48)])
def test_stems_of_fernet(stem: str, side: int) -> None:
    seen: list[torch.Size] = []
    model = build_model("fernet", classes=7, affect=False, preprocess=GREY_48, width=8, stem=stem)
    first = next(layer for layer in model.backbone.modules() if isinstance(layer, backbones.ResidualBlock))
    first.register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0].shape))
    assert model.eval()(torch.zeros(1, 1, 48, 48)).logits.shape == (1, 7)
    assert seen == [(1, 8, side, side)]


def test_a_residual_block_starts_as_its_shortcut_and_adds_what_it_learns() -> None:
    torch.manual_seed(0)
    block = backbones.ResidualBlock(4, 6, stride=2, attention="none", drop=0.0).eval()
    maps = torch.randn(3, 4, 7, 7)  # odd: the last row and column are averaged alone
    shortcut = block.shortcut(maps)
    assert shortcut.shape == (3, 6, 4, 4)
    torch.testing.assert_close(block(maps), shortcut.relu())
    nn.init.constant_(block.bn2.weight, 0.7)
    inner = nn.functional.conv2d(maps, block.conv1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5
    change = nn.functional.conv2d(inner.relu(), block.conv2.weight, padding=1) * 0.7 / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(maps), (shortcut + change).relu(), atol=1e-5, rtol=1e-5)
    same = backbones.ResidualBlock(4, 4, stride=1, attention="se", drop=0.0)
    assert isinstance(same.shortcut, nn.Identity) and isinstance(same.attention, backbones.ChannelAttention)


@pytest.mark.parametrize(("stride", "height", "width"), [(1, 3, 3), (2, 6, 6), (2, 5, 4)])
def test_small_maps_have_the_gradients_of_a_convolution(stride: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    plain = nn.functional.conv2d(maps, weight, stride=stride, padding=1)
    ours = backbones.SmallMaps.apply(maps, weight, stride)
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (maps, weight), upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, (maps, weight), upstream), expected)
    ours = backbones.SmallMaps.apply(maps.detach(), weight, stride)
    torch.testing.assert_close(torch.autograd.grad(ours, (weight,), upstream), expected[1:])


@pytest.mark.parametrize(
    ("places", "trains", "amp"), [(36, True, True), (49, True, True), (36, False, True), (36, True, False)]
)
def test_convolutions_of_small_maps_are_a_product_where_they_are_trained_in_bfloat16(
    places: int, trains: bool, amp: bool
) -> None:
    torch.manual_seed(0)
    convolution = backbones.Convolution(8, 16, stride=1).train(trains)
    maps = torch.randn(4, 8, round(places**0.5), round(places**0.5))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        said = convolution(maps)
        plain = nn.functional.conv2d(maps, convolution.weight, padding=1)
    assert ("SmallMaps" in type(said.grad_fn).__name__) == (places <= 36 and trains and amp)
    assert said.dtype == plain.dtype == (torch.bfloat16 if amp else torch.float32)
    torch.testing.assert_close(said, plain)
    upstream = torch.randn_like(plain)
    gradients = [torch.autograd.grad(output, convolution.weight, upstream)[0] for output in (said, plain)]
    assert gradients[0].dtype == torch.float32
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)


def test_stochastic_depth_leaves_blocks_out_of_some_images_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    block = backbones.ResidualBlock(4, 4, stride=1, attention="none", drop=0.25)
    nn.init.constant_(block.bn2.weight, 1.0)
    maps = torch.full((4000, 4, 2, 2), 50.0) + torch.randn(1, 4, 2, 2)  # so large that the last ReLU changes nothing
    block.bn1.eval(), block.bn2.eval()
    with torch.no_grad():
        change = (block(maps) - maps)[:, 0, 0, 0]
        full = block.eval()(maps) - maps
    out = change.abs() < 1e-4
    assert 0.22 < out.float().mean() < 0.28
    torch.testing.assert_close(change[~out], full[~out][:, 0, 0, 0] / 0.75, rtol=1e-3, atol=1e-3)
    drops = [
        layer.drop
        for layer in backbones.FERNet(channels=1, width=8, depth=2, stem="stride2", attention="none", stochastic_depth=0.7)
        if isinstance(layer, backbones.ResidualBlock)
    ]
    assert drops == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_depth_is_the_number_of_blocks_at_each_width() -> None:
    for depth in (1, 3):
        network = build_model("fernet", classes=7, affect=False, preprocess=GREY_48, width=8, depth=depth)
        blocks = [layer for layer in network.backbone.modules() if isinstance(layer, backbones.ResidualBlock)]
        assert [block.conv2.out_channels for block in blocks] == sorted([8, 16, 32, 64] * depth)
        assert [block.conv1.stride[0] for block in blocks].count(2) == 3
        assert network(torch.zeros(1, 1, 48, 48)).logits.shape == (1, 7)


def test_unknown_network() -> None:
    with pytest.raises(KeyError):
        build_model("vgg", classes=7, affect=True, preprocess=GREY_48)


# Freezing


def test_freeze_decides_what_requires_a_gradient() -> None:
    model = build_model("resnet18", classes=8, affect=True, preprocess=COLOUR_32)
    model.freeze(MODELS["resnet18"].stages[0])
    trained = {
        name.split(".")[1] if name.startswith("backbone") else name.split(".")[0]
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert trained == {"layer4", "classifier", "regressor"}
    model.freeze(MODELS["resnet18"].stages[1])
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1", "layer2"}
    model.freeze(())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_freeze_refuses_what_is_not_there() -> None:
    with pytest.raises(KeyError):
        light().freeze(["layer1"])


def test_frozen_batch_norm_stays_still_in_training() -> None:
    torch.manual_seed(1)
    model = build_model("resnet18", classes=8, affect=True, preprocess=COLOUR_32)
    model.train()
    model.freeze(("conv1", "bn1", "layer1"))
    for mode in (True, False, True):  # what a loop of training and validation does
        model.train(mode)
    assert model.training and model.backbone.layer4.training  # type: ignore[union-attr]
    assert not model.backbone.bn1.training and not model.backbone.layer1[0].bn2.training  # type: ignore[union-attr,index]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(2):
        output = model(torch.randn(4, 3, 32, 32))
        optimizer.zero_grad()
        (output.logits.square().mean() + output.affect.square().mean()).backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    still = {key for key in before if key.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))}
    assert len(still) == 1 + 5 + 2 * 2 * 6
    assert moved == set(before) - still  # weight decay does not move the frozen ones either


# Checkpoints


@pytest.mark.parametrize("affect", [True, False])
def test_checkpoint_round_trip(tmp_path: Path, affect: bool) -> None:
    model = light(affect=affect)
    save_checkpoint(tmp_path / "new" / "best.pth", contents_of(model, exp="a", split_id="0123"))
    checkpoint = load_checkpoint(tmp_path / "new" / "best.pth")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["best.pth"]  # no temporary file is left
    images = torch.randn(5, 1, 16, 16)
    with torch.no_grad():
        expected, found = model(images), checkpoint.model(images)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.affect, expected.affect) if affect else found.affect is None
    assert checkpoint.labels is FER7 and checkpoint.preprocess == GREY_16
    assert not checkpoint.model.training
    assert checkpoint.info["model"] == "lightcnn" and checkpoint.info["label_set"] == "fer7"
    assert (checkpoint.info["exp"], checkpoint.info["split_id"], checkpoint.info["epoch"]) == ("a", "0123", 3)
    assert checkpoint.info["versions"]["torch"] == str(torch.__version__)
    assert "state_dict" not in checkpoint.info


def test_a_custom_label_set_keeps_its_names(tmp_path: Path) -> None:
    contents = contents_of(light()) | {"labels": [*FER7.names[1:], "angry"]}
    save_checkpoint(tmp_path / "custom.pth", contents)
    assert load_checkpoint(tmp_path / "custom.pth").labels == models.LabelSet("custom", (*FER7.names[1:], "angry"))


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.pth"
    save_checkpoint(path, contents_of(light()))
    before = path.read_bytes()

    def half_written(contents: Any, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, contents_of(light(seed=1)))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(contents: Any, target: Path) -> None:
        target.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ModelError, match=r"best.pth cannot be written – is the disk full"):
        save_checkpoint(tmp_path / "best.pth", contents_of(light()))
    assert not list(tmp_path.iterdir())


def refused(path: Path) -> str:
    """The line with which a file is refused."""
    with pytest.raises(ModelError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


class Dangerous:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "executed")


def test_pickled_objects_are_never_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"state_dict": Dangerous(witness)}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Dangerous(witness), protocol=2))
    torch.save(light(), tmp_path / "module.pth")
    for name in ("torch.pth", "plain.pth", "module.pth"):
        assert "not a checkpoint that can be read safely" in refused(tmp_path / name)
    assert not witness.exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    assert "not found" in refused(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("accuracy 0.9\n" * 100)
    assert "safely" in refused(tmp_path / "text.pth")
    (tmp_path / "empty.pth").touch()
    assert "safely" in refused(tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds a list" in refused(tmp_path / "list.pth")
    torch.save(light().state_dict(), tmp_path / "bare.pth")
    assert "lacks format, labels, model, model_args, preprocess, state_dict" in refused(tmp_path / "bare.pth")
    whole = tmp_path / "whole.pth"
    save_checkpoint(whole, contents_of(light()))
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:5000])
    assert "safely" in refused(tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99, this program reads 1"),
        ({"model": "vgg"}, "'vgg', which is none of lightcnn"),
        ({"model": "resnet18", "preprocess": COLOUR_32.to_dict()}, "do not fit the network resnet18"),
        ({"labels": ["happy", "sad"]}, "do not fit the network lightcnn"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    save_checkpoint(tmp_path / "odd.pth", contents_of(light()) | change)
    assert words in refused(tmp_path / "odd.pth")


# Weights from elsewhere


LAYOUTS = {
    "bare": lambda state: state,
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "backbone": lambda state: {f"backbone.{key}": value for key, value in state.items()},
    "module and backbone": lambda state: {f"module.backbone.{key}": value for key, value in state.items()},
    "state_dict": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
    "model": lambda state: {"model": state},
    "ordered": lambda state: OrderedDict(state),
    "half": lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backbone_weights_in_every_key_layout(layout: str) -> None:
    state = light(seed=1).backbone.state_dict() | {"fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}
    model = light(seed=2)
    head = model.classifier.weight.clone()
    words = load_backbone(model, LAYOUTS[layout](state), origin="file.pth")
    needed = 6 * (1 + 4) + 4  # a weight and four BatchNorm tensors a convolution, two dense layers
    assert words == f"file.pth: {needed} of {needed} backbone tensors loaded"
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if layout == "half" else {"rtol": 0, "atol": 0}
    for key, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, state[key], **tolerance)
    assert torch.equal(model.classifier.weight, head)


def test_resnet50_takes_a_vggface2_file_in_every_key_layout(tmp_path: Path) -> None:
    """A file as those in circulation: torchvision's names, 8,631 people as classes, made from a network of ours."""
    torch.manual_seed(1)
    state = build_model("resnet50", classes=8, affect=True, preprocess=COLOUR_32).backbone.state_dict()
    people = {"fc.weight": torch.zeros(8631, 2048), "fc.bias": torch.zeros(8631)}
    model = build_model("resnet50", classes=8, affect=True, preprocess=COLOUR_32)
    for layout in LAYOUTS.values():
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.zero_()
        torch.save(layout(state | people), tmp_path / "resnet50_vggface2.pth")
        ckpt = str(tmp_path / "resnet50_vggface2.pth")
        words = load_pretrained(model, name="resnet50", weights="auto", vggface2_ckpt=ckpt)
        assert words == f"{ckpt}: 265 of 265 backbone tensors loaded"
        torch.testing.assert_close(
            model.backbone.state_dict()["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"], rtol=1e-3, atol=1e-3
        )


def test_our_own_checkpoint_serves_as_weights() -> None:
    other = light(seed=1)
    model = light(seed=2)
    load_backbone(model, contents_of(other), origin="best.pth")
    assert all(torch.equal(value, other.backbone.state_dict()[key]) for key, value in model.backbone.state_dict().items())


def test_backbone_weights_of_another_network_are_refused() -> None:
    state = light(seed=1).backbone.state_dict()
    model = light(seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dropped = [key for key in state if key.startswith("0.") or "running" in key][:4]  # 30 of 34 is below 90%
    with pytest.raises(ModelError, match=r"file\.pth: only 30 of 34 tensors fit this network .*--weights none"):
        load_backbone(model, {key: value for key, value in state.items() if key not in dropped}, origin="file.pth")
    deeper = {f"26.conv{number}.weight": torch.zeros(1) for number in range(5)}
    assert "not used of the file: 26.conv0.weight" in load_backbone(light(), state | dict([*deeper.items()][:4]), origin="a")
    with pytest.raises(ModelError, match=r"only 40 of its 45 tensors are of use here \(not 26\.conv0\.weight, for one"):
        load_backbone(model, state | deeper, origin="file.pth")
    with pytest.raises(ModelError, match="only 0 of 34"):
        load_backbone(model, {"a": torch.zeros(1)}, origin="file.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_missing_and_misshapen_tensors_are_named() -> None:
    state = light(seed=1).backbone.state_dict()
    state["0.weight"] = torch.zeros(32, 3, 3, 3)
    del state["25.bias"]
    words = load_backbone(light(), state, origin="file.pth")
    found = "file.pth: 32 of 34 backbone tensors loaded; not found: 0.weight, 25.bias"
    assert words == found + "; not used of the file: 0.weight"
    people = {"module.fc.weight": torch.zeros(3, 2), "strange": torch.zeros(1), "epoch": 3}
    assert load_backbone(light(), state | people, origin="file.pth").endswith("; not used of the file: 0.weight, strange")  # type: ignore[arg-type]


def test_vggface2_file_is_taken_where_it_is(tmp_path: Path) -> None:
    state = light(seed=1).backbone.state_dict()
    torch.save({"state_dict": state}, tmp_path / "vggface2.pth")
    for weights in ("auto", "vggface2"):
        model = light(seed=2)
        words = load_pretrained(model, name="lightcnn", weights=weights, vggface2_ckpt=str(tmp_path / "vggface2.pth"))
        assert "34 of 34" in words and "vggface2.pth" in words
        assert torch.equal(model.backbone.state_dict()["0.weight"], state["0.weight"])


def test_none_changes_nothing(tmp_path: Path) -> None:
    model = light(seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    words = load_pretrained(model, name="lightcnn", weights="none", vggface2_ckpt=str(tmp_path / "no.pth"))
    assert words == "random initialisation"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_missing_vggface2_file_names_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no\.pth not found .*--vggface2_ckpt FILE, or --weights imagenet or none"):
        load_pretrained(light(), name="lightcnn", weights="vggface2", vggface2_ckpt=str(tmp_path / "no.pth"))


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
@pytest.mark.parametrize("error", [urllib.error.URLError("no network"), RuntimeError("invalid hash value")])
def test_offline_imagenet_names_weights_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, weights: str
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no weights from an earlier download
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    model = build_model("resnet18", classes=8, affect=True, preprocess=COLOUR_32)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_pretrained(model, name="resnet18", weights=weights, vggface2_ckpt=VGGFACE2_CKPT)
    assert "--weights none" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"mine\.pth not found"):  # not ImageNet's without a word
        load_pretrained(model, name="resnet18", weights="auto", vggface2_ckpt="mine.pth")


def test_imagenet_weights_are_loaded_without_their_head(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(4)
    published = resnet18(weights=None).state_dict()
    asked = []

    def cached(url: str, **_: Any) -> dict[str, Any]:
        asked.append(url)
        return published

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", cached)
    model = build_model("resnet18", classes=8, affect=True, preprocess=COLOUR_32)
    words = load_pretrained(model, name="resnet18", weights="imagenet", vggface2_ckpt="no.pth")
    assert words == "ResNet18_Weights.IMAGENET1K_V1: 100 of 100 backbone tensors loaded"  # 20 × (1 + 4)
    assert load_pretrained(model, name="resnet18", weights="auto", vggface2_ckpt=VGGFACE2_CKPT) == words
    assert asked[0].startswith("https://download.pytorch.org/models/resnet18-")
    assert torch.equal(model.backbone.state_dict()["layer3.0.conv1.weight"], published["layer3.0.conv1.weight"])


def test_imagenet_in_the_place_of_vggface2_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import resnet50

    published = resnet50(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    monkeypatch.chdir(tmp_path)
    model = build_model("resnet50", classes=8, affect=True, preprocess=COLOUR_32)
    words = load_pretrained(model, name="resnet50", weights="auto", vggface2_ckpt=VGGFACE2_CKPT)
    assert words.startswith(f"no {VGGFACE2_CKPT}, so ResNet50_Weights.IMAGENET1K_V1: 265 of 265")


def test_light_cnn_has_no_imagenet_weights() -> None:
    with pytest.raises(ModelError, match="no ImageNet weights for lightcnn – use --weights none"):
        load_pretrained(light(), name="lightcnn", weights="imagenet", vggface2_ckpt="no.pth")


# Device and precision


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    """A machine with so many CUDA devices, with or without MPS."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_choose_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2, mps=True)
    assert [str(models.choose_device(name)) for name in ("auto", "cpu", "cuda:1", "mps")] == ["cuda", "cpu", "cuda:1", "mps"]
    monkeypatch.setenv("LOCAL_RANK", "1")  # of torchrun
    assert [str(models.choose_device(name)) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
    pretend(monkeypatch, mps=True)
    assert str(models.choose_device()) == "mps"
    pretend(monkeypatch)
    assert str(models.choose_device()) == "cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:2", "cuda:x", "cuda:", "mps", "tpu", "", "cpu:y"])
def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, cuda=2 if ":" in name else 0)
    with pytest.raises(ModelError, match=f"device {name} is not available here – use --device auto"):
        models.choose_device(name)


@pytest.mark.parametrize(
    ("kind", "amp", "bfloat16", "dtype", "words"),
    [
        ("cuda", None, True, torch.bfloat16, "bfloat16, which this GPU"),
        ("cuda", None, False, torch.float16, "float16 with loss scaling"),
        ("cuda", True, False, torch.float16, "float16 with loss scaling"),
        ("cuda", False, True, torch.float32, "as asked (--no-amp)"),
        ("cpu", None, True, torch.bfloat16, "which this CPU multiplies itself"),
        ("cpu", None, False, torch.float32, "gains nothing"),
        ("cpu", True, False, torch.bfloat16, "as asked (--amp)"),
        ("cpu", False, True, torch.float32, "as asked (--no-amp)"),
        ("mps", None, True, torch.float32, "float32 on mps"),
        ("mps", True, True, torch.float32, "--amp is not supported"),
    ],
)
def test_choose_precision(
    monkeypatch: pytest.MonkeyPatch, kind: str, amp: bool | None, bfloat16: bool, dtype: torch.dtype, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation)
    monkeypatch.setattr(models, "cpu_multiplies_bfloat16", lambda: bfloat16)
    found, reason = models.choose_precision(torch.device(kind), amp)
    assert found == dtype and words in reason


def test_device_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert models.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"torch {torch.__version__}")
    assert lines[1].startswith("no CUDA device")
    assert lines[2].startswith("would use: cpu, ")


# Heads, attention, stems, other backbones


def test_cosine_head_gives_scaled_cosines() -> None:
    torch.manual_seed(0)
    head = models.CosineClassifier(6, 3, scale=30.0)
    features = torch.randn(4, 6)
    for row, found in zip(features, head(features), strict=True):
        for weight, value in zip(head.weight, found, strict=True):
            expected = 30 * torch.dot(row, weight) / (row.norm() * weight.norm())
            assert value.item() == pytest.approx(expected.item(), abs=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(features).dtype == torch.float32
        torch.testing.assert_close(head(features.bfloat16()), head(7 * features.bfloat16().float()))


def test_head_and_options_survive_a_checkpoint(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "affect": True,
        "dropout": 0.1,
        "head": "arcface",
        "scale": 12.0,
        "attention": "cbam",
        "stem": "stride2",
    }
    model = build_model("resnet18", classes=7, preprocess=COLOUR_32, **arguments).eval()
    description = models.describe("resnet18", labels=FER7, preprocess=COLOUR_32, **arguments)
    save_checkpoint(tmp_path / "best.pth", description | {"state_dict": model.state_dict()})
    found = load_checkpoint(tmp_path / "best.pth").model
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(images).logits, model(images).logits)
    assert found.classifier.scale == 12.0 and found.dropout.p == 0.1


def test_spatial_attention_by_hand() -> None:
    attention = backbones.SpatialAttention(2)
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, 6.0]]]])  # (1, 2, 1, 2): means 2 and 4, maxima 3 and 6
    with torch.no_grad():
        attention.conv.weight.zero_()
        attention.conv.weight[0, 0, 3, 3], attention.conv.weight[0, 1, 3, 3] = 0.5, -1.0
        found = attention(maps)
    weights = torch.sigmoid(torch.tensor([0.5 * 2 - 3, 0.5 * 4 - 6]))
    assert torch.allclose(found, maps * weights)


@pytest.mark.parametrize("maximum", [False, True])
def test_channel_attention_by_hand(maximum: bool) -> None:
    torch.manual_seed(0)
    attention = backbones.ChannelAttention(16, maximum=maximum)
    maps = torch.randn(3, 16, 4, 5)
    with torch.no_grad():
        inner = attention.bottleneck(maps.flatten(2).mean(dim=2))
        if maximum:
            inner += attention.bottleneck(maps.flatten(2).max(dim=2).values)
        for row in range(3):
            for channel in range(16):
                expected = maps[row, channel] * torch.sigmoid(inner[row, channel])
                assert torch.allclose(attention(maps)[row, channel], expected, atol=1e-6)


def test_attention_keeps_the_names_of_the_backbones_tensors() -> None:
    plain = build_model("resnet34", classes=7, affect=False, preprocess=COLOUR_32)
    documented = build_model("resnet34_attention", classes=7, affect=False, preprocess=COLOUR_32)
    extra = set(documented.state_dict()) - set(plain.state_dict())
    assert extra == {"backbone.avgpool.0.conv.weight"} and set(plain.state_dict()) <= set(documented.state_dict())
    line = load_backbone(documented, plain.backbone.state_dict(), origin="imagenet")
    assert "180 of 181" in line and "not found: avgpool.0.conv.weight" in line


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 12), ("stride2", 24), ("pool", 24), ("stride1", 48)])
def test_stems_decide_what_the_first_block_sees(stem: str, side: int) -> None:
    model = build_model("resnet18", classes=7, affect=False, preprocess=Preprocess(48, 1, (0.5,), (0.5,)), stem=stem)
    seen: list[torch.Size] = []
    model.backbone.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))  # type: ignore[union-attr]
    with torch.no_grad():
        model.eval()(torch.randn(1, 1, 48, 48))
    assert seen == [(1, 64, side, side)]


def test_resnet18_gray_has_the_documents_number_of_parameters() -> None:
    model = build_model("resnet18_gray", classes=4, affect=False, preprocess=Preprocess(48, 1, (0.0,), (1.0,)))
    assert parameters_of(model) == 11_176_512 - 2 * 64 * 49 + 4 * 513  # torchvision's without fc, one colour, four classes
    assert 11.1e6 < parameters_of(model) < 11.2e6


def test_vit_wants_whole_patches() -> None:
    with pytest.raises(ModelError, match="--img_size 224"):
        build_model("vit_b_16", classes=7, affect=False, preprocess=Preprocess(40, 3, (0.5,) * 3, (0.5,) * 3))


def test_options_that_a_network_lacks_are_refused() -> None:
    with pytest.raises(ModelError, match="no place for --attention"):
        build_model("vit_b_16", classes=7, affect=False, preprocess=COLOUR_32, attention="se")


# Heads carried over by name, the imbalance-aware study's checkpoints, VGGFace2's preprocessing


def checkpoint_of(model: models.ExpressionNet, labels: models.LabelSet) -> models.Checkpoint:
    return models.Checkpoint(model, labels, GREY_16, {})


def test_heads_are_carried_over_by_name() -> None:
    eight = LABEL_SETS["ferplus8"]
    source = build_model("lightcnn", classes=8, affect=True, preprocess=GREY_16)
    model = light(seed=3)
    line = models.transfer(model, FER7, checkpoint_of(source, eight), origin="a.pth")
    assert line.endswith(f"head kept by name: {', '.join(FER7.names)}; new: nothing")
    for index, name in enumerate(FER7.names):
        assert torch.equal(model.classifier.weight[index], source.classifier.weight[eight.index(name)])
        assert torch.equal(model.classifier.bias[index], source.classifier.bias[eight.index(name)])
    assert torch.equal(model.regressor.weight, source.regressor.weight)  # type: ignore[union-attr]
    back = build_model("lightcnn", classes=8, affect=False, preprocess=GREY_16)
    before = back.classifier.weight.detach().clone()
    line = models.transfer(back, eight, checkpoint_of(model, FER7), origin="b.pth")
    assert line.endswith("new: contempt")
    assert torch.equal(back.classifier.weight[eight.index("contempt")], before[eight.index("contempt")])
    assert not torch.equal(back.classifier.weight[eight.index("happy")], before[eight.index("happy")])


def test_a_head_of_another_kind_is_not_carried_over() -> None:
    source = build_model("lightcnn", classes=7, affect=False, preprocess=GREY_16, head="arcface")
    model = light()
    before = model.classifier.weight.detach().clone()
    line = models.transfer(model, FER7, checkpoint_of(source, FER7), origin="a.pth")
    assert "head kept by name: nothing" in line and torch.equal(model.classifier.weight, before)


def study_checkpoint(head: str) -> tuple[dict[str, Any], models.ExpressionNet]:
    """A checkpoint as the imbalance-aware study saves it, and our network with the same weights."""
    torch.manual_seed(5)
    model = build_model("lightcnn", classes=7, affect=False, preprocess=GREY_48, head=head).eval()
    names = {"weight": "fc.weight", "bias": "fc.bias"} if head == "softmax" else {"weight": "weight"}
    backbone = {f"features.{number}": value for number, value in enumerate(model.backbone.state_dict().values())}
    heads = {names[key]: value for key, value in model.classifier.state_dict().items()}
    return {"epoch": 21, "backbone": backbone, "head": heads, "best_metric": 0.5, "optimizer": {}}, model


@pytest.mark.parametrize("head", ["softmax", "arcface"])
def test_the_studys_checkpoints_are_recognised(tmp_path: Path, head: str) -> None:
    contents, model = study_checkpoint(head)
    torch.save(contents, tmp_path / "E5.pt")
    checkpoint = load_checkpoint(tmp_path / "E5.pt")
    images = torch.randn(3, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(checkpoint.model(images).logits, model(images).logits)
    assert checkpoint.labels.names == ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    assert checkpoint.info["split_id"] is None and checkpoint.info["epoch"] == 21
    assert checkpoint.preprocess == GREY_48


def test_the_studys_layout_with_other_tensors_is_refused(tmp_path: Path) -> None:
    contents, _ = study_checkpoint("softmax")
    contents["head"] = {"fc.weight": torch.zeros(5, 128), "fc.bias": torch.zeros(5)}
    torch.save(contents, tmp_path / "five.pt")
    assert "not those of the light CNN" in refused(tmp_path / "five.pt")
    torch.save(contents | {"head": {"a.weight": torch.zeros(7, 128)}}, tmp_path / "other.pt")
    assert "not those of the light CNN" in refused(tmp_path / "other.pt")


@pytest.mark.parametrize("made_with", ["imagenet", "bgr255"])
def test_the_first_batch_norm_tells_what_the_weights_want(made_with: str) -> None:
    """A ResNet's statistics after a pass over drawn photos, preprocessed in either way, and the choice checked."""
    values = models.VGGFACE2_PREPROCESS[made_with]
    torch.manual_seed(0)
    model = build_model("resnet18", classes=8, affect=True, preprocess=COLOUR_32)
    rng = np.random.default_rng(0)
    photos = [cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (64, 64)) for _ in range(16)]
    batch = torch.from_numpy(np.stack([Preprocess(64, 3, **values)(photo) for photo in photos]))
    model.backbone.bn1.momentum = None  # type: ignore[union-attr]  # the plain mean over the batches
    with torch.no_grad():
        model.train()(batch)
    other = {"imagenet": "bgr255", "bgr255": "imagenet"}[made_with]
    assert models.better_preprocess(model, made_with) is None
    assert models.better_preprocess(model, other) == made_with


def test_bgr255_is_caffes_input() -> None:
    photo = np.zeros((4, 4, 3), dtype=np.uint8)
    photo[:] = (200, 100, 50)  # RGB
    found = Preprocess(4, 3, **models.VGGFACE2_PREPROCESS["bgr255"])(photo)
    assert found[:, 0, 0].tolist() == pytest.approx([50 - 91.4953, 100 - 103.8827, 200 - 131.0912], abs=1e-3)
