"""The drawn faces: the same bytes for a seed, AffectNet's layout, expressions that follow class, valence and arousal."""

from pathlib import Path

import faces

import cv2
import numpy as np
import pytest

import sample_faces
from labels import LABEL_SETS

NAMES = LABEL_SETS["affectnet8"].names
LEFT_CORNER, RIGHT_CORNER, NOSE_TIP, UPPER_LIP, LOWER_LIP, CHIN = 48, 54, 33, 62, 66, 8


def landmarks_of(label: str, valence: float, arousal: float, seed: int, size_px: int = 64) -> np.ndarray:
    """Landmarks (68, 2) of person `seed`."""
    return sample_faces.draw_face(np.random.default_rng(seed), label, valence, arousal, size_px)[1]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 40 faces and six bad ones."""
    out = tmp_path_factory.mktemp("sample") / "data"
    sample_faces.write_dataset(out, count=40, size_px=48, seed=3, bad=6)
    return out


def test_same_seed_same_bytes(small: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        sample_faces.write_dataset(tmp_path / str(seed), count=40, size_px=48, seed=seed, bad=6)
    assert bytes_of(tmp_path / "3") == bytes_of(small)
    other = bytes_of(tmp_path / "4")
    pictures = [name for name in other if name.startswith("images/") and "bad_" not in name]
    assert len(pictures) == 40
    assert all(other[name] != bytes_of(small)[name] for name in pictures)


def test_layout_and_types(small: Path) -> None:
    assert sorted(path.name for path in small.iterdir()) == ["SYNTHETIC.txt", "annotations", "images"]
    assert "seed 3, 40 faces of 48 px, 6 bad" in (small / "SYNTHETIC.txt").read_text(encoding="utf-8")
    for index in range(40):
        assert faces.read_image(small / "images" / f"{index}.jpg").shape == (48, 48, 3)
        arrays = {key: np.load(small / "annotations" / f"{index}_{key}.npy") for key in ("exp", "val", "aro", "lnd")}
        for key in ("exp", "val", "aro"):
            assert arrays[key].shape == () and arrays[key].dtype.kind == "U"
        assert str(arrays["exp"]) in "01234567"
        assert -1 <= float(arrays["val"]) <= 1 and -1 <= float(arrays["aro"]) <= 1
        assert arrays["lnd"].shape == (136,) and arrays["lnd"].dtype == np.float64


def test_written_labels_follow_the_table(small: Path) -> None:
    written = [NAMES[int(np.load(small / "annotations" / f"{index}_exp.npy")[()])] for index in range(40)]
    assert {name: written.count(name) for name in NAMES} == sample_faces.class_counts(40)
    assert written != sorted(written, key=NAMES.index)  # shuffled


def test_class_counts() -> None:
    assert sum(region.share for region in sample_faces.REGIONS.values()) == pytest.approx(1)
    assert tuple(sample_faces.REGIONS) == tuple(sample_faces.CLASS_EXPRESSIONS) == NAMES
    expected = {"neutral": 18, "happy": 20, "sad": 14, "surprise": 12, "fear": 10, "disgust": 7, "angry": 13, "contempt": 6}
    assert sample_faces.class_counts(100) == expected
    for count in (1, 7, 99, 2399):
        counts = sample_faces.class_counts(count)
        assert sum(counts.values()) == count
        assert all(abs(counts[name] - count * sample_faces.REGIONS[name].share) < 1 for name in NAMES)


def test_affect_lies_in_the_region_of_its_class() -> None:
    for name in NAMES:
        region = sample_faces.REGIONS[name]
        drawn = np.array([sample_faces.draw_affect(np.random.default_rng(seed), name) for seed in range(400)])
        assert np.abs(drawn).max() <= 1
        # Clipping at ±1 moves the mean of the outermost regions by less than 0.01; the rest is 4 standard errors.
        assert np.abs(drawn.mean(axis=0) - (region.valence, region.arousal)).max() < 0.01 + 4 * 0.22 / np.sqrt(400)


@pytest.mark.parametrize("label", NAMES)
def test_landmarks_are_inside_and_in_ibug_order(label: str) -> None:
    for seed in range(25):
        region = sample_faces.REGIONS[label]
        points = landmarks_of(label, region.valence, region.arousal, seed)
        assert points.shape == (68, 2) and points.dtype == np.float32
        assert points.min() >= 0 and points.max() <= 63
        across = points[42:48].mean(axis=0) - points[36:42].mean(axis=0)  # from eye to eye: undoes the roll of the head
        cos, sin = across / np.linalg.norm(across)
        x, y = np.array([[cos, sin], [-sin, cos]]) @ points.T
        assert (np.diff(x[:17]) > 0).all() and y[CHIN] > y[:17].mean() + 5  # jaw, from left to right
        assert (np.diff(x[17:27]) > 0).all()  # both brows
        assert (np.diff(y[27:31]) > 0).all()  # bridge, downwards
        assert (np.diff(x[31:36]) > 0).all()
        assert x[36] < x[37] < x[38] < x[39] < x[42] < x[43] < x[44] < x[45]
        assert y[17:27].mean() < y[36:48].mean() < y[31:36].mean() < y[48:68].mean() < y[CHIN]
        assert (np.diff(x[48:55]) > 0).all() and (np.diff(x[55:60]) < 0).all()


@pytest.mark.parametrize("label", NAMES)
def test_valence_lifts_the_corners_of_the_mouth(label: str) -> None:
    for seed in range(10):
        low, high = (landmarks_of(label, valence, 0.2, seed) for valence in (-0.8, 0.8))
        heights = [points[NOSE_TIP, 1] - (points[LEFT_CORNER, 1] + points[RIGHT_CORNER, 1]) / 2 for points in (low, high)]
        assert heights[1] - heights[0] > 1.5  # pixels of 64


def test_arousal_opens_mouth_and_eyes() -> None:
    for seed in range(10):
        drawn = [landmarks_of("surprise", 0.2, arousal, seed) for arousal in (0.1, 0.4, 0.7, 1.0)]
        mouths = [np.linalg.norm(points[LOWER_LIP] - points[UPPER_LIP]) for points in drawn]
        eyes = [np.linalg.norm(points[[37, 38, 43, 44]] - points[[41, 40, 47, 46]], axis=1).mean() for points in drawn]
        assert (np.diff(mouths) > 0.5).all(), mouths  # pixels of 64
        assert (np.diff(eyes) > 0.1).all(), eyes


def test_contempt_lifts_one_corner() -> None:
    def lopsided(label: str) -> float:
        skews = []
        for seed in range(40):
            points = landmarks_of(label, -0.5, 0.3, seed, 256)
            outward = points[45] - points[36]  # the line of the eyes, so that a rolled head is not taken for a smirk
            across = points[RIGHT_CORNER] - points[LEFT_CORNER]
            skews.append(abs(outward[0] * across[1] - outward[1] * across[0]) / np.dot(outward, outward))
        return float(np.mean(skews))

    assert lopsided("contempt") > 2 * lopsided("neutral")


def test_only_the_face_follows_the_expression() -> None:
    pictures = [
        sample_faces.draw_face(np.random.default_rng(5), label, *affect, 64)[0].astype(int)
        for label, affect in (("happy", (0.7, 0.2)), ("sad", (-0.6, -0.3)))
    ]
    change = np.abs(pictures[0] - pictures[1]).max(axis=2)
    assert change[:6].max() == 0  # same background, light and grain
    assert change[30:58, 20:44].max() > 40  # another mouth


def test_size_changes_the_scale_only() -> None:
    small, large = (landmarks_of("fear", -0.4, 0.7, 1, size_px) for size_px in (64, 128))
    np.testing.assert_allclose((small + 0.5) * 2, large + 0.5, atol=1e-3)


def test_landmarks_lie_on_what_is_drawn() -> None:
    """The eyes are the landmarks' own: the middle of each is darker than the skin beside it, on light skin."""
    darker = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        light_skin = sum(sample_faces.Person(np.random.default_rng(seed)).skin) > 540
        image, points = sample_faces.draw_face(rng, "surprise", 0.2, 0.6, 128)
        if light_skin:
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
            for eye in (points[36:42], points[42:48]):
                x, y = np.round(eye.mean(axis=0)).astype(int)
                darker.append(grey[y - 1 : y + 2, x - 1 : x + 2].mean() < 0.75 * grey[y + 16 : y + 19, x - 1 : x + 2].mean())
    assert len(darker) >= 30 and np.mean(darker) > 0.95


def test_classes_can_be_told_apart() -> None:
    """A linear classifier on the landmarks alone is right for well over three times chance (1 in 8)."""
    rows, targets = [], []
    for index, label in enumerate(sample_faces.draw_labels(600, seed=8)):
        rng = sample_faces.face_rng(8, index)
        _, points = sample_faces.draw_face(rng, label, *sample_faces.draw_affect(rng, label), 32)
        rows.append(np.append(((points - points.mean(axis=0)) / points.std(axis=0)).ravel(), 1))
        targets.append(NAMES.index(label))
    design, one_hot = np.array(rows), np.eye(8)[targets]
    ridge = design[:450].T @ design[:450] + 0.1 * np.eye(design.shape[1])
    scores = design[450:] @ np.linalg.solve(ridge, design[:450].T @ one_hot[:450])
    accuracy = np.mean(scores.argmax(axis=1) == targets[450:])
    assert 0.5 < accuracy < 0.98, accuracy


def test_unknown_label() -> None:
    with pytest.raises(KeyError, match="bored"):
        sample_faces.draw_face(np.random.default_rng(0), "bored", 0, 0, 32)


def test_bad_files_are_what_they_claim(small: Path) -> None:
    images, annotations = small / "images", small / "annotations"
    assert sorted(path.stem for path in images.glob("bad_*")) == sorted(sample_faces.BAD_FACES)
    faults = {name: faces.image_fault(images / f"{name}.jpg", decode=True) for name in sample_faces.BAD_FACES}
    assert faults == {
        "bad_empty": "empty",
        "bad_truncated": "truncated",
        "bad_text": "not an image",
        "bad_unlabelled": None,
        "bad_class": None,
        "bad_pickle": None,
    }
    unlabelled = sorted(path.name for path in annotations.glob("bad_unlabelled_*"))
    assert unlabelled == ["bad_unlabelled_aro.npy", "bad_unlabelled_lnd.npy", "bad_unlabelled_val.npy"]
    assert str(np.load(annotations / "bad_class_exp.npy")) == "9"
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(annotations / "bad_pickle_exp.npy")
    for name in ("bad_empty", "bad_truncated", "bad_text"):  # nothing but the picture is wrong
        assert str(np.load(annotations / f"{name}_exp.npy")) == "0"


def test_main_reports_and_writes_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    arguments = ["--out", str(tmp_path / "data"), "--count", "16", "--size", "32", "--bad", "2", "--sheet", str(sheet)]
    assert sample_faces.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "16 drawn faces of no real person" in printed and "and 2 bad ones" in printed
    assert len(list((tmp_path / "data" / "images").iterdir())) == 18
    assert faces.read_image(sheet).shape == (8 * 128, 120 + 10 * 128, 3)


def test_a_sheet_that_is_none_is_refused_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    for sheet in ("faces.jpg", "folder.png"):
        with pytest.raises(SystemExit) as ended:
            sample_faces.main(["--out", str(tmp_path / "data"), "--sheet", str(tmp_path / sheet)])
        assert ended.value.code == 2 and "give a file that ends in .png" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_own_folder_is_rewritten_and_nothing_else_in_it_is_lost(tmp_path: Path) -> None:
    sample_faces.write_dataset(tmp_path, count=5, size_px=16, seed=0, bad=6)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert sample_faces.main(["--out", str(tmp_path), "--count", "2", "--size", "16", "--bad", "0"]) == 0
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["0.jpg", "1.jpg"]
    assert len(list((tmp_path / "annotations").iterdir())) == 8
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["images/photo.jpg", "SYNTHETIC.txt"])
def test_other_folders_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "theirs" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff not a marker")
    assert sample_faces.main(["--out", str(tmp_path / "theirs"), "--count", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is not empty and was not made by sample_faces.py" in error and "--out" in error
    assert bytes_of(tmp_path) == {f"theirs/{name}": b"\xff not a marker"}


def test_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").write_text("x", encoding="utf-8")
    assert sample_faces.main(["--out", str(tmp_path / "data")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert sample_faces.main(["--out", str(tmp_path / "data" / "below")]) == 2  # cannot be made
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flag", [["--count", "0"], ["--size", "8"], ["--bad", "7"], ["--seed", "-1"], ["--count", "many"]])
def test_wrong_numbers_are_refused(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        sample_faces.main(flag)
    assert stopped.value.code == 2
    assert "is not a whole number from" in capsys.readouterr().err
