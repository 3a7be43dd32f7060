"""Videos: who is who from frame to frame, smoothing, timelines, the files that are written, cameras without a screen."""

import csv
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faces import Face, ImageError, read_image

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes

import predict
import video
from answers import FacePrediction
from sources import SourceError


def said(x: int, y: int = 50, *, happy: float = 0.8, valence: float | None = None, size: int = 40) -> FacePrediction:
    """A face at a place with a probability of "happy", the rest being "sad"."""
    return FacePrediction(Face(x, y, size, size, 0.9), {"happy": happy, "sad": 1.0 - happy}, valence, None)


# --- tracks -------------------------------------------------------------------------------------------------------------


def test_faces_that_move_keep_their_numbers() -> None:
    tracker = video.Tracker()
    for frame in range(20):
        left, right = said(10 + 4 * frame), said(300 - 5 * frame)
        order = [left, right] if frame % 2 else [right, left]  # the detector's order says nothing
        tracks = tracker.update(frame / 25, frame, order)
        assert [track.number for track in tracks] == ([2, 1] if frame % 2 else [1, 2])
    assert [len(track.frames) for track in tracker.tracks] == [20, 20]


def test_the_pairs_with_the_largest_overlaps_are_matched() -> None:
    """The largest single overlap is that of the first track with the second face; taking it would leave two apart."""
    tracker = video.Tracker()
    first, second = tracker.update(0.0, 0, [said(100), said(120)])
    found = tracker.update(0.04, 1, [said(88), said(108)])
    assert video.overlap(said(100).face, said(108).face) > video.overlap(said(100).face, said(88).face)
    assert [track.number for track in found] == [first.number, second.number]


def test_who_leaves_comes_back_only_soon() -> None:
    tracker = video.Tracker()
    tracker.update(0.0, 0, [said(10)])
    assert tracker.update(0.5, 5, []) == []
    assert tracker.update(0.9, 9, [said(12)])[0].number == 1
    assert tracker.update(2.5, 25, [said(12)])[0].number == 2
    assert tracker.update(2.6, 26, [said(200)])[0].number == 3  # no overlap: somebody else


def test_few_frames_a_second_ask_for_more_patience() -> None:
    tracker = video.Tracker(0.5)
    assert [tracker.update(2.0 * frame, frame, [said(10)])[0].number for frame in range(4)] == [1, 1, 1, 1]
    tracker.update(8.0, 4, [])
    assert tracker.update(10.0, 5, [said(10)])[0].number == 1  # a frame without a face lies between
    assert tracker.update(16.0, 8, [said(10)])[0].number == 2


def test_forgetting_keeps_those_who_may_come_back() -> None:
    tracker = video.Tracker()
    tracker.update(0.0, 0, [said(10), said(200)])
    tracker.update(0.9, 1, [said(12)])
    tracker.forget(1.5)  # the second one was seen 1.5 s ago
    assert [track.number for track in tracker.tracks] == [1]
    assert [track.number for track in tracker.update(1.6, 2, [said(12), said(200)])] == [1, 3]


def test_overlap_by_hand() -> None:
    box = Face(10, 10, 20, 10, math.nan)
    assert video.overlap(box, box) == 1.0
    assert video.overlap(box, Face(20, 10, 20, 10, math.nan)) == pytest.approx(100 / 300)
    assert video.overlap(box, Face(30, 10, 20, 10, math.nan)) == 0.0


def test_smoothing_by_hand() -> None:
    track = video.Track(1)
    track.add(0.0, 0, said(0, happy=1.0, valence=1.0))
    track.add(0.5, 1, said(0, happy=0.0, valence=0.0))
    assert track.latest.probabilities["happy"] == pytest.approx(math.exp(-1))
    assert track.latest.valence == pytest.approx(math.exp(-1)) and track.latest.arousal is None
    assert np.allclose(track.probabilities, [[1.0, 0.0], [math.exp(-1), 1 - math.exp(-1)]])
    for step in range(20):
        track.add(0.6 + step / 10, step, said(0, happy=0.0, valence=0.0))
    assert track.latest.probabilities["happy"] < 0.02
    assert track.probabilities.shape == (22, 2) and np.allclose(track.probabilities.sum(axis=1), 1.0)


# --- files --------------------------------------------------------------------------------------------------------------

RED, GREEN = (220, 30, 30), (30, 200, 30)


def find_squares(image: np.ndarray) -> list[FacePrediction]:
    """The red and the green square of a frame as faces: the red one is happy, the green one is sad."""
    found = []
    for colour, happy in ((RED, 0.9), (GREEN, 0.2)):
        mask = np.abs(image.astype(int) - colour).max(axis=2) < 70
        if mask.sum() > 200:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = Face(int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1, 0.9)
            found.append(FacePrediction(box, {"happy": happy, "sad": 1.0 - happy}, None, None))
    return found


def write_video(path: Path, pictures: Sequence[np.ndarray], fps: float = 10.0) -> Path:
    """An MP4 of RGB pictures."""
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))  # type: ignore[attr-defined]
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds: a red square moves to the right, a green one is there in the first and in the last second."""
    pictures = []
    for frame in range(30):
        picture = np.full((120, 200, 3), 128, np.uint8)
        picture[20:60, 10 + 4 * frame : 50 + 4 * frame] = RED
        if frame < 10 or frame >= 22:
            picture[70:110, 60:100] = GREEN
        pictures.append(picture)
    return write_video(tmp_path_factory.mktemp("clips") / "two squares.mp4", pictures)


def test_a_video_is_followed_and_written(clip: Path, tmp_path: Path) -> None:
    tracks = video.follow(str(clip), find_squares, save=tmp_path / "out")
    assert [(len(track.frames), track.frames[0], track.frames[-1]) for track in tracks] == [
        (30, 0, 29), (10, 0, 9), (8, 22, 29),
    ]  # fmt: skip
    assert tracks[0].times_s == pytest.approx([frame / 10 for frame in range(30)])
    names = ["annotated.mp4", "timeline.csv", "track1.png", "track2.png", "track3.png"]
    names = [f"two squares_{name}" for name in names]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    with (tmp_path / "out" / names[1]).open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 48 and [int(line["frame"]) for line in lines] == sorted(int(line["frame"]) for line in lines)
    red = [line for line in lines if line["track"] == "1"]
    assert {line["label"] for line in red} == {"happy"} and float(red[5]["p_happy"]) == pytest.approx(0.9)
    assert abs(int(red[29]["x"]) - 126) <= 3 and red[29]["time_s"] == "2.900"
    capture = cv2.VideoCapture(str(tmp_path / "out" / names[0]))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 30 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    drawn = capture.read()[1]
    assert drawn.shape == (120, 200, 3) and np.abs(drawn.astype(int) - (233, 180, 86)).max(axis=2).min() < 60
    picture = read_image(tmp_path / "out" / names[2])
    assert picture.shape[1] > 800 and picture.std() > 20


def test_a_video_without_faces(clip: Path, tmp_path: Path) -> None:
    assert video.follow(str(clip), lambda image: [], save=tmp_path) == []
    assert (tmp_path / "two squares_timeline.csv").read_text(encoding="utf-8").splitlines() == [
        "frame,time_s,track,x,y,w,h,label,valence,arousal"
    ]
    assert video.describe_tracks("a.mp4", []) == "a.mp4: no face found"


def test_words_on_tracks() -> None:
    track = video.Track(2)
    for frame in range(8):
        track.add(frame * 10.0, frame, said(0, happy=0.9 if frame < 6 else 0.1))  # so far apart that nothing is smoothed
    assert video.describe_tracks("a.mp4", [track]) == "a.mp4: track 2, 0.0 to 70.0 s: happy 75%, sad 25% of 8 frames"
    assert video.track_to_dict(track) == {
        "track": 2, "from_s": 0.0, "to_s": 70.0, "frames": 8, "labels": {"happy": 0.75, "sad": 0.25},
    }  # fmt: skip


def test_an_interrupted_video_leaves_nothing_behind(clip: Path, tmp_path: Path) -> None:
    calls = []

    def stop(image: np.ndarray) -> list[FacePrediction]:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return find_squares(image)

    with pytest.raises(KeyboardInterrupt):
        video.follow(str(clip), stop, save=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_is_never_written_over_itself(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict.EmotionPredictor, "predict_frame", lambda self, image: find_squares(image))
    for name in ("a/clip.mp4", "b/clip.mp4"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(clip, tmp_path / name)
    videos = [str(tmp_path / name) for name in ("a/clip.mp4", "b/clip.mp4")]
    assert predict.main([videos[0], "--save", str(tmp_path / "a")]) == 0
    assert Path(videos[0]).read_bytes() == clip.read_bytes() and (tmp_path / "a" / "clip_annotated.mp4").is_file()
    assert predict.main([*videos, "--save", str(tmp_path / "both")]) == 0
    written = sorted(path.name for path in (tmp_path / "both").glob("*.mp4"))
    assert written == ["000000_clip_annotated.mp4", "000001_clip_annotated.mp4"]
    for part in ("1/2", "2/2"):
        assert predict.main([*videos, "--save", str(tmp_path / "parts"), "--shard", part]) == 0
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.mp4")) == written


def test_a_video_that_ends_early_is_said(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(video.follow(str(clip), find_squares, save=None)[0].frames) == 30
    assert capsys.readouterr().err == ""
    whole = cv2.VideoCapture

    class Cut:
        def __init__(self, source: str) -> None:
            self.capture, self.frames = whole(source), iter(range(16))

        def read(self) -> tuple[bool, np.ndarray | None]:
            return self.capture.read() if next(self.frames, None) is not None else (False, None)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.capture, name)

    monkeypatch.setattr(cv2, "VideoCapture", Cut)
    assert len(video.follow(str(clip), find_squares, save=None)[0].frames) == 16
    assert capsys.readouterr().err == "two squares.mp4: only 16 of about 30 frames can be read – is it whole?\n"


def test_times_are_those_of_the_file(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with video.opened(str(clip)) as capture:
        assert [time_s for _, time_s, _ in video.frames(capture, "")] == pytest.approx(np.arange(30) / 10, abs=1e-3)
    told_ms = iter([0.0, 100.0, 1100.0, 2100.0, 0.0, 2150.0])  # a varying rate, then nonsense, and less than an even rate

    class Varying:
        def get(self, what: int) -> float:
            return next(told_ms) if what == cv2.CAP_PROP_POS_MSEC else 10.0 if what == cv2.CAP_PROP_FPS else 6.0

        def read(self) -> tuple[bool, np.ndarray]:
            return True, np.zeros((2, 2, 3), np.uint8)

    times = [time_s for _, (_, time_s, _) in zip(range(6), video.frames(Varying(), ""), strict=False)]
    assert times == pytest.approx([0.0, 0.1, 1.1, 2.1, 2.2, 2.3])


def test_an_annotated_video_that_was_cut_is_not_kept(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict.EmotionPredictor, "predict_frame", lambda self, image: find_squares(image))
    whole = cv2.VideoWriter

    class FullDisk:
        def __init__(self, path: str, *settings: Any) -> None:
            self.path, self.writer = Path(path), whole(path, *settings)

        def release(self) -> None:
            self.writer.release()
            self.path.write_bytes(self.path.read_bytes()[:1000])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.writer, name)

    monkeypatch.setattr(cv2, "VideoWriter", FullDisk)
    assert predict.main([str(clip), "--save", str(tmp_path / "out")]) == 1
    assert "could not be written to its end – is the disk full?" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.mp4"))


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_a_folder_that_opencv_cannot_name(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not UTF-8"):
        video.follow(str(clip), find_squares, save=tmp_path / "a\udcff")


def test_a_long_name_is_shortened(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict.EmotionPredictor, "predict_frame", lambda self, image: find_squares(image))
    named = Path(shutil.copy(clip, tmp_path / ("v" * 240 + ".mp4")))
    assert predict.main([str(named), "--save", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / f"{'v' * 150}_annotated.mp4").is_file()


def test_a_frame_between_two_gaps_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track = video.Track(1)
    for number in (*range(10), 20, *range(35, 45)):
        track.add(number / 25, number, said(0))
    points: list[Any] = []
    plot = Axes.plot

    def seen(self: Axes, *values: Any, **how: Any) -> Any:
        points.append(values)
        return plot(self, *values, **how)

    monkeypatch.setattr(Axes, "plot", seen)
    video.plot_timeline(tmp_path / "a.png", track, title="a")
    assert {tuple(values[0]) for values in points if values[2:] == ("o",)} == {(0.8,)}


def test_a_frame_that_cannot_be_searched_is_one_line(clip: Path) -> None:
    class Stub:
        detector = "yunet"

        def predict_frame(self, image: np.ndarray) -> list[FacePrediction]:
            raise ImageError("cannot be searched for faces")

    document, words = predict.read_video(Stub(), str(clip), save=None, save_as="a")  # type: ignore[arg-type]
    assert document["tracks"] == [] and words == document["error"] == "cannot be searched for faces"


def test_a_video_without_a_frame(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty:
        def isOpened(self) -> bool:
            return True

        def get(self, _: int) -> float:
            return 0.0

        def read(self) -> tuple[bool, None]:
            return False, None

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Empty())
    with pytest.raises(SourceError, match="no frame of it can be read"):
        video.follow(str(clip), find_squares, save=None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ": missing"),
        (b"", ": no video"),
        (b"no video", ": no video"),
        (b"\0\0\0\x18ftypmp42" + bytes(2000), ": no video"),
    ],
)
def test_files_that_are_no_videos(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=said):
        video.follow(str(path), find_squares, save=None)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["nul\0.mp4", "n" * 300 + ".mp4", "https://host/a.mp4?b", os.fsdecode(b"latin1 \xe9.mp4")])
def test_names_of_no_video(tmp_path: Path, name: str) -> None:
    if "latin1" in name:
        try:
            (tmp_path / name).write_bytes(b"1")
        except OSError:
            pytest.skip("this file system knows UTF-8 alone")
        name = str(tmp_path / name)
    expected = {"n": "missing", "h": "download it first"}.get(name[0], "rename it")
    with pytest.raises(SourceError, match=expected):
        video.follow(name, find_squares, save=None)


def test_a_colon_in_a_name_is_no_protocol(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        shutil.copyfile(clip, tmp_path / "10:20:30.mp4")
    except OSError:
        pytest.skip("this file system has no colons in names")
    monkeypatch.chdir(tmp_path)
    tracks = video.follow("10:20:30.mp4", find_squares, save=Path("out:1"), name="10:20:30")
    assert len(tracks) == 3 and (tmp_path / "out:1" / "10:20:30_annotated.mp4").is_file()


def test_a_video_that_cannot_be_written(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two squares_annotated.partial.mp4").mkdir()  # stands for a folder that may not be written into
    monkeypatch.setattr(predict.EmotionPredictor, "predict_frame", lambda self, image: find_squares(image))
    assert predict.main([str(clip), "--save", str(tmp_path)]) == 2
    assert "two squares_annotated.partial.mp4 cannot be written or read (" in capsys.readouterr().err


# --- the command line ---------------------------------------------------------------------------------------------------


def test_videos_through_predict(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict.EmotionPredictor, "predict_frame", lambda self, image: find_squares(image))
    assert predict.main([str(clip)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{clip}: track 1, 0.0 to 2.9 s: happy 100% of 30 frames" and len(lines) == 3
    assert predict.main([str(clip), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [track["labels"] for track in document["tracks"]] == [{"happy": 1.0}, {"sad": 1.0}, {"sad": 1.0}]
    assert predict.main([str(tmp_path / "none.mp4")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'none.mp4'}: missing – is the path right?\n"
    assert predict.main([str(tmp_path / "none.mp4"), "--jsonl"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "missing – is the path right?"  # the path stands beside it
    with pytest.raises(SystemExit):
        predict.main([str(clip), "--csv", "a.csv"])
    assert "written by --save DIR" in capsys.readouterr().err


def test_videos_among_pictures(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict.EmotionPredictor, "predict_frame", lambda self, image: find_squares(image))
    for name in ("a.mp4", "in/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(clip, tmp_path / name)
    cv2.imencode(".png", np.zeros((30, 30, 3), np.uint8))[1].tofile(tmp_path / "c.png")
    names = [str(tmp_path / name) for name in ("c.png", "a.mp4", "in/b.mp4")]
    forms: list[list[str]] = [[str(tmp_path)], [str(tmp_path / "*")], ["-"]]
    for form in forms:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names)))
        assert predict.main([*form, "--json"]) == 0
        documents = json.loads(capsys.readouterr().out)  # one document
        assert [document["path"] for document in documents] == names
        assert ["tracks" in document for document in documents] == [False, True, True]
    parts = []
    for part in ("1/2", "2/2"):
        assert predict.main([str(tmp_path), "--jsonl", "--shard", part]) == 0
        parts.append([json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()])
    assert parts == [[names[2], names[1]], [names[0]]] or parts == [[names[1], names[2]], [names[0]]]
    assert predict.main([str(tmp_path), "--csv", str(tmp_path / "out.csv")]) == 0
    error = capsys.readouterr().err
    said = error.splitlines()[-1]
    assert said.startswith(f"predict.py: 2 videos were passed over, first {names[1]} – ") and error.count("\n") == 2
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").count("c.png") == 1
    assert predict.main([str(tmp_path), "--save", str(tmp_path / "saved"), "--explain"]) == 0
    assert f"predict.py: --explain is for pictures, not for {names[1]} and other videos\n" in capsys.readouterr().err
    Path(names[2]).unlink()
    assert predict.main([str(tmp_path), "--save", str(tmp_path / "saved"), "--explain"]) == 0
    assert f"predict.py: --explain is for pictures, not for {names[1]}\n" in capsys.readouterr().err


def test_frames_that_are_faces_already(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(clip), "--detector", "none", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["detector"] == "none" and [track["frames"] for track in document["tracks"]] == [30]


@pytest.mark.parametrize("fps", [0.5, 23.976, 29.97, 100.123, 119.971, 700.37, 1000.0])
def test_videos_of_any_rate_are_written(tmp_path: Path, fps: float) -> None:
    with video.writing(tmp_path / "a.mp4", fps, (120, 200, 3)) as writer:
        for _ in range(3):
            writer.write(np.zeros((120, 200, 3), np.uint8))
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, rel=2e-3)


def test_a_camera_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--webcam", "97"]) == 2
    error = capsys.readouterr().err
    assert "camera 97 is not there" in error.splitlines()[-1]
    with pytest.raises(SystemExit):
        predict.main(["a.jpg", "--webcam"])
    assert "give pictures or videos, or --webcam" in capsys.readouterr().err


def test_a_camera_is_watched_until_q(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, shown = iter([255, ord("s"), 255, ord("q")]), []
    opened: Any = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: opened(str(clip)) if source == 3 else opened(source))
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda wait_ms: next(keys))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda name, what: 1.0)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    assert video.watch(3, find_squares, save=tmp_path / "new") == 4
    assert len(shown) == 4 and "saved" in capsys.readouterr().out
    (saved,) = (tmp_path / "new").iterdir()
    assert saved.name == "camera3_000002.png" and np.array_equal(read_image(saved)[:, :, ::-1], shown[1])


@pytest.mark.skipif("YUNET" not in os.environ or "FACE_FIXTURES" not in os.environ, reason="YUNET, FACE_FIXTURES: not set")
def test_real_faces_that_move_are_one_track_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two portraits pass over a ground in opposite directions; the second one leaves after two thirds."""
    folder = Path(os.environ["FACE_FIXTURES"]) / "faces"
    first = cv2.resize(read_image(folder / "astronaut.png")[20:220, 120:320], (160, 160))
    second = read_image(folder / "obama_small.jpg")
    second = cv2.resize(second[: min(second.shape[:2]), : min(second.shape[:2])], (170, 170))
    pictures = []
    for frame in range(24):
        picture = np.full((360, 640, 3), 90, np.uint8)
        picture[10:170, 20 + 12 * frame : 180 + 12 * frame] = first
        if frame < 16:
            picture[185:355, 460 - 10 * frame : 630 - 10 * frame] = second
        pictures.append(picture)
    clip = write_video(tmp_path / "people.mp4", pictures)
    assert predict.main([str(clip), "--detector_model", os.environ["YUNET"], "--json", "--save", str(tmp_path / "out")]) == 0
    tracks = json.loads(capsys.readouterr().out)["tracks"]
    assert sorted(track["frames"] for track in tracks) == [16, 24]
