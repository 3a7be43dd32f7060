"""Faces in videos and before cameras: one track a person over the frames, probabilities smoothed over time, timelines.

python predict.py clip.mp4 --save annotated       # the video with boxes, a timeline as CSV, and one picture a track
python predict.py --webcam                        # q ends it, s saves the picture that is shown
"""

import csv
import heapq
import itertools
import math
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from faces import Face

import cv2
import numpy as np

from answers import FacePrediction, annotate
from sources import SourceError, is_address

# FFmpeg reads it with the first video; what is wrong with one is said by SourceError.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

SMOOTHING_S = 0.5  # after which a new expression counts for 63%
OVERLAP_MIN = 0.2  # of the boxes of one person in two frames
PATIENCE_S = 1.0  # for which a person may be out of sight
MPEG4_TIMEBASE_MAX = 65_535  # frames a second times the power of ten that makes them a whole number
WHOLE_SHARE = 0.9  # of the frames that a file announces, which may be an estimate
FPS_ASSUMED = 25.0  # of files that do not say
WINDOW = "FER: q quits, s saves"
Predict = Callable[[np.ndarray], list[FacePrediction]]  # (H, W, 3) RGB → the faces in it


class Track:
    """A person over time: `latest` is the smoothed answer in the last frame; of every frame there are its number, time,
    box, smoothed probabilities and affect (NaN where unknown), flat, as an hour has a hundred thousand of them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.latest: FacePrediction
        self.frames, self.times_s = array("q"), array("d")
        self.boxes, self.shares, self.affect = array("q"), array("d"), array("d")

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return list(self.latest.probabilities)

    @property
    def probabilities(self) -> np.ndarray:
        """Smoothed, of every frame: (frames, classes)."""
        return np.array(self.shares).reshape(len(self.frames), -1)

    def add(self, time_s: float, frame: int, prediction: FacePrediction) -> None:
        """Take in a frame's prediction: an exponential mean with the time constant SMOOTHING_S."""
        if self.times_s:
            weight = 1.0 - math.exp(-(time_s - self.times_s[-1]) / SMOOTHING_S)
            last = self.latest
            shares = {
                name: (1.0 - weight) * last.probabilities[name] + weight * share
                for name, share in prediction.probabilities.items()
            }
            affect = [
                None if new is None or old is None else (1.0 - weight) * old + weight * new
                for old, new in ((last.valence, prediction.valence), (last.arousal, prediction.arousal))
            ]
            prediction = FacePrediction(prediction.face, shares, *affect)
        self.latest = prediction
        self.frames.append(frame)
        self.times_s.append(time_s)
        self.boxes.extend(prediction.face[:4])
        self.shares.extend(prediction.probabilities.values())
        self.affect.extend(math.nan if value is None else value for value in prediction[2:])


def overlap(first: Face, second: Face) -> float:
    """Intersection over union of two boxes."""
    width = min(first.x + first.w, second.x + second.w) - max(first.x, second.x)
    height = min(first.y + first.h, second.y + second.h) - max(first.y, second.y)
    shared = max(0, width) * max(0, height)
    return shared / (first.w * first.h + second.w * second.h - shared)


class Tracker:
    """Follows faces from frame to frame: boxes are matched so that their overlaps have the largest sum (Kuhn 1955)."""

    def __init__(self, fps: float = FPS_ASSUMED) -> None:
        self.tracks: list[Track] = []
        self.begun = 0
        self.patience_s = max(PATIENCE_S, 2.5 / fps)  # a frame at least may be without a face

    def forget(self, time_s: float) -> None:
        """Drop the tracks that nobody can continue any more, where only the present counts."""
        self.tracks = [track for track in self.tracks if time_s - track.times_s[-1] <= self.patience_s]

    def update(self, time_s: float, frame: int, predictions: Sequence[FacePrediction]) -> list[Track]:
        """Take in the faces of a frame, in order of time; returns the track of each face."""
        from scipy.optimize import linear_sum_assignment

        alive = [track for track in self.tracks if time_s - track.times_s[-1] <= self.patience_s]
        shares = np.array(
            [[overlap(track.latest.face, prediction.face) for prediction in predictions] for track in alive]
        ).reshape(len(alive), len(predictions))
        matched = {
            int(column): alive[row]
            for row, column in zip(*linear_sum_assignment(-shares), strict=True)
            if shares[row, column] >= OVERLAP_MIN
        }
        found = []
        for index, prediction in enumerate(predictions):
            track = matched.get(index)
            if track is None:
                self.begun += 1
                track = Track(self.begun)
                self.tracks.append(track)
            track.add(time_s, frame, prediction)
            found.append(track)
        return found


def check_utf8(name: str) -> None:
    """Raises SourceError for a video's name that OpenCV would end the program for."""
    if name.encode("utf-8", "ignore").decode() != name:
        raise SourceError(f"{name!a}: OpenCV opens no video whose name is not UTF-8 – rename it")


@contextmanager
def opened(source: str | int) -> Iterator[Any]:
    """A video file or camera, released at the end. Raises SourceError."""
    if isinstance(source, str):
        if is_address(source):
            raise SourceError(f"{source}: a video at an address is not read – download it first")
        if not os.path.isfile(source):  # noqa: PTH113 (no exception for a name that no file system takes)
            raise SourceError(f"{source}: missing – is the path right?")
        check_utf8(source)
    # Of a relative name FFmpeg takes what stands before a colon for a protocol.
    capture = cv2.VideoCapture(source if isinstance(source, int) else os.path.abspath(source))  # noqa: PTH100
    try:
        if not capture.isOpened():
            if isinstance(source, int):
                raise SourceError(f"camera {source} is not there – give the number of another: --webcam 1")
            raise SourceError(f"{source}: no video that OpenCV can read")
        yield capture
    finally:
        capture.release()


@contextmanager
def writing(path: Path, fps: float, shape: Sequence[int]) -> Iterator[Any]:
    """An MP4 file under a temporary name, which gets its own when it is whole. Raises SourceError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.absolute().with_name(f"{path.stem}.partial.mp4")  # as `opened`
    check_utf8(str(temporary))
    fps = round(fps, max(0, int(math.log10(MPEG4_TIMEBASE_MAX / fps))))
    temporary.write_bytes(b"")  # raises OSError where nothing can be written: OpenCV does not say why it cannot
    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), fps, (shape[1], shape[0]))  # type: ignore[attr-defined]
    try:
        if not writer.isOpened():
            raise SourceError(f"{path} cannot be written: this OpenCV has no MP4 encoder – leave out --save")
        yield writer
        writer.release()
        whole = cv2.VideoCapture(str(temporary))  # the writer says nothing of a full disk
        if not whole.isOpened():
            raise SourceError(f"{path} could not be written to its end – is the disk full?")
        whole.release()
    except BaseException:
        writer.release()
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def frames(capture: Any, label: str) -> Iterator[tuple[int, float, np.ndarray]]:
    """The frames of an opened video: number, time in seconds, RGB picture. The times are the file's own, as telephones and
    screen recorders vary their rate, and where it says none, or no later one, those of an even rate."""
    from tqdm import tqdm

    fps = rate(capture)
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    time_s = -1 / fps
    with tqdm(total=total if total > 0 else None, desc=label, unit="frame", leave=False, disable=None) as bar:
        for number in itertools.count():
            there, picture = capture.read()
            if not there:
                if number == 0:
                    raise SourceError(f"{label}: no frame of it can be read")
                if number < WHOLE_SHARE * total:
                    tqdm.write(f"{label}: only {number} of about {total} frames can be read – is it whole?", file=sys.stderr)
                return
            told_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            time_s = told_s if told_s > max(time_s, 0.0) else time_s + 1 / fps
            yield number, time_s, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            bar.update()


def rate(capture: Any) -> float:
    """Frames a second; some files say nothing, or nonsense."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0.5 <= fps <= 1000.0 else FPS_ASSUMED


def follow(path: str, predict: Predict, *, save: Path | None, name: str = "") -> list[Track]:
    """The people of a video file, each a track; with `save` the video is written there with boxes, the timelines as one CSV
    and one picture a track, under `name` (default: that of the file). Raises SourceError.
    """
    stem = name or Path(path).stem
    with opened(path) as capture, ExitStack() as files:
        tracker, writer = Tracker(rate(capture)), None
        for number, time_s, image in frames(capture, Path(path).name):
            tracks = tracker.update(time_s, number, predict(image))
            if save is not None:
                if writer is None:
                    writer = files.enter_context(writing(save / f"{stem}_annotated.mp4", rate(capture), image.shape))
                drawn = annotate(image, [track.latest for track in tracks])
                writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    if save is not None:
        write_timelines(save / f"{stem}_timeline.csv", tracker.tracks)
        for track in tracker.tracks:
            plot_timeline(save / f"{stem}_track{track.number}.png", track, title=f"{Path(path).name}, track {track.number}")
    return tracker.tracks


def write_timelines(path: Path, tracks: Sequence[Track]) -> None:
    """Every track in every frame, in order of time: box, smoothed probabilities, valence and arousal."""

    def lines(track: Track) -> Iterator[list[Any]]:
        boxes, affect = np.array(track.boxes).reshape(-1, 4), np.array(track.affect).reshape(-1, 2)
        columns = (track.frames, track.times_s, boxes, track.probabilities, affect)
        labels = track.labels
        for number, time_s, box, shares, known in zip(*columns, strict=True):
            said = [f"{share:.6f}" for share in shares]
            values = ["" if math.isnan(value) else f"{value:.4f}" for value in known]
            yield [number, f"{time_s:.3f}", track.number, *box, labels[shares.argmax()], *said, *values]

    names = [f"p_{name}" for name in tracks[0].labels] if tracks else []
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frame", "time_s", "track", "x", "y", "w", "h", "label", *names, "valence", "arousal"])
        in_time = heapq.merge(*(lines(track) for track in tracks), key=itemgetter(0))
        writer.writerows(in_time)
    temporary.replace(path)


def plot_timeline(path: Path, track: Track, *, title: str) -> None:
    """The smoothed probabilities of a track over time as a PNG, a line a class; gaps where the person was out of sight."""
    from figures import COLOURS, picture

    step = np.median(np.diff(track.times_s)) if len(track.times_s) > 1 else 1.0
    times = np.array(track.times_s)
    gaps = np.flatnonzero(np.diff(times) > 1.5 * step) + 1
    alone = np.isin(np.arange(len(times)), [0, *gaps]) & np.isin(np.arange(len(times)) + 1, [*gaps, len(times)])
    with picture([path], 8.0, 3.6, title) as figure:
        axis: Any = figure.subplots()
        for name, values in zip(track.labels, track.probabilities.T, strict=True):
            colour = COLOURS.get(name)
            axis.plot(np.insert(times, gaps, np.nan), np.insert(values, gaps, np.nan), color=colour, label=name, linewidth=2)
            axis.plot(times[alone], values[alone], "o", color=colour)  # no line shows a frame between two gaps
        axis.set(xlabel="time in seconds", ylabel="probability", ylim=(-0.02, 1.02))
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def commonest(track: Track) -> dict[str, float]:
    """The share of its frames in which a track shows each expression, the commonest first."""
    labels = track.labels
    counts = Counter(labels[index] for index in track.probabilities.argmax(axis=1))
    return {name: count / len(track.frames) for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def describe_tracks(path: str, tracks: Sequence[Track]) -> str:
    """A video for people to read: each track with its times and its commonest expressions."""
    if not tracks:
        return f"{path}: no face found"
    lines = []
    for track in tracks:
        shown = ", ".join(f"{name} {share:.0%}" for name, share in list(commonest(track).items())[:3])
        times = f"{track.times_s[0]:.1f} to {track.times_s[-1]:.1f} s"
        lines.append(f"{path}: track {track.number}, {times}: {shown} of {len(track.frames)} frames")
    return "\n".join(lines)


def track_to_dict(track: Track) -> dict[str, Any]:
    """A track in plain types, for JSON: its times, and the share of its frames of each expression."""
    return {
        "track": track.number,
        "from_s": round(track.times_s[0], 3),
        "to_s": round(track.times_s[-1], 3),
        "frames": len(track.frames),
        "labels": {name: round(share, 4) for name, share in commonest(track).items()},
    }


def watch(camera: int, predict: Predict, *, save: Path) -> int:
    """Show a camera's picture with the faces in it until q is pressed; s saves the picture. Returns how many frames were
    shown. Raises SourceError.
    """
    tracker, shown, begin = Tracker(), 0, time.monotonic()
    with opened(camera) as capture:
        try:
            while True:
                there, picture = capture.read()
                if not there:
                    raise SourceError(f"camera {camera} gives no picture – is another program using it?")
                image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
                predictions = predict(image)
                now = time.monotonic() - begin
                tracks = tracker.update(now, shown, predictions)
                drawn = cv2.cvtColor(annotate(image, [track.latest for track in tracks]), cv2.COLOR_RGB2BGR)
                tracker.forget(now)
                shown += 1
                cv2.imshow(WINDOW, drawn)
                key = cv2.waitKey(1) & 0xFF
                if key == ord("s"):
                    save.mkdir(parents=True, exist_ok=True)
                    target = save / f"camera{camera}_{shown:06d}.png"
                    cv2.imencode(".png", drawn)[1].tofile(target)
                    print(f"saved: {target}")
                if key == ord("q") or cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:
                    return shown
        except cv2.error as error:
            raise SourceError("no window can be opened here – a camera needs a screen, and opencv-python") from error
        finally:
            with suppress(cv2.error):
                cv2.destroyAllWindows()
