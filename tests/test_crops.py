"""Photos → crops: the largest face, aligned; what goes along, what is left out, and going on where it was interrupted."""

import os
import shutil
from pathlib import Path

import faces
from faces import Face, read_image

import cv2
import numpy as np
import pytest

import crops
import metadata_parallel
from fer_transform import read_metadata

LANDMARKS = np.array(crops.FER2013_LANDMARKS).reshape(5, 2)


def write(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(path.suffix, picture[:, :, ::-1])[1].tofile(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures in two folders, of which one is broken, and notes beside them."""
    generator = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.jpg", "b/3.png"):
        write(tmp_path / "photos" / name, generator.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    (tmp_path / "photos" / "a" / "broken.jpg").write_text("no picture", encoding="utf-8")
    (tmp_path / "photos" / "a" / "1_exp.npy").write_bytes(b"notes")
    return tmp_path / "photos"


def two_faces(image: np.ndarray) -> list[Face]:
    """A large face with landmarks at (60, 40), 200 px, and a small one."""
    places = tuple((60 + 200 * x, 40 + 200 * y) for x, y in LANDMARKS)
    return [Face(70, 60, 170, 180, 0.9, places), Face(300, 10, 30, 30, 0.8)]


def test_the_largest_face_is_cut_out_as_fer2013_shows_faces(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crops, "detector_of", lambda name, model: two_faces)
    settings = {"source": photos, "target": tmp_path / "crops", "detector": "yunet", "model": None}
    assert crops.crop_file("a/1.png", **settings) == crops.CROPPED  # type: ignore[arg-type]
    found = read_image(tmp_path / "crops" / "a" / "1.png")
    whole = read_image(photos / "a" / "1.png")[40:240, 60:260]
    assert np.array_equal(found, cv2.resize(whole, (224, 224), interpolation=cv2.INTER_LINEAR))
    monkeypatch.setattr(crops, "detector_of", lambda name, model: lambda image: [Face(100, 50, 100, 80, float("nan"))])
    assert crops.crop_file("b/3.png", **settings) == crops.CROPPED  # type: ignore[arg-type]
    by_box = read_image(photos / "b" / "3.png")[30:150, 90:210]  # 100 px with a tenth more on every side
    assert np.array_equal(
        read_image(tmp_path / "crops" / "b" / "3.png"), cv2.resize(by_box, (224, 224), interpolation=cv2.INTER_LINEAR)
    )


def test_what_was_cropped_already_stays(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"source": photos, "target": tmp_path / "crops", "detector": "yunet", "model": None}
    monkeypatch.setattr(crops, "detector_of", lambda name, model: two_faces)
    crops.crop_file("a/1.png", **settings)  # type: ignore[arg-type]
    before = (tmp_path / "crops" / "a" / "1.png").read_bytes()
    monkeypatch.setattr(crops, "detector_of", lambda name, model: lambda image: [])
    assert crops.crop_file("a/1.png", **settings) == crops.CROPPED  # type: ignore[arg-type]
    assert (tmp_path / "crops" / "a" / "1.png").read_bytes() == before
    then = (photos / "a" / "1.png").stat().st_mtime
    for changed in (then + 100, then - 100):  # an older one was moved here
        monkeypatch.setattr(crops, "detector_of", lambda name, model: two_faces)
        crops.crop_file("a/1.png", **settings)  # type: ignore[arg-type]
        os.utime(photos / "a" / "1.png", (changed, changed))
        monkeypatch.setattr(crops, "detector_of", lambda name, model: lambda image: [])
        assert crops.crop_file("a/1.png", **settings) == "no face found"  # type: ignore[arg-type]


def test_annotations_that_are_replaced_by_older_ones_are_copied_anew(photos: Path, tmp_path: Path) -> None:
    settings = {"source": photos, "target": tmp_path / "crops", "detector": "haar", "model": None}
    assert crops.crop_file("a/1_exp.npy", **settings) == crops.COPIED  # type: ignore[arg-type]
    (photos / "a" / "1_exp.npy").write_bytes(b"others")
    os.utime(photos / "a" / "1_exp.npy", (1_600_000_000, 1_600_000_000))
    for _ in range(2):
        assert crops.crop_file("a/1_exp.npy", **settings) == crops.COPIED  # type: ignore[arg-type]
        assert (tmp_path / "crops" / "a" / "1_exp.npy").read_bytes() == b"others"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_folders_are_cropped_and_loops_are_not_followed(photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (photos / "b").rename(store)
    (photos / "b").symlink_to(store)
    (photos / "a" / "round").symlink_to(photos)
    (photos / "a" / "crops").symlink_to(tmp_path / "crops")
    (tmp_path / "crops").mkdir()
    names = [name.replace(os.sep, "/") for name in crops.files_of(photos, tmp_path / "crops")]
    assert [name for name in names if name.startswith("b/")] and not [name for name in names if "round" in name]
    (photos / "a" / "1.png").unlink()
    (photos / "a" / "1.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "crops" / "a").mkdir()
    (tmp_path / "crops" / "a" / "1.png").write_bytes(b"a crop")
    settings = {"source": photos, "target": tmp_path / "crops", "detector": "haar", "model": None}
    assert crops.crop_file("a/1.png", **settings) == "not a file"  # type: ignore[arg-type]
    assert not (tmp_path / "crops" / "a" / "1.png").exists()


def test_a_folder_is_cropped_and_the_rest_goes_along(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = photos / "crops"  # inside the photos: it is not searched itself
    for _ in range(2):
        assert crops.main([str(photos), str(target), "--detector", "haar", "--workers", "2"]) == 0
        out = capsys.readouterr().out
        assert "0 faces in" in out and "4 pictures left out" in out
        assert "3   no face found" in out and "1   not an image" in out
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*.*")) == [".detector", "a/1_exp.npy"]
    assert (target / "a" / "1_exp.npy").read_bytes() == b"notes"


def test_crops_of_photos_that_changed_or_went_are_removed(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "crops"
    assert crops.main([str(photos), str(target), "--detector", "haar", "--workers", "1"]) == 0
    for name in ("a/1.png", "a/gone.png", "a/gone_exp.npy", "a/1_lnd.npy", "a/others.npy"):
        (target / name).write_bytes(b"a crop")
    (photos / "a" / "1_lnd.npy").write_bytes(b"places in the photo")
    later = (target / "a" / "1.png").stat().st_mtime + 100
    os.utime(photos / "a" / "1.png", (later, later))
    assert "crops of photos" not in capsys.readouterr().out
    assert crops.main([str(photos), str(target), "--detector", "haar", "--workers", "1"]) == 0
    assert "1   crops of photos that are gone: removed" in capsys.readouterr().out
    left = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.*"))
    assert left == [".detector", "a/1_exp.npy", "a/others.npy"]


def test_crops_of_other_photos_stay(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "crops"
    assert crops.main([str(photos), str(target), "--detector", "haar", "--workers", "1"]) == 0
    (target / "a" / "1.png").write_bytes(b"a crop")
    (tmp_path / "others").mkdir()
    for said in ("holds crops of", "holds no files – is the path right?"):
        assert crops.main([str(tmp_path / "others"), str(target), "--detector", "haar"]) == 2
        assert said in capsys.readouterr().err and (target / "a" / "1.png").is_file()
        (target / ".detector").write_text(f"haar\n{tmp_path / 'others'}", encoding="utf-8")


def test_folders_that_do_not_fit(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, target, said in (
        (photos, photos, "cannot be written over"),
        (photos, tmp_path, "cannot be written over"),
        (photos / "a" / "1.png", tmp_path / "new", "is no folder of photos"),
        (photos / "none", tmp_path / "new", "none not found – is the path right?"),
    ):
        assert crops.main([str(source), str(target), "--detector", "haar"]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert crops.main([str(photos), str(tmp_path / "other"), "--detector", "haar", "--workers", "-1"]) == 2
    assert "--workers -1" in capsys.readouterr().err
    (tmp_path / "by").mkdir()
    (tmp_path / "by" / ".detector").write_bytes(b"")  # of a full disk
    assert crops.main([str(photos), str(tmp_path / "by"), "--detector", "haar"]) == 2
    assert "holds crops by an unknown detector, not haar" in capsys.readouterr().err
    (tmp_path / "by" / ".detector").write_text(f"yunet\n{photos}", encoding="utf-8")
    assert crops.main([str(photos), str(tmp_path / "by"), "--detector", "haar"]) == 2
    assert "holds crops by yunet, not haar" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cat.png").write_bytes(b"a cat")
    assert crops.main([str(photos), str(tmp_path / "mine"), "--detector", "haar"]) == 2
    assert "holds other files than crops" in capsys.readouterr().err and (tmp_path / "mine" / "cat.png").is_file()
    data = ["--data", str(photos), "--out", str(tmp_path / "meta")]
    for words in (["--crop", str(tmp_path / "c"), "--test_data", str(photos)], ["--detector", "haar"]):
        assert metadata_parallel.main([*data, *words]) == 2
        assert "metadata_parallel.py: --" in capsys.readouterr().err
    assert crops.main([str(photos), str(tmp_path / "new"), "--detector_model", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx is not there" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_photos_without_a_crop_are_listed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("happy", "sad"):
        shutil.copytree(photos / "a", tmp_path / "set" / "train" / label)
    crop, flags = (
        tmp_path / "crops",
        ["--data", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--label_set", "fer7"],
    )
    for label in ("happy", "sad"):  # what an earlier call has found
        write(crop / "train" / label / "1.png", np.zeros((224, 224, 3), np.uint8))
        photo = (tmp_path / "set" / "train" / label / "1.png").stat()
        os.utime(crop / "train" / label / "1.png", ns=(photo.st_atime_ns, photo.st_mtime_ns))
    (crop / ".detector").write_text(f"haar\n{(tmp_path / 'set').resolve()}", encoding="utf-8")
    assert metadata_parallel.main([*flags, "--crop", str(crop), "--detector", "haar", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "crops      2 faces in" in out and "left out: 6, listed in metadata_skipped.csv" in out  # the notes, too
    listed = (tmp_path / "out" / "metadata_skipped.csv").read_text(encoding="utf-8")
    assert f"{tmp_path / 'set' / 'train' / 'sad' / 'broken.jpg'},not an image" in listed and "2.jpg,no face found" in listed
    out_folder = (tmp_path / "out").as_posix()
    wanted = (f"--{split}_meta {out_folder}/metadata_{split}.parquet" for split in ("train", "val"))
    assert out.endswith(f"next: python train.py {' '.join(wanted)}\n")


def test_pixels_are_not_cropped(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", str(pixels), "--crop", str(tmp_path / "crops"), "--out", str(tmp_path / "out")]
    assert metadata_parallel.main(flags) == 2
    assert "are faces already – leave it out" in capsys.readouterr().err and not (tmp_path / "crops").exists()


@pytest.mark.skipif("YUNET" not in os.environ or "FACE_FIXTURES" not in os.environ, reason="YUNET, FACE_FIXTURES: not set")
def test_photos_become_a_training_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real photos as class folders: crops in which the landmarks lie where FER2013's do, and metadata of these."""
    portraits = ("astronaut.png", "obama.jpg", "biden.jpg")
    for split in ("train", "val"):
        for label in ("happy", "neutral"):
            for name in portraits:
                path = tmp_path / "photos" / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(os.environ["FACE_FIXTURES"]) / "faces" / name, path)
    flags = ["--data", str(tmp_path / "photos"), "--crop", str(tmp_path / "crops"), "--out", str(tmp_path / "out")]
    assert metadata_parallel.main([*flags, "--label_set", "fer7", "--detector_model", os.environ["YUNET"]]) == 0
    assert "crops      12 faces in" in capsys.readouterr().out
    rows, info = read_metadata(tmp_path / "out" / "metadata_train.parquet")
    assert len(rows) == 6 and (tmp_path / "out" / info["data_root"]).resolve() == (tmp_path / "crops").resolve()
    detect = faces.YuNet(os.environ["YUNET"])
    for path in rows["path"]:
        crop = read_image(tmp_path / "crops" / path)
        assert crop.shape == (224, 224, 3)
        (face,) = detect(crop)
        assert np.abs(np.array(face.landmarks) / 224 - LANDMARKS).max() < 0.09
