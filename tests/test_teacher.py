"""A student's teachers: what they are asked, what they answer, and which are refused."""

import hashlib
from pathlib import Path
from typing import Any

from faces import Preprocess

import pytest
import torch

from labels import LABEL_SETS
from models import ModelError, build_model, describe, save_checkpoint
from teacher import Teacher, is_network

STUDENT: dict[str, Any] = {
    "labels": LABEL_SETS["fer7"],
    "preprocess": Preprocess(24, 1, (0.5,), (0.25,)),
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "split_id": "0123",
}


def saved(
    path: Path, *, label_set: str = "fer7", seed: int = 1, votes: bool = False, split_id: str = "0123", **preprocess: Any
) -> str:
    """A checkpoint of a random fernet that sees grey pictures of 32 px at another scale than the student."""
    labels = LABEL_SETS[label_set]
    grey: dict[str, Any] = {"size_px": 32, "channels": 1, "mean": (0.4,), "std": (0.2,)}
    seen = Preprocess(**grey | preprocess)
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {"affect": False, "dropout": 0.3, "head": "softmax", "width": 8, "votes": votes}
    model = build_model("fernet", classes=len(labels), preprocess=seen, **chosen)
    torch.nn.init.normal_(model.classifier.weight)
    contents = describe("fernet", labels=labels, preprocess=seen, **chosen) | {"split_id": split_id}
    save_checkpoint(path, contents | {"state_dict": model.state_dict()})
    return str(path)


def test_what_names_a_network() -> None:
    assert is_network("runs/a") and is_network("a.onnx,b.pth") and is_network("runs/fernet_votes")
    assert not is_network(None) and not is_network("votes") and not is_network("runs/teacher/predictions.parquet")


def test_a_teacher_sees_the_pictures_at_its_own_size_and_scale(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", votes=True)
    teacher = Teacher(path, **STUDENT)
    assert teacher.voted
    pictures = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    said = teacher((pictures - 0.5) / 0.25)
    with torch.no_grad():
        output = teacher.members[0].checkpoint.model((pictures - 0.4) / 0.2)
    torch.testing.assert_close(said["teacher"], output.logits.softmax(dim=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(said["teacher_votes"], output.votes.softmax(dim=1), rtol=1e-4, atol=1e-6)
    assert not said["teacher"].requires_grad
    smaller = teacher(torch.zeros(3, 1, 24, 24))["teacher"]
    torch.testing.assert_close(smaller, teacher(torch.zeros(3, 1, 32, 32))["teacher"])  # flat grey at any size


def test_each_batch_asks_one_of_several(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.pth", seed=seed) for seed in (1, 2, 3)]
    teacher = Teacher(", ".join(paths), **STUDENT)
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    assert [(one["path"], one["sha256"]) for one in teacher.record] == list(zip(paths, digests, strict=True))
    assert not teacher.voted
    pictures = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(2))
    each = [Teacher(path, **STUDENT)(pictures)["teacher"] for path in paths]
    torch.manual_seed(5)
    drawn = [
        [torch.equal(said, one) for one in each].index(True) for said in (teacher(pictures)["teacher"] for _ in range(90))
    ]
    assert all(20 <= drawn.count(member) <= 40 for member in range(3))


def test_finer_classes_are_summed_and_unfit_teachers_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "seven.pth")
    pictures = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(2))
    seven, four = LABEL_SETS["fer7"], LABEL_SETS["fer4"]
    fine, coarse = (Teacher(path, **STUDENT | {"labels": labels})(pictures)["teacher"] for labels in (seven, four))
    for names in ("angry disgust", "sad fear", "happy", "neutral surprise"):
        summed = fine[:, [seven.index(name) for name in names.split()]].sum(dim=1)
        torch.testing.assert_close(coarse[:, four.index(names.split()[0])], summed)
    with pytest.raises(ModelError, match=r"has nothing for .* of fer7"):
        Teacher(saved(tmp_path / "four.pth", label_set="fer4"), **STUDENT)
    with pytest.raises(ModelError, match="sees 3 channels in rgb"):
        Teacher(saved(tmp_path / "rgb.pth", channels=3, mean=(0.5,) * 3, std=(0.2,) * 3), **STUDENT)
    with pytest.raises(ModelError, match="sees more of each picture"):
        Teacher(path, **STUDENT | {"preprocess": Preprocess(24, 1, (0.5,), (0.25,), keep=0.9)})
    with pytest.raises(ModelError, match="has an empty name"):
        Teacher(f"{path},", **STUDENT)
    with pytest.raises(ModelError, match="not found"):
        Teacher(str(tmp_path / "none.pth"), **STUDENT)


def test_a_teacher_of_narrower_pictures_sees_their_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """18 of 24 px, made 32 px large; it is said who teaches, and that it comes of another split."""
    path = saved(tmp_path / "narrow.pth", keep=0.75)
    teacher = Teacher(path, **STUDENT)
    assert capsys.readouterr().out == f"teacher: {path}, fer7\n"
    pictures = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(2))
    framed = pictures.clone()
    framed[..., :3, :] = framed[..., -3:, :] = framed[..., :3] = framed[..., -3:] = 0.0
    torch.testing.assert_close(teacher(pictures), teacher(framed))
    framed[..., 3, 3] += 1.0
    assert not torch.equal(teacher(pictures)["teacher"], teacher(framed)["teacher"])
    foreign = saved(tmp_path / "foreign.pth", split_id="4567")
    Teacher(foreign, **STUDENT)
    assert "trained on another split, which may hold validation rows" in capsys.readouterr().out


def test_a_network_of_ferplus8_teaches_the_second_head(tmp_path: Path) -> None:
    teacher = Teacher(saved(tmp_path / "eight.pth", label_set="ferplus8"), **STUDENT)
    assert teacher.voted
    said = teacher(torch.zeros(2, 1, 24, 24))
    assert said["teacher"].shape == (2, 7) and said["teacher_votes"].shape == (2, 8)
    seven = [LABEL_SETS["ferplus8"].index(name) for name in LABEL_SETS["fer7"].names]
    known = said["teacher_votes"][:, seven]
    torch.testing.assert_close(said["teacher"], known / known.sum(dim=1, keepdim=True))  # contempt is none of the seven
