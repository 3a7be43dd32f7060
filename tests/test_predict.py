"""From a file name to an answer: what is printed, with which exit status, whatever the file is."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faces
from faces import Face, Preprocess, crop_face, read_image

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import tqdm
from PIL import Image

import answers
import models
import predict
from labels import LABEL_SETS, LabelSet

ROOT = Path(predict.__file__).resolve().parent
FER7 = LABEL_SETS["fer7"]
# The made-up networks answer this to every picture, in FER2013's order.
PROBABILITIES = {
    "angry": 0.07, "disgust": 0.01, "fear": 0.03, "happy": 0.6, "sad": 0.1, "surprise": 0.13, "neutral": 0.06,
}  # fmt: skip
PREPROCESS = Preprocess(size_px=16, channels=1, mean=(0.5,), std=(0.25,), margin=0.125)


def write_checkpoint(
    path: Path, *, labels: LabelSet = FER7, affect: bool = False, fixed: bool = True, **extra: Any
) -> models.ExpressionNet:
    """A small untrained network as a checkpoint; `fixed` ones answer PROBABILITIES and (0.25, −3) to everything."""
    torch.manual_seed(0)
    net = models.build_model("lightcnn", classes=len(labels), affect=affect, preprocess=PREPROCESS)
    if fixed:
        torch.nn.init.zeros_(net.classifier.weight)
        net.classifier.bias.data = torch.tensor([PROBABILITIES[name] for name in labels.names]).log()
        if net.regressor is not None:
            torch.nn.init.zeros_(net.regressor.weight)
            net.regressor.bias.data = torch.tensor([0.25, -3.0])
    description = models.describe("lightcnn", labels=labels, preprocess=PREPROCESS, affect=affect)
    models.save_checkpoint(path, description | {"state_dict": net.state_dict()} | extra)
    return net.eval()


def write_picture(path: Path, height: int, width: int, *, seed: int = 0) -> Path:
    """A picture of coloured noise, without a face."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of seven classes with known answers."""
    path = tmp_path_factory.mktemp("models") / "fixed.pth"
    write_checkpoint(path)
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small square picture, a big one, and files that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    write_picture(folder / "small.png", 48, 48)
    write_picture(folder / "big.png", 300, 400)
    (folder / "text.jpg").write_text("no picture", encoding="utf-8")
    (folder / "empty.jpg").touch()
    whole = write_picture(folder / "cut.jpg", 48, 48).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.jpg").mkdir()
    return folder


@pytest.fixture(autouse=True)
def no_yunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector of a fresh clone, whatever this machine has."""
    monkeypatch.setattr(faces, "find_yunet", lambda model=None: model)


@pytest.fixture
def two_faces(monkeypatch: pytest.MonkeyPatch) -> list[Face]:
    """A detector that finds two faces in every picture."""
    found = [Face(20, 30, 100, 100, math.nan), Face(200, 10, 60, 60, 0.75)]
    monkeypatch.setattr(
        predict,
        "make_detector",
        lambda name, model: (lambda image: [], name) if name == "none" else (lambda image: found, "haar"),
    )
    return found


def answer_json(capsys: pytest.CaptureFixture[str], *argv: str | Path, status: int = 0) -> Any:
    """The JSON that `predict.py ARGV --json` prints; nothing may stand on standard error."""
    assert predict.main([*map(str, argv), "--json"]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


# --- what is printed ----------------------------------------------------------------------------------------------------


def test_text_of_a_crop(checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pictures / "small.png"
    assert predict.main([str(path), str(path), "--model", checkpoint]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"predict.py: faces are found by {answers.DETECTOR_NAMES['haar']}\n"  # once
    assert predict.main([str(path), "--model", checkpoint, "--detector", "haar"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        f"{path}: happy 60% (taken whole: no face found, but it looks like a face crop)",
        "  happy      60.0% " + "█" * 18,  # of 30
        "  surprise   13.0% " + "█" * 4,
        "  sad        10.0% " + "█" * 3,
        "  angry       7.0% " + "█" * 2,
        "  neutral     6.0% " + "█" * 2,
        "  fear        3.0% " + "█" * 1,
        "  disgust     1.0%",
    ]


def test_text_of_two_faces(
    checkpoint: str, pictures: Path, two_faces: list[Face], capsys: pytest.CaptureFixture[str]
) -> None:
    path = pictures / "big.png"
    assert predict.main([str(path), "--model", checkpoint]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert heads == [
        f"{path}: happy 60% (face 1 of 2 at 20,30, 100×100 px)",
        f"{path}: happy 60% (face 2 of 2 at 200,10, 60×60 px)",
    ]


def test_json_of_two_faces(
    checkpoint: str, pictures: Path, two_faces: list[Face], capsys: pytest.CaptureFixture[str]
) -> None:
    path = pictures / "big.png"
    document = answer_json(capsys, path, "--model", checkpoint)
    assert list(document) == ["path", "detected", "detector", "faces", "error"]
    assert document["detector"] == "haar"
    assert document["path"] == str(path)
    assert document["detected"] is True
    assert document["error"] is None
    assert len(document["faces"]) == 2
    for face, detected in zip(document["faces"], two_faces, strict=True):
        assert list(face) == ["box", "label", "probabilities", "valence", "arousal", "score", "landmarks"]
        assert face["box"] == list(detected[:4])
        assert face["label"] == "happy"
        assert list(face["probabilities"]) == list(FER7.names)
        assert face["probabilities"] == pytest.approx(PROBABILITIES, abs=1e-6)
        assert sum(face["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert face["valence"] is face["arousal"] is face["landmarks"] is None
    assert [face["score"] for face in document["faces"]] == [None, 0.75]


def test_no_face_in_a_big_picture_gives_no_label(
    checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pictures / "big.png"
    assert predict.main([str(path), "--model", checkpoint, "--detector", "haar"]) == 0
    captured = capsys.readouterr()
    said = "no face found, by OpenCV's Haar cascade – make detector fetches YuNet, which finds more"
    assert captured.out == f"{path}: {said} (a picture that is a face already: --detector none)\n"
    assert captured.err == ""
    document = answer_json(capsys, path, "--model", checkpoint)
    assert document == {"path": str(path), "detected": False, "detector": "haar", "faces": [], "error": None}


def test_a_crop_in_json_is_not_detected(checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = answer_json(capsys, pictures / "small.png", "--model", checkpoint)
    assert document["detected"] is False and document["error"] is None
    assert [face["box"] for face in document["faces"]] == [[0, 0, 48, 48]]
    assert document["faces"][0]["score"] is None


def test_detector_none_takes_every_picture_whole(
    checkpoint: str, pictures: Path, two_faces: list[Face], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(pictures / "big.png"), "--model", checkpoint, "--detector", "none"]
    assert predict.main(argv) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{pictures / 'big.png'}: happy 60% (taken whole)"
    document = answer_json(capsys, *argv)
    assert document["detected"] is False and document["detector"] == "none"
    assert [face["box"] for face in document["faces"]] == [[0, 0, 400, 300]]


# --- which files are answered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error", "hint"),
    [
        ("text.jpg", "not an image", "JPEG, PNG, WebP, BMP, TIFF and GIF can be read"),
        ("empty.jpg", "empty", ""),
        ("cut.jpg", "truncated", "copy or download it again"),
        ("folder.jpg", "a folder, not a picture", "is there a picture in it?"),
        ("nothing.jpg", "missing", "is the path right?"),
    ],
)
def test_a_file_that_cannot_be_read(
    checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str], name: str, error: str, hint: str
) -> None:
    path = str(pictures / name)
    assert predict.main([path, "--model", checkpoint]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{path}: {error}" + (f" – {hint}\n" if hint else "\n")
    document = answer_json(capsys, path, "--model", checkpoint, status=1)
    assert document == {"path": path, "detected": False, "detector": "haar", "faces": [], "error": error}


def test_the_other_files_are_still_answered(checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(pictures / name) for name in ("small.png", "text.jpg", "folder.jpg", "big.png", "small.png")]
    assert predict.main([*paths, "--model", checkpoint, "--detector", "haar"]) == 1
    captured = capsys.readouterr()
    heads = [line.split(": ")[0] for line in captured.out.splitlines() if not line.startswith("  ")]
    assert heads == [paths[0], paths[3], paths[4]]
    assert [line.split(": ")[0] for line in captured.err.splitlines()] == [paths[1], paths[2]]
    documents = answer_json(capsys, *paths, "--model", checkpoint, status=1)
    assert [document["path"] for document in documents] == paths
    assert [document["error"] for document in documents] == [
        None,
        "not an image",
        "a folder, not a picture",
        None,
        None,
    ]
    assert [len(document["faces"]) for document in documents] == [1, 0, 0, 0, 1]


@pytest.mark.skipif("YUNET" not in os.environ, reason="YUNET is not set: path of YuNet's ONNX file")
@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (20, 31), (1, 900), (31, 640), (60, 4000), (4000, 40)])
def test_odd_sizes_with_yunet(checkpoint: str, tmp_path: Path, shape: tuple[int, int]) -> None:
    """OpenCV answers with what nobody has written to memory for pictures below 32 px; repeated, as that is random."""
    predictor = predict.EmotionPredictor(checkpoint, detector="yunet", detector_model=os.environ["YUNET"])
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for _ in range(12):
        assert predictor.detect(image) == []
        faces, detected = predictor.predict(image)
        assert not detected and len(faces) == int(max(shape) <= 256 and max(shape) <= 1.25 * min(shape) and min(shape) >= 16)


@pytest.mark.parametrize(
    ("height", "width", "faces"), [(1, 1, 0), (15, 15, 0), (16, 16, 1), (1, 30, 0), (257, 257, 0), (256, 256, 1)]
)
def test_odd_sizes(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], height: int, width: int, faces: int
) -> None:
    path = write_picture(tmp_path / "a.png", height, width)
    assert len(answer_json(capsys, path, "--model", checkpoint)["faces"]) == faces
    whole = answer_json(capsys, path, "--model", checkpoint, "--detector", "none")
    assert [face["box"] for face in whole["faces"]] == [[0, 0, width, height]]


# --- what the network says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("affect", "extra", "expected"),
    [
        (True, {"affect_rows": 5}, (0.25, -1.0)),  # −3 is held to the scale's end
        (True, {"affect_rows": 0}, (None, None)),  # a head that was never trained says nothing
        (True, {}, (None, None)),
        (False, {"affect_rows": 5}, (None, None)),
    ],
)
def test_valence_and_arousal_only_where_they_were_trained(
    tmp_path: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    affect: bool,
    extra: dict[str, Any],
    expected: tuple[float | None, float | None],
) -> None:
    write_checkpoint(tmp_path / "a.pth", affect=affect, **extra)
    argv = [str(pictures / "small.png"), "--model", str(tmp_path / "a.pth")]
    face = answer_json(capsys, *argv)["faces"][0]
    assert (face["valence"], face["arousal"]) == expected
    assert predict.main(argv) == 0
    assert ("  valence +0.25, arousal -1.00" in capsys.readouterr().out.splitlines()) is (expected[0] is not None)


def test_names_come_from_the_checkpoint(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "a.pth", labels=LABEL_SETS["affectnet7"])
    face = answer_json(capsys, pictures / "small.png", "--model", tmp_path / "a.pth")["faces"][0]
    assert list(face["probabilities"]) == list(LABEL_SETS["affectnet7"].names)
    assert face["probabilities"] == pytest.approx(PROBABILITIES, abs=1e-6)  # by name, in whichever order


def test_each_face_is_cropped_with_its_margin_and_preprocessed(
    tmp_path: Path, pictures: Path, two_faces: list[Face]
) -> None:
    net = write_checkpoint(tmp_path / "a.pth", fixed=False)
    image = read_image(pictures / "big.png")
    predictions, detected = predict.EmotionPredictor(tmp_path / "a.pth", device="cpu").predict(image)
    assert detected
    # 100 px widened by 0.125 of it on every side: 125 px from (20 − 12.5, 30 − 12.5), rounded to even.
    crops = [crop_face(image, face, 0.125) for face in two_faces]
    assert np.array_equal(crops[0], image[18:143, 8:133])
    with torch.inference_mode():
        logits = net(torch.from_numpy(np.stack([PREPROCESS(crop) for crop in crops]))).logits.double()
    for prediction, face, row in zip(predictions, two_faces, logits.softmax(1).tolist(), strict=True):
        assert prediction.face == face
        assert list(prediction.probabilities) == list(FER7.names)
        assert list(prediction.probabilities.values()) == pytest.approx(row, abs=1e-6)
        assert prediction.label == FER7.names[int(np.argmax(row))]
    assert predictions[0].probabilities != predictions[1].probabilities


def test_the_same_face_alone_or_among_others(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pth", fixed=False)
    predictor = predict.EmotionPredictor(tmp_path / "a.pth", device="cpu")
    crops = [np.random.default_rng(seed).integers(0, 256, (30, 30, 3), dtype=np.uint8) for seed in range(3)]
    boxes = [Face(0, 0, 30, 30, math.nan)] * 3
    together = predictor.classify(crops, boxes)
    for crop, box, prediction in zip(crops, boxes, together, strict=True):
        alone = predictor.classify([crop], [box])[0]
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=1e-6)
    assert predictor.classify([], []) == []


# --- wrong usage --------------------------------------------------------------------------------------------------------


def test_model_files_that_cannot_be_used(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pth").write_text("no checkpoint", encoding="utf-8")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    for name, said in {
        "nothing.pth": "nothing.pth not found",
        "text.pth": "text.pth is not a checkpoint",
        "foreign.pth": "foreign.pth is not a checkpoint of this project",
    }.items():
        for form in ([], ["--json"]):
            assert predict.main([str(pictures / "small.png"), "--model", str(tmp_path / name), *form]) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith("predict.py: ") and said in captured.err
            assert captured.err.count("\n") == 1


def test_shipped_networks_by_name(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert next(iter(predict.shipped())) == predict.DEFAULT_MODEL
    for name, path in predict.shipped().items():
        assert predict.network_file(name) == path
        assert answer_json(capsys, pictures / "small.png", "--model", name) == answer_json(
            capsys, pictures / "small.png", "--model", path
        )
    (tmp_path / "fernet_votes").mkdir()  # a run of that name is ./fernet_votes
    monkeypatch.chdir(tmp_path)
    assert predict.network_file("fernet_votes") == predict.shipped()["fernet_votes"]
    assert predict.network_file("./fernet_votes") == Path("fernet_votes/best.pth")
    for name in ("fernot", "elsewhere/fernet_votes"):  # the second is a path of no file, not a name
        assert predict.main([str(pictures / "small.png"), "--model", name]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"predict.py: {name} is neither a file nor a shipped network (which are: student")


def test_damaged_weights_give_no_answer(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = write_checkpoint(tmp_path / "a.pth")
    net.classifier.bias.data[2] = math.nan
    description = models.describe("lightcnn", labels=FER7, preprocess=PREPROCESS, affect=False)
    models.save_checkpoint(tmp_path / "a.pth", description | {"state_dict": net.state_dict()})
    for form in ([], ["--json"]):
        assert predict.main([str(pictures / "small.png"), "--model", str(tmp_path / "a.pth"), *form]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert (
            captured.err
            == "predict.py: the network answers with no numbers: its weights are damaged – give another --model\n"
        )


@pytest.mark.parametrize(
    "argv", [[], ["--json"], ["a.jpg", "--detector", "dlib"], ["a.jpg", "--modle"], ["a.jpg", "--model"]]
)
def test_wrong_usage_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        predict.main(argv)
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.endswith(" – see --help\n")


def test_an_unknown_device_is_said(checkpoint: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(pictures / "small.png"), "--model", checkpoint, "--device", "abacus"]) == 2
    assert capsys.readouterr().err == "predict.py: device abacus is not available here – use --device auto\n"


# --- as a program -------------------------------------------------------------------------------------------------------


def test_help_starts_without_torch() -> None:
    program = (
        "import sys, predict\n"
        "try:\n    predict.main(['--help'])\n"
        "except SystemExit as left:\n    status = left.code\n"
        "heavy = {'torch', 'torchvision', 'pandas', 'sklearn', 'scipy', 'matplotlib', 'albumentations', 'models'}\n"
        "print('status', status, 'heavy', sorted(heavy & sys.modules.keys()))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert "usage: " in run.stdout and "Exit status: 0 answered" in run.stdout
    assert run.stdout.splitlines()[-1] == "status 0 heavy []"


def test_odd_paths_through_the_real_command_line(checkpoint: str, tmp_path: Path) -> None:
    """Unicode, blanks, a leading dash behind "--", bytes that are no UTF-8; on a console that knows only ASCII."""
    folder = tmp_path / "мои фото 写真"
    folder.mkdir()
    names = ["smile 😀 été.png", "-dash.png", "percent%s {x} [1].png", "new\nline.png"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"latin1 \xe9.png"))
    if sys.platform == "win32":
        names.remove("new\nline.png")
    for name in names:
        write_picture(folder / name, 20, 20)
    broken = "вот text.jpg"
    (folder / broken).write_text("no picture", encoding="utf-8")
    command = [sys.executable, str(ROOT / "predict.py"), "--model", checkpoint, "--device", "cpu", "--detector", "haar"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    for form in (["--json"], []):
        run = subprocess.run(
            [*command, *form, "--", *names, broken],
            capture_output=True, cwd=folder, env=environment, timeout=60, check=False,
        )  # fmt: skip
        assert run.returncode == 1
        assert b"Traceback" not in run.stdout + run.stderr
        if form:
            assert run.stderr == b""
            documents = json.loads(run.stdout)
            assert [document["path"] for document in documents] == [*names, broken]  # to the letter
            assert [document["faces"][0]["label"] for document in documents[:-1]] == ["happy"] * len(names)
            assert documents[-1]["error"] == "not an image"
        else:
            assert run.stdout.count(b": happy 60% (taken whole") == len(names)
            assert b"text.jpg: not an image \\u2013 JPEG, PNG, WebP" in run.stderr
            assert run.stderr.count(b"\n") == 1


# --- real photos --------------------------------------------------------------------------------------------------------

FACES = {"astronaut.png": 1, "biden.jpg": 1, "obama.jpg": 1, "obama_small.jpg": 1, "pyfeat_multi_face.jpg": 4}


def test_every_fixture(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.environ.get("FACE_FIXTURES")
    if not folder:
        pytest.skip("FACE_FIXTURES does not name the folder of real photos")
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".jpg", ".png"))
    assert {path.name for path in paths} > FACES.keys()
    documents = answer_json(capsys, *paths, "--model", checkpoint)
    for path, document in zip(paths, documents, strict=True):
        count = FACES.get(path.name, 0)
        assert document["path"] == str(path) and document["error"] is None
        assert document["detected"] is (count > 0)
        assert [face["label"] for face in document["faces"]] == ["happy"] * count
    assert predict.main([*map(str, paths), "--model", checkpoint, "--detector", "haar"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count(": no face found") == len(paths) - len(FACES)
    assert captured.out.count(" happy 60% (face ") == 8


ANSWERED = {
    "grey.png", "16bit.png", "cmyk.jpg", "transparent.png", "animated.gif", "animated.webp", "rotated.jpg",
    "ein Foto 写真.jpg", "UPPER.JPG", "no_extension", "png_named.jpg",
}  # fmt: skip
REFUSED = {
    "text.jpg": "not an image", "empty.jpg": "empty", "cut.jpg": "truncated", "folder.jpg": "a folder, not a picture",
    "missing.jpg": "missing", "huge.png": "larger than 100 million pixels",
}  # fmt: skip


def write_odd_files(folder: Path, photo: np.ndarray) -> None:
    """ANSWERED, each the same portrait in another form, and REFUSED, and a picture of one pixel."""
    picture = Image.fromarray(photo)
    picture.convert("L").save(folder / "grey.png")
    cv2.imwrite(str(folder / "16bit.png"), photo[:, :, ::-1].astype(np.uint16) * 257)
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[:20] = 0
    Image.fromarray(np.dstack([photo, alpha])).save(folder / "transparent.png")
    for extension in ("gif", "webp"):
        other = Image.new("RGB", picture.size)
        picture.save(folder / f"animated.{extension}", save_all=True, append_images=[other], duration=100)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "rotated.jpg", exif=exif, quality=95)
    for name in ("ein Foto 写真.jpg", "UPPER.JPG"):
        picture.save(folder / name, quality=95)
    picture.save(folder / "no_extension", format="PNG")
    picture.save(folder / "png_named.jpg", format="PNG")
    (folder / "text.jpg").write_text("no picture", encoding="utf-8")
    (folder / "empty.jpg").touch()
    whole = (folder / "UPPER.JPG").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.jpg").mkdir()
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    Image.new("RGB", (1, 1)).save(folder / "1x1.png")


@pytest.mark.parametrize("detector", ["haar", "yunet"])
def test_odd_files_of_a_real_portrait(tmp_path: Path, capsys: pytest.CaptureFixture[str], detector: str) -> None:
    """The shipped network sees the same face, upright and in the same place, in whatever form; or there is a reason."""
    fixtures = os.environ.get("FACE_FIXTURES")
    if not fixtures:
        pytest.skip("FACE_FIXTURES does not name the folder of real photos")
    if detector == "yunet" and "YUNET" not in os.environ:
        pytest.skip("YUNET is not set: path of YuNet's ONNX file")
    write_odd_files(tmp_path, read_image(Path(fixtures) / "faces" / "astronaut.png"))
    argv: list[str | Path] = ["--detector", detector]
    if detector == "yunet":
        argv += ["--detector_model", os.environ["YUNET"]]
    (plain,) = answer_json(capsys, Path(fixtures) / "faces" / "astronaut.png", *argv)["faces"]
    assert plain["label"] == "happy"
    for name in sorted(ANSWERED):
        document = answer_json(capsys, tmp_path / name, *argv)
        assert document["error"] is None and document["detected"], name
        (face,) = document["faces"]
        assert face["label"] == "happy" and np.allclose(face["box"], plain["box"], atol=8), name
        assert predict.main([str(tmp_path / name), *map(str, argv)]) == 0
        assert capsys.readouterr().out.startswith(f"{tmp_path / name}: happy ")
    assert len(answer_json(capsys, tmp_path / "1x1.png", *argv)["faces"]) == 0  # an answer: no face found
    for name, error in REFUSED.items():
        document = answer_json(capsys, tmp_path / name, *argv, status=1)
        assert document["error"].startswith(error), name
        assert predict.main([str(tmp_path / name), *map(str, argv)]) == 1
        captured = capsys.readouterr()
        assert (
            captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith(f"{tmp_path / name}: {error}")
        )


# The four-class document's interface


def test_a_frame_and_a_box_give_what_the_photo_gives(tmp_path: Path) -> None:
    """The network is not constant and its input is in colour, so a swap of red and blue or a wrong crop would show."""
    torch.manual_seed(1)
    colour = Preprocess(16, 3, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), margin=0.125)
    net = models.build_model("resnet18", classes=4, affect=False, preprocess=colour).eval()
    four = LABEL_SETS["fer4"]
    description = models.describe("resnet18", labels=four, preprocess=colour, affect=False)
    models.save_checkpoint(tmp_path / "four.pth", description | {"state_dict": net.state_dict(), "optimizer": {}})
    predictor = predict.EmotionPredictor(str(tmp_path / "four.pth"), use_gpu_if_available=False)
    assert predictor.network.device.type == "cpu"
    image = np.random.default_rng(3).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image[:, :, 0] //= 4
    emotion, index, probabilities = predictor.predict_emotion_from_frame(image[:, :, ::-1], (20, 10, 30, 24))
    assert emotion == four.names[index] and probabilities.argmax() == index and probabilities.sum() == pytest.approx(1)
    crop = crop_face(image, Face(20, 10, 30, 24, math.nan), 0.125)
    with torch.no_grad():
        expected = net(torch.from_numpy(colour(crop))[None]).logits.softmax(dim=1)[0]
        swapped = net(torch.from_numpy(colour(crop[:, :, ::-1]))[None]).logits.softmax(dim=1)[0]
    assert probabilities.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert not torch.allclose(expected, swapped, atol=1e-3)
    assert f"{probabilities[index]:.2%}" == f"{100 * float(probabilities.max()):.2f}%"  # as the document prints it


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (100, 0, 10, 10), (-20, 0, 10, 10), (0, 80, 5, 5)])
def test_boxes_that_are_nowhere(checkpoint: str, box: tuple[int, int, int, int]) -> None:
    predictor = predict.EmotionPredictor(checkpoint, device="cpu")
    with pytest.raises(ValueError, match="of no part of a frame of 90×60 px"):
        predictor.predict_emotion_from_frame(np.zeros((60, 90, 3), np.uint8), box)
    assert predictor.predict_emotion_from_frame(np.zeros((60, 90, 3), np.uint8), (-5, 50, 30, 30))[0] == "happy"


@pytest.mark.parametrize("shape", [(60, 90), (60, 90, 4), (0, 90, 3), (60, 0, 3), None, "float"])
def test_images_that_are_none(checkpoint: str, shape: Any) -> None:
    predictor = predict.EmotionPredictor(checkpoint, device="cpu")
    image: Any = None if shape is None else np.zeros((60, 90, 3)) if shape == "float" else np.zeros(shape, np.uint8)
    for ask in (
        lambda: predictor.predict_emotion_from_frame(image, box=(0, 0, 10, 10)),
        lambda: predictor.predict(image),
        lambda: predictor.predict_batch([image]),
    ):
        with pytest.raises(ValueError, match="a picture is"):
            ask()


def test_colours_may_be_bgr(tmp_path: Path) -> None:
    torch.manual_seed(1)
    colour = Preprocess(16, 3, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    net = models.build_model("resnet18", classes=7, affect=False, preprocess=colour)
    description = models.describe("resnet18", labels=FER7, preprocess=colour, affect=False)
    models.save_checkpoint(tmp_path / "a.pth", description | {"state_dict": net.state_dict()})
    predictor = predict.EmotionPredictor(tmp_path / "a.pth", device="cpu", detector="none")
    image = np.random.default_rng(3).integers(0, 256, (20, 20, 3), dtype=np.uint8) // (4, 1, 1)
    image = image.astype(np.uint8)
    frame = image[:, :, ::-1]
    assert predictor.predict(frame, order="bgr") == predictor.predict(image) != predictor.predict(frame)
    assert predictor.predict_batch([frame], order="bgr") == predictor.predict_batch([image], order="rgb")
    with pytest.raises(ValueError, match="order is rgb or bgr, not 'RGB'"):
        predictor.predict(image, order="RGB")


def test_names_that_the_constructor_does_not_know(checkpoint: str) -> None:
    with pytest.raises(models.ModelError, match=r"fer9 is no label set .*fer7"):
        predict.EmotionPredictor(checkpoint, label_set="fer9")
    with pytest.raises(faces.DetectorError, match=r"dlib is no detector .*auto, yunet, haar, none"):
        predict.EmotionPredictor(checkpoint, detector="dlib")


def test_the_two_phase_documents_function(checkpoint: str, pictures: Path) -> None:
    plain = predict.predict_single_image(pictures / "small.png", checkpoint)
    predictor = predict.EmotionPredictor(checkpoint)
    assert plain == predict.predict_single_image(pictures / "small.png", predictor) and plain[0] == "happy"
    folders = ["Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"]  # another order than the network's
    label, shares = predict.predict_single_image(pictures / "small.png", predictor, transform=None, class_names=folders)
    assert label == "Happy" and list(shares) == folders
    assert list(shares.values()) == pytest.approx([0.07, 0.01, 0.03, 0.6, 0.06, 0.1, 0.13], abs=1e-6)
    own = ["Wut", "Ekel", "Angst", "Freude", "Trauer", "Staunen", "nichts"]
    label, shares = predict.predict_single_image(pictures / "small.png", predictor, class_names=own)
    assert label == "Freude" and shares == pytest.approx(dict(zip(own, PROBABILITIES.values(), strict=True)), abs=1e-6)
    for names in (own[:6], [*own, "mehr"], ["gleich"] * 7, ["contempt", *folders[1:]], ["angry", *folders[:6]]):
        with pytest.raises(ValueError, match="are not names for angry, disgust"):
            predict.predict_single_image(pictures / "small.png", predictor, class_names=names)
    misspelt = ["Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Suprise"]  # not a list of other words
    with pytest.raises(ValueError, match="Neutral is an expression, but others"):
        predict.predict_single_image(pictures / "small.png", predictor, class_names=misspelt)
    german = [*own[:6], "Neutral"]
    assert list(predict.predict_single_image(pictures / "small.png", predictor, class_names=german)[1]) == german
    with pytest.raises(ValueError, match="brings its own preprocessing"):
        predict.predict_single_image(pictures / "small.png", predictor, transform=str)  # type: ignore[arg-type]


# --- many pictures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder with pictures in two levels, files that are none, and one that is broken."""
    folder = tmp_path / "album"
    (folder / "b" / "deep").mkdir(parents=True)
    for at, name in enumerate(("c.png", "a.jpg", "b/z.PNG", "b/deep/y.webp", "B2.png")):
        (folder / name).write_bytes(write_picture(tmp_path / f"p{Path(name).suffix.lower()}", 20 + at, 20).read_bytes())
    (folder / "broken.jpg").write_text("no picture", encoding="utf-8")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / ".hidden.png").write_bytes((folder / "c.png").read_bytes())
    return folder


ALBUM = ["B2.png", "a.jpg", "broken.jpg", "c.png", "b/z.PNG", "b/deep/y.webp"]


def test_a_folder_is_read_in_order_with_all_below(checkpoint: str, album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(album), "--model", checkpoint, "--jsonl"]) == 1
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["path"] for document in documents] == [str(album / name) for name in ALBUM]
    assert [document["error"] for document in documents] == [None, None, "not an image", None, None, None]
    documents = answer_json(capsys, album, "--model", checkpoint, status=1)
    assert [document["path"] for document in documents] == [str(album / name) for name in ALBUM]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_table_says_what_the_json_says(
    checkpoint: str, pictures: Path, two_faces: list[Face], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_faces[1] = two_faces[1]._replace(landmarks=((1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0), (9.0, 10.04)))
    names = [str(pictures / name) for name in ("big.png", "text.jpg", "small.png")]
    assert predict.main([*names, "--model", checkpoint, "--csv", str(tmp_path / "new" / "a.csv")]) == 1
    assert "3 pictures, 4 faces in this call, 1 that could not be read" in capsys.readouterr().out
    table = read_csv(tmp_path / "new" / "a.csv")
    assert [row["path"] for row in table] == [names[0]] * 2 + [names[1]] + [names[2]] * 2
    assert [row["picture"] for row in table] == ["0", "0", "1", "2", "2"]
    assert [row["face"] for row in table] == ["0", "1", "", "0", "1"]
    assert table[2]["error"] == "not an image" and table[2]["label"] == table[2]["p_happy"] == ""
    documents = answer_json(capsys, *names, "--model", checkpoint, status=1)
    faces = [face for document in documents for face in document["faces"]]
    for row, face in zip([row for row in table if row["face"]], faces, strict=True):
        assert [int(row[key]) for key in "xywh"] == face["box"] and row["label"] == face["label"]
        assert {name: float(row[f"p_{name}"]) for name in FER7.names} == face["probabilities"]
        assert (float(row["score"]) if row["score"] else None) == face["score"] and row["valence"] == ""
    assert (table[1]["right_eye_x"], table[1]["left_mouth_y"], table[0]["nose_x"]) == ("1.0", "10.0", "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.csv"]


def test_parquet_holds_the_same_table(checkpoint: str, album: Path, tmp_path: Path) -> None:
    odd = album / 'new\nline, "quoted".png'
    odd.write_bytes((album / "c.png").read_bytes())
    for form in ("csv", "parquet"):
        assert predict.main([str(album), "--model", checkpoint, f"--{form}", str(tmp_path / f"a.{form}")]) == 1
    plain, table = pd.read_csv(tmp_path / "a.csv"), pd.read_parquet(tmp_path / "a.parquet")
    assert list(plain) == list(table) and len(table) == 7 and str(odd) in set(table["path"])
    for column in plain:
        same = (plain[column] == table[column]) | (plain[column].isna() & table[column].isna())
        assert same.all(), column
    assert table["face"].dtype == "Int64" or table["face"].dropna().eq(0).all()
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.csv", "a.parquet"]


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_an_interrupted_table_is_gone_on_with(
    checkpoint: str, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], form: str, stop: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(predict, "BATCH_PICTURES", 2)
    flags = [str(album), "--model", checkpoint, f"--{form}"]
    assert predict.main([*flags, str(tmp_path / f"whole.{form}")]) == 1
    real, calls = answers.Table.mark, []

    def killed(table: answers.Table) -> None:
        calls.append(1)
        if len(calls) > stop:  # rows are written, the note is not
            table.file.flush()
            raise KeyboardInterrupt
        real(table)

    monkeypatch.setattr(answers.Table, "mark", killed)
    cut = tmp_path / f"cut.{form}"
    assert predict.main([*flags, str(cut)]) == 130
    monkeypatch.setattr(answers.Table, "mark", real)
    assert predict.main([*flags, str(cut)]) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert predict.main([*flags, str(cut), "--resume", "--detector", "none"]) == 2
    assert f"begun with other detector (--model {checkpoint}) – call it as before" in capsys.readouterr().err
    capsys.readouterr()
    late = album / "a_later.png"  # among those that are whole, from the second note on
    late.write_bytes((album / "c.png").read_bytes())
    if stop > 3:
        assert predict.main([*flags, str(cut), "--resume"]) == 2
        assert "begun with other pictures" in capsys.readouterr().err
    late.unlink()
    assert predict.main([*flags, str(cut), "--resume"]) == 1  # of the broken one, whenever it was read
    assert "6 pictures, " in (said := capsys.readouterr().out) and ", 1 that could not be read" in said
    if form == "csv":
        assert cut.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    else:
        assert pd.read_parquet(cut).equals(pd.read_parquet(tmp_path / "whole.parquet"))
    assert len(list(tmp_path.glob("cut*"))) == 1
    capsys.readouterr()
    assert predict.main([*flags, str(cut), "--resume"]) == 1  # as the call that finished it
    assert capsys.readouterr().out.startswith(f"{cut} is complete already: nothing was read; for another network's")


def test_shards_are_every_picture_once(
    checkpoint: str, album: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for part in ("1/4", "2/4", "3/4", "4/4"):
        predict.main([str(album), "--model", checkpoint, "--jsonl", "--shard", part])
        seen.append([json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()])
    assert [len(part) for part in seen] == [2, 2, 1, 1]
    assert sorted(path for part in seen for path in part) == sorted(str(album / name) for name in ALBUM)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    predict.main([str(album), "--model", checkpoint, "--jsonl"])
    assert [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()] == seen[1]
    (album / "a.jpg").write_text("no picture", encoding="utf-8")  # torchrun would end the others
    assert predict.main([str(album), "--model", checkpoint, "--jsonl"]) == 0
    assert predict.main([str(album), "--model", checkpoint, "--jsonl", "--shard", "2/4"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["error"] == "not an image"
    assert predict.main([str(album), "--model", checkpoint, "--shard", "5/4"]) == 2
    assert "PART/PARTS" in capsys.readouterr().err


def test_annotated_pictures(checkpoint: str, pictures: Path, two_faces: list[Face], tmp_path: Path) -> None:
    names = [str(pictures / name) for name in ("big.png", "text.jpg", "small.png")]
    assert predict.main([*names, "--model", checkpoint, "--save", str(tmp_path / "drawn")]) == 1
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["000000_big.jpg", "000002_small.jpg"]
    drawn, before = read_image(tmp_path / "drawn" / "000000_big.jpg").astype(int), read_image(names[0]).astype(int)
    assert drawn.shape == before.shape
    blue = (np.abs(drawn - answers.BOX_COLOUR).max(axis=2) < 60).mean(axis=(0,)) > 0.05
    assert blue[20] and blue[120] and not blue[140:195].any()  # the sides of the first box, and nothing beside it


@pytest.mark.parametrize("side", [48, 480])
def test_the_label_of_a_face_of_any_size_is_whole_and_hides_nothing(side: int) -> None:
    crop = np.full((side, side, 3), 120, np.uint8)
    said = answers.FacePrediction(Face(0, 0, side, side, math.nan), {"surprise": 1.0}, None, None)
    drawn = answers.annotate(crop, [said], boxes=False)
    ground = np.abs(drawn.astype(int) - answers.BOX_COLOUR).max(axis=2) < 60
    strip = drawn.shape[0] - drawn.shape[1]
    assert drawn.shape[1] >= 240 and strip > 0 and (drawn[strip:] == 120).all()
    assert ground[:strip].any() and not ground[:, -10:].any()  # the text ends within the picture
    assert answers.annotate(crop, [], boxes=False).shape == crop.shape
    assert answers.annotate(np.zeros((20_000, 1, 3), np.uint8), [said], boxes=False).shape == (20_040, 1, 3)


def test_what_tables_refuse(checkpoint: str, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--resume"], "give --csv FILE or --parquet FILE"),
        (["--parquet", "a.csv"], "must end in .parquet"),
        (["--csv", "a.parquet"], "for Parquet give --parquet"),
        (["--csv", "a.csv", "--json"], "not allowed with"),
        (["--csv", "."], "is a folder"),
        (["--csv", "new/"], "new/ is no file's name"),
        (["--parquet", "-"], "- is no file's name"),
        (["--csv", ""], "is a folder"),
        (["--csv", str(album)], "is a folder"),
        (["-b.jpg"], "a name that begins with - is given as ./-b.jpg"),
    ):
        with pytest.raises(SystemExit) as left:
            predict.main([str(album), "--model", checkpoint, *words])
        assert left.value.code == 2 and said in capsys.readouterr().err


def test_several_images_at_once_answer_as_one_by_one(checkpoint: str, pictures: Path, two_faces: list[Face]) -> None:
    predictor = predict.EmotionPredictor(checkpoint)
    images = [read_image(pictures / name) for name in ("big.png", "small.png")]
    assert predictor.predict_batch(images) == [predictor.predict(image) for image in images]
    assert predictor.predict_batch([]) == []
    label, shares = predictor.predict_single_image(pictures / "big.png")
    assert label == "happy" and shares == pytest.approx(PROBABILITIES, abs=1e-6)


def test_a_single_image_without_a_face(checkpoint: str, pictures: Path) -> None:
    with pytest.raises(ValueError, match="no face found"):
        predict.EmotionPredictor(checkpoint).predict_single_image(pictures / "big.png")


def test_threads_may_share_a_predictor(checkpoint: str, pictures: Path) -> None:
    predictor = predict.EmotionPredictor(checkpoint)
    images = [np.random.default_rng(at).integers(0, 256, (40, 40, 3), dtype=np.uint8) for at in range(24)]
    alone = [predictor.predict(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(predictor.predict, images)) == alone


@pytest.mark.parametrize(("label_set", "expected"), [("fer4", {"angry": 0.08, "sad": 0.13, "happy": 0.6, "neutral": 0.19})])
def test_other_classes_are_summed(checkpoint: str, pictures: Path, label_set: str, expected: dict[str, float]) -> None:
    predictor = predict.EmotionPredictor(checkpoint, label_set=label_set)
    faces, _ = predictor.predict(read_image(pictures / "small.png"))
    assert faces[0].probabilities == pytest.approx(expected, abs=1e-6)
    with pytest.raises(models.ModelError, match="says nothing of contempt"):
        predict.EmotionPredictor(checkpoint, label_set="affectnet8")


def test_logits_are_divided_by_the_temperature_of_the_file(checkpoint: str, pictures: Path) -> None:
    predictor = predict.EmotionPredictor(checkpoint, detector="none")
    image = read_image(pictures / "small.png")
    plain = predictor.predict(image)[0][0].probabilities
    predictor.network.temperatures = {"logits": 2.0}
    roots = {name: math.sqrt(share) for name, share in plain.items()}
    expected = {name: root / sum(roots.values()) for name, root in roots.items()}
    soft = predictor.predict(image)[0][0].probabilities
    assert soft == pytest.approx(expected, rel=1e-5) and max(plain.values()) - max(soft.values()) > 0.01


# --- explained ----------------------------------------------------------------------------------------------------------


def test_what_the_answer_rests_on_is_found(checkpoint: str) -> None:
    """A network that is the happier, the brighter the lower right corner, and the sadder, the brighter the upper left."""
    predictor = predict.EmotionPredictor(checkpoint)

    class Network:
        heads, temperatures, affect = {"logits": FER7}, {"logits": 1.0}, False

        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            logits = np.zeros((len(images), 7), np.float32)
            logits[:, 3] = images[:, 0, 24:, 24:].mean(axis=(1, 2))
            logits[:, 4] = images[:, 0, :12, :12].mean(axis=(1, 2))
            return {"logits": logits}

    predictor.network = Network()
    inputs = np.ones((1, 36, 36), np.float32) * 2
    fall = predictor.explain(inputs, "happy")
    assert fall.shape == (36, 36)
    assert (fall[28:, 28:] > 0.005).all() and (fall[2:8, 2:8] < -0.005).all()
    uneven = predictor.explain(np.ones((1, 40, 56), np.float32) * 2, "happy")
    assert uneven.shape == (40, 56) and (uneven[-4:, -4:] > 0.001).all()  # the last rows and columns are hidden, too
    assert np.abs(fall[20:, :12]).max() < 1e-9 and np.abs(fall[:16, 24:]).max() < 1e-9
    # One patch of 6 px at the corner of 12: a quarter of its brightness goes of its logit, and of its log-odds.
    assert fall[35, 35] == pytest.approx(0.5, abs=1e-6)
    assert np.array_equal(predictor.explain(inputs), predictor.explain(inputs, "happy"))  # the first of equals
    sure = np.where(np.arange(36) < 12, 0, inputs * 50).astype(
        np.float32
    )  # its probability is 1 to forty digits, then thirty
    bright = predictor.explain(sure, "happy")
    assert bright[35, 35] == pytest.approx(25.0, rel=1e-6)


def test_explained_pictures(checkpoint: str, pictures: Path, two_faces: list[Face], tmp_path: Path) -> None:
    names = [str(pictures / name) for name in ("big.png", "text.jpg")]
    assert predict.main([*names, "--model", checkpoint, "--save", str(tmp_path), "--explain"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000_big.jpg", "000000_big_explained.jpg"]
    assert read_image(tmp_path / "000000_big_explained.jpg").shape == (2 * (240 + 28), 480, 3)
    with pytest.raises(SystemExit):
        predict.main([names[0], "--explain"])


def test_what_is_not_installed_is_said(
    checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [str(pictures / "small.png"), "--model", checkpoint]
    monkeypatch.setattr(answers, "find_spec", lambda name: None)
    assert predict.main([*flags, "--parquet", str(tmp_path / "a.parquet")]) == 2
    assert "a.parquet needs pyarrow – run: pip install pyarrow, or give --csv\n" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "models", None)
    assert predict.main(flags) == 2
    assert capsys.readouterr().err == "predict.py: models is missing – run: pip install -r requirements.txt\n"


def test_a_complete_table_of_other_pictures_is_not_taken_for_this_call(
    checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = ["b\r\n.png"] + ([os.fsdecode(b"c\xe9.png")] if sys.platform == "linux" else [])
    for name in names if sys.platform != "win32" else ["b.png"]:
        shutil.copy(pictures / "small.png", folder / name)
    for form in ("csv", "parquet"):
        flags = [str(folder), "--model", checkpoint, f"--{form}", str(tmp_path / f"a.{form}"), "--resume"]
        assert predict.main(flags) == 0 and predict.main(flags) == 0
        assert "complete already: nothing was read" in capsys.readouterr().out
        if form == "csv":  # a copy that broke off
            whole = (tmp_path / "a.csv").read_bytes()
            for place in (whole.rindex(b","), whole.rindex(b",") - 30):
                (tmp_path / "a.csv").write_bytes(whole[:place])
                assert predict.main(flags) == 2
                assert "a.csv is cut short – remove it, or give another name" in capsys.readouterr().err
            (tmp_path / "a.csv").write_bytes(whole)
        for late in ("a.png", "z.png"):
            shutil.copy(pictures / "small.png", folder / late)
            assert predict.main(flags) == 2
            assert "is complete, and of other pictures – give another name, or remove it" in capsys.readouterr().err
            (folder / late).unlink()


def test_names_that_file_systems_take() -> None:
    assert answers.stem_of("https://host/photo?id=1&x=<2>.jpg") == "photo_id=1&x=_2_"
    assert answers.stem_of("a/b.c.png") == "b.c" and answers.stem_of("") == "picture"
    long = answers.stem_of("写" * 90 + ".png")
    assert 0 < len(os.fsencode(long)) <= 160 and long.endswith("写")


def test_a_list_that_changed_is_not_gone_on_with(
    checkpoint: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "BATCH_PICTURES", 1)
    names = [str(write_picture(tmp_path / f"{at}.png", 20, 20)) for at in range(3)]
    real = answers.Table.write
    monkeypatch.setattr(answers.Table, "write", lambda table, part: real(table, part) if table.done < 1 else interrupt())
    flags = ["-", "--model", checkpoint, "--csv", str(tmp_path / "a.csv")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names[:2])))
    assert predict.main(flags) == 130
    assert "call it again with --resume" in capsys.readouterr().err
    monkeypatch.setattr(answers.Table, "write", real)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names[1:])))
    assert predict.main([*flags, "--resume"]) == 2 and "begun with other pictures" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names)))
    assert predict.main([*flags, "--resume"]) == 0
    assert [row["path"] for row in read_csv(tmp_path / "a.csv")] == names


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="takes no such name")
def test_names_that_are_no_text_or_hold_a_carriage_return(
    checkpoint: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (pictures / "small.png").read_bytes()
    odd, ends = os.fsencode(tmp_path) + b"/\xff.png", tmp_path / "a\rb.png"
    Path(os.fsdecode(odd)).write_bytes(content)
    ends.write_bytes(content)
    listed = io.TextIOWrapper(io.BytesIO(odd + b"\n"), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdin", listed)
    flags = ["--model", checkpoint, "--detector", "none"]
    assert predict.main(["-", *flags, "--csv", str(tmp_path / "odd.csv")]) == 0
    for form in ("csv", "parquet"):
        assert predict.main([str(ends), *flags, f"--{form}", str(tmp_path / f"a.{form}")]) == 0
    paths = [pd.read_csv(tmp_path / "a.csv")["path"][0], pd.read_parquet(tmp_path / "a.parquet")["path"][0]]
    assert paths == [str(tmp_path / "a\\rb.png")] * 2


def test_many_faces_go_through_the_network_in_parts(
    checkpoint: str, pictures: Path, two_faces: list[Face], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predict.EmotionPredictor(checkpoint)
    images = [read_image(pictures / "big.png")] * 3
    whole = predictor.predict_batch(images)
    network, sizes = predictor.network, []

    def counted(inputs: np.ndarray) -> Any:
        sizes.append(len(inputs))
        return network(inputs)

    monkeypatch.setattr(predict, "BATCH_FACES", 4)
    counted.temperatures, counted.affect = network.temperatures, network.affect  # type: ignore[attr-defined]
    monkeypatch.setattr(predictor, "network", counted)
    parts = predictor.predict_batch(images)
    assert sizes == [4, 2]
    for (one, _), (other, _) in zip(whole, parts, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.face == b.face and a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


def test_a_picture_that_takes_too_much_memory_does_not_end_the_others(
    checkpoint: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(image: np.ndarray) -> list[Face]:
        if len(image) > 100:
            raise MemoryError
        return []

    monkeypatch.setattr(predict, "make_detector", lambda name, model: (short, "none"))
    names = [str(pictures / name) for name in ("big.png", "small.png")]
    flags = ["--model", checkpoint, "--save", str(tmp_path / "drawn")]
    first, second = answer_json(capsys, *names, *flags, status=1)
    assert first["error"] == "cannot be searched for faces" and second["error"] is None
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["000001_small.jpg"]


def test_how_faces_are_found_is_said_with_tables(
    checkpoint: str, pictures: Path, two_faces: list[Face], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([str(pictures / "big.png"), "--model", checkpoint, "--csv", str(tmp_path / "a.csv")]) == 0
    assert capsys.readouterr().err == f"predict.py: faces are found by {answers.DETECTOR_NAMES['haar']}\n"


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_was_saved_is_not_read_again(checkpoint: str, album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        predict.main([str(album), "--model", checkpoint, "--save", str(album / "drawn"), "--jsonl"])
        assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize(
    "words",
    ["--webcam --csv a.csv", "--webcam --json", "--webcam --save d --explain", "a.mp4 --save d --explain"],
)
def test_flags_that_would_do_nothing(words: str) -> None:
    with pytest.raises(SystemExit) as left:
        predict.main(words.split())
    assert left.value.code == 2


def test_devices_of_onnx_files(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device, said in (("mps", "runs on cpu or cuda"), ("cuda:x", "runs on cpu or cuda"), ("cuda", "not available here")):
        assert predict.main([str(pictures / "small.png"), "--device", device]) == 2
        assert said in capsys.readouterr().err


# --- tables that are there already --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_is_never_written_over(
    checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    table = tmp_path / f"a.{form}"
    flags = [str(pictures / "small.png"), "--model", checkpoint, f"--{form}", str(table)]
    table.touch()  # nothing is lost
    assert predict.main(flags) == 0
    before = table.read_bytes()
    assert predict.main([*flags, "--resume"]) == 0
    assert "is complete already: nothing was read" in capsys.readouterr().out
    for more, said in (
        ([], f"predict.py: {table} is there already – remove it, or give another name\n"),
        (["--resume", "--label_set", "fer4"], f"predict.py: {table} has not the columns of this call – remove it"),
    ):
        assert predict.main([*flags, *more]) == 2
        assert capsys.readouterr().err.startswith(said) and table.read_bytes() == before
    if form == "csv":  # an unclosed quote, and much behind it
        csv.field_size_limit(131_072)  # csv's own, that reading pixels in one file raises
        table.write_bytes(before.replace(b"\n0,", b'\n"0,', 1) + b"x" * 200_000)
        assert predict.main([*flags, "--resume"]) == 2 and "is damaged (field larger than" in capsys.readouterr().err
    table.write_bytes(b"something else \xff\n")
    assert predict.main([*flags, "--resume"]) == 2 and "has not the columns" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_with_an_empty_name(
    checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    flags = [str(pictures / "small.png"), "", "--model", checkpoint, f"--{form}", str(tmp_path / f"a.{form}")]
    assert predict.main(flags) == 1  # as of a shell's variable that is not set
    assert predict.main([*flags, "--resume"]) == 1
    assert "is complete already: nothing was read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("note", "content", "said"),
    [
        (b"", b"a", "is damaged"),
        (b"[]", b"a", "is damaged"),
        (b'{"done": 1}', b"a", "is damaged"),
        (b"\xff{", b"a", "is damaged"),
        (None, b"a", "is shorter than it was"),
        (None, None, "is shorter than it was"),
    ],
)
def test_damaged_notes_and_tables(
    checkpoint: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], note: bytes | None, content: bytes | None, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(answers.Table, "close", lambda table: interrupt())
    table = tmp_path / "a.csv"
    flags = [str(pictures / "small.png"), "--model", checkpoint, "--csv", str(table)]
    assert predict.main(flags) == 130
    if note is not None:
        (tmp_path / "a.csv.progress").write_bytes(note)
    table.unlink()
    if content is not None:
        table.write_bytes(content)
    capsys.readouterr()
    assert predict.main([*flags, "--resume"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.endswith(f" – remove {table} and {table}.progress\n") and error.count("\n") == 1
    assert table.read_bytes() == content if content is not None else not table.exists()


# --- odd names and sizes ------------------------------------------------------------------------------------------------


def test_names_that_no_file_system_takes(
    checkpoint: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["nul\0.png", "nul\0*.png", "nul\0/[a].png", "n" * 300 + ".png", str(pictures / "small.png")]
    documents = answer_json(capsys, *names, "--model", checkpoint, status=1)
    assert [document["error"] for document in documents] == ["unreadable"] * 4 + [None]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names)))
    assert predict.main(["-", "--model", checkpoint, "--csv", str(tmp_path / "a.csv")]) == 1
    assert [row["error"] for row in read_csv(tmp_path / "a.csv")] == ["unreadable"] * 4 + [""]


def test_a_folder_that_may_not_be_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faces.os, "open", refuse)
    assert faces.image_fault(tmp_path) == "not a file"
    monkeypatch.setattr(faces.os, "access", lambda *_: False)
    assert faces.image_fault(tmp_path) == "unreadable"


def refuse(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_pictures_that_are_too_wide_for_jpeg(tmp_path: Path) -> None:
    for shape, expected in (
        ((4, 65_501, 3), (3, 65_500, 3)),
        ((131_000, 2, 3), (65_500, 1, 3)),
        ((1, 70_000, 3), (1, 65_500, 3)),
    ):
        answers.write_jpeg(tmp_path, "a.jpg", np.full(shape, 90, np.uint8))
        assert read_image(tmp_path / "a.jpg").shape == expected


def test_what_cannot_be_written_is_said(
    checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for flag, target in (("--save", tmp_path / "file"), ("--csv", tmp_path / "file" / "a.csv")):
        assert (
            predict.main([str(pictures / "small.png"), "--model", checkpoint, "--detector", "haar", flag, str(target)]) == 2
        )
        error = capsys.readouterr().err
        assert error.startswith(f"predict.py: {tmp_path / 'file'}") and error.count("\n") == 1
        assert "cannot be written or read (" in error and error.endswith(" – give another --save, --csv or --parquet\n")
        assert "Errno" not in error


def test_a_detector_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FER_DETECTOR", str(tmp_path / "none.onnx"))
    with pytest.raises(faces.DetectorError, match=r"none\.onnx, which FER_DETECTOR names, is not there – unset it"):
        faces.YuNet(str(tmp_path / "none.onnx"))
    with pytest.raises(faces.DetectorError, match=r"other\.onnx is not there – run: make detector, and leave out"):
        faces.YuNet(str(tmp_path / "other.onnx"))


def test_the_bar_is_shown_where_answers_do_not_appear(
    checkpoint: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars: list[dict[str, Any]] = []

    class Bar(tqdm.tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            bars.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    flags = [str(pictures / "small.png"), str(pictures / "big.png"), "--model", checkpoint]
    for terminal, form, disable in (
        (True, [], True), (True, ["--jsonl"], True), (True, ["--json"], None), (False, [], None), (False, ["--jsonl"], None),
    ):  # fmt: skip
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        predict.main([*flags, *form])
        assert bars.pop()["disable"] is disable
    monkeypatch.setattr(predict, "BATCH_PICTURES", 1)
    real = answers.Table.write
    monkeypatch.setattr(answers.Table, "write", lambda table, part: real(table, part) if table.done < 1 else interrupt())
    assert predict.main([*flags, "--csv", str(tmp_path / "a.csv")]) == 130
    monkeypatch.setattr(answers.Table, "write", real)
    assert predict.main([*flags, "--csv", str(tmp_path / "a.csv"), "--resume"]) == 0
    assert [(bar["disable"], bar["initial"]) for bar in bars] == [(None, 0), (None, 1)]
