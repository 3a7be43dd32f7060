"""Read the expressions of the faces in pictures.

Finds the faces, crops them as the network's training data was, and prints label and probabilities, with valence and arousal
where the network was trained on them.

    python predict.py face.jpg
    python predict.py photos https://example.org/face.jpg --json
    python predict.py crop.png --detector none              # the picture is a face already
    python predict.py photos --csv faces.csv --resume       # a million pictures; go on where it was interrupted
    python predict.py group.jpg --save annotated --explain  # with boxes and labels; what the network looked at
    python predict.py clip.mp4 --save annotated             # the video, and a timeline of each person
    python predict.py --webcam                              # q quits, s saves the picture

Exit status: 0 answered ("no face found" is an answer), 1 a file could not be read (0 under torchrun, which would end the
other shards), 2 wrong usage.
"""

import argparse
import hashlib
import io
import itertools
import json
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from faces import DETECTORS, DetectorError, Face, ImageError, find_faces, looks_like_crop, make_detector, read_image

import numpy as np

import sources
from answers import (
    DETECTOR_NAMES,
    Answer,
    FacePrediction,
    Table,
    TableError,
    save_annotated,
    save_explained,
    stem_of,
    to_dict,
    to_text,
)
from command_line import Parser
from labels import LABEL_SETS, LabelSet, canonical, remap, without_source
from onnx_network import ModelError, OnnxNetwork, bare_name, head_for, is_onnx

WEIGHTS = Path(__file__).resolve().parent / "weights"
DEFAULT_MODEL = "student"
BATCH_PICTURES = 32  # that are read before their faces go through the network
BATCH_FACES = 64  # that go through it together


def shipped() -> dict[str, Path]:
    """The networks that come with the project, by name, the default one first."""
    files = [path for path in sorted(WEIGHTS.glob("*")) if not path.name.startswith("face_detection")]
    found = {bare_name(path): path for path in files if is_onnx(path)}
    return {name: found[name] for name in sorted(found, key=lambda name: name != DEFAULT_MODEL)}


def network_file(model: str | os.PathLike[str]) -> Path:
    """The file of a network that is given by its name where it is a shipped one, by its path, or by its run folder (one that
    is called as a shipped network is ./fernet_votes or runs/fernet_votes). Raises ModelError."""
    known = shipped()
    if str(model) in known:
        return known[str(model)]
    path = Path(model)
    if path.is_dir():
        return path / "best.pth"
    if path.exists() or path.suffix:
        return path
    raise ModelError(f"{model} is neither a file nor a shipped network (which are: {', '.join(known) or 'none here'})")


def as_rgb(image: np.ndarray, order: str) -> np.ndarray:
    """A picture that a program hands over, uint8 (H, W, 3) with its colours in the order "rgb" or "bgr", as RGB. Raises
    ValueError."""
    if order not in ("rgb", "bgr"):
        raise ValueError(f"order is rgb or bgr, not {order!r}")
    if not isinstance(image, np.ndarray):
        raise ValueError(f"a picture is an array, uint8 (H, W, 3), not {type(image).__name__}: was it read?")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"a picture is uint8 (H, W, 3) of at least one pixel, not {image.dtype} {image.shape}")
    return np.ascontiguousarray(image[:, :, :: -1 if order == "bgr" else 1])


class Found(NamedTuple):
    """The faces of one image, largest first, each as network input, and whether they were detected."""

    faces: list[Face]
    inputs: list[np.ndarray]
    detected: bool


class EmotionPredictor:
    """A network ready to use: `EmotionPredictor("best.onnx").predict(image)`.

    model: a shipped network's name, an ONNX file of export.py, a checkpoint (.pth), which needs torch, or the folder of a
    run. label_set: the classes to answer in, where the network has a head for them or they can be summed from its own;
    default: the network's own, FER+'s eight where it has a head for those beside another. `use_gpu_if_available` False is
    device "cpu", in the four-class document's words. detector, detector_model: see `faces.make_detector`; the name of the
    one that is used stands in `detector`. Raises onnx_network.ModelError or faces.DetectorError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        use_gpu_if_available: bool = True,
        *,
        label_set: str | None = None,
        device: str = "auto",
        detector: str = "auto",
        detector_model: str | os.PathLike[str] | None = None,
    ) -> None:
        if label_set is not None and label_set not in LABEL_SETS:
            raise ModelError(f"{label_set} is no label set (which are: {', '.join(sorted(LABEL_SETS))})")
        if detector not in DETECTORS:
            raise DetectorError(f"{detector} is no detector (which are: {', '.join(DETECTORS)})")
        device = device if use_gpu_if_available else "cpu"
        path = network_file(model)
        self.network: Any
        if is_onnx(path):
            self.network = OnnxNetwork(path, device=device)
        else:
            from models import TorchNetwork, choose_device

            self.network = TorchNetwork(path, choose_device(device))
        self.detect, self.detector = make_detector(detector, detector_model)
        self.preprocess = self.network.preprocess
        heads: dict[str, LabelSet] = self.network.heads
        cleaner = heads.get("votes", heads["logits"])  # FER+'s labels of the same pictures
        self.labels = cleaner if label_set is None else LABEL_SETS[label_set]
        self.head = head_for(heads, self.labels)
        own = heads[self.head]
        # Where each class of the head goes, None for one that is left out.
        self.places = remap(own, self.labels) if self.labels != own else tuple(range(len(own)))
        lacking = without_source(own, self.labels)
        if lacking:
            raise ModelError(f"{path} says nothing of {', '.join(lacking)} – it knows {', '.join(own.names)}")

    def predict(self, image: np.ndarray, order: str = "rgb") -> tuple[list[FacePrediction], bool]:
        """The faces of an image, uint8 (H, W, 3), largest first, and whether they were detected.

        order: that of its colours, "rgb", or "bgr" as cv2.imread and cameras give them. With detector "none" the picture is
        one face; so is a small, nearly square one in which none is found. Raises ValueError for what is no such image,
        faces.ImageError where memory is too short to search it.
        """
        return self.predict_batch([image], order)[0]

    def predict_batch(self, images: Iterable[np.ndarray], order: str = "rgb") -> list[tuple[list[FacePrediction], bool]]:
        """As `predict`, for several images, whose faces go through the network together, BATCH_FACES at a time."""
        found = [self.find(as_rgb(image, order)) for image in images]
        return list(zip(self.answer_found(found), (faces.detected for faces in found), strict=True))

    def predict_frame(self, image: np.ndarray) -> list[FacePrediction]:
        """The faces of an RGB frame of a video or camera; with detector "none" the frame is one."""
        predictions, detected = self.predict(image)
        return predictions if detected or self.detector == "none" else []

    def find(self, image: np.ndarray) -> Found:
        """The faces of an RGB image."""
        faces = find_faces(self.detect, image)
        detected = bool(faces)
        if not faces and (self.detector == "none" or looks_like_crop(image)):
            height, width = image.shape[:2]
            return Found([Face(0, 0, width, height, math.nan)], [self.preprocess(image)], False)
        return Found(faces, [self.preprocess(self.preprocess.crop(image, face)) for face in faces], detected)

    def answer_found(self, found: Sequence[Found]) -> list[list[FacePrediction]]:
        """Predictions for the faces of several images, which `answer` takes together; as `classify`."""
        said = iter(
            self.answer([array for each in found for array in each.inputs], [face for each in found for face in each.faces])
        )
        return [[next(said) for _ in each.faces] for each in found]

    def explain(self, inputs: np.ndarray, label: str | None = None) -> np.ndarray:
        """What the answer rests on in one face, (H, W): by how much the log-odds of a label (default: the answer) fall when
        a patch over each place is hidden; negative where hiding helps (occlusion, Zeiler and Fergus 2014). The probability
        itself hardly moves where the network is sure.

        inputs: network input of one face, float32 (C, H, W), as `find` gives it. Patches have a sixth of the side and the
        colour of Preprocess.mean, and are moved by a third of their width; a place has the mean of the patches over it.
        """
        nowhere = Face(0, 0, 1, 1, math.nan)
        (plain,) = self.answer([inputs], [nowhere])
        label = plain.label if label is None else label
        height, width = inputs.shape[1:]
        patch, step = max(1, width // 6), max(1, width // 18)
        across, down = ([*range(0, length - patch, step), length - patch] for length in (width, height))
        corners = [(y, x) for y in down for x in across]
        hidden = []
        for y, x in corners:
            changed = inputs.copy()
            changed[:, y : y + patch, x : x + patch] = 0.0
            hidden.append(changed)
        fall, count = np.zeros((height, width)), np.zeros((height, width))
        for (y, x), said in zip(corners, self.answer(hidden, [nowhere] * len(hidden)), strict=True):
            fall[y : y + patch, x : x + patch] += log_odds(plain, label) - log_odds(said, label)
            count[y : y + patch, x : x + patch] += 1
        return fall / np.maximum(count, 1)

    def predict_single_image(self, path: str | os.PathLike[str]) -> tuple[str, dict[str, float]]:
        """The largest face of a picture file: its label and the probability of each. Raises faces.ImageError where it cannot
        be read, ValueError where it shows no face.
        """
        faces, _ = self.predict(read_image(path))
        if not faces:
            raise ValueError(f"{path}: no face found")
        return faces[0].label, faces[0].probabilities

    def predict_emotion_from_frame(self, frame: np.ndarray, box: tuple[int, int, int, int]) -> tuple[str, int, np.ndarray]:
        """One face of a camera's or cv2.imread's frame: its label, the label's index, and all probabilities (classes,).

        frame: BGR, uint8 (H, W, 3); box: the face's (x, y, w, h) in its pixels. Raises ValueError where frame or box is
        not that, onnx_network.ModelError as `classify`.
        """
        image = as_rgb(frame, "bgr")
        height, width = image.shape[:2]
        x, y, w, h = (int(value) for value in box)
        if w < 1 or h < 1 or not (-w < x < width and -h < y < height):
            raise ValueError(f"the box {box} is (x, y, w, h) of no part of a frame of {width}×{height} px")
        face = Face(x, y, w, h, math.nan)
        (prediction,) = self.classify([self.preprocess.crop(image, face)], [face])
        probabilities = np.array(list(prediction.probabilities.values()))
        index = int(probabilities.argmax())
        return self.labels.names[index], index, probabilities

    def classify(self, crops: list[np.ndarray], faces: list[Face]) -> list[FacePrediction]:
        """Predictions for face crops, RGB uint8 (H, W, 3) of any size, and the boxes they came from.

        Raises onnx_network.ModelError where the network's weights are not numbers.
        """
        return self.answer([self.preprocess(crop) for crop in crops], faces)

    def answer(self, inputs: list[np.ndarray], faces: list[Face]) -> list[FacePrediction]:
        """Predictions for inputs of the network, float32 (C, H, W), and the boxes they came from; as `classify`."""
        if not inputs:
            return []
        parts = [
            self.network(np.stack(inputs[first : first + BATCH_FACES]))  # of (N, C, H, W)
            for first in range(0, len(inputs), BATCH_FACES)
        ]
        said = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not all(np.isfinite(values).all() for values in said.values()):
            raise ModelError("the network answers with no numbers: its weights are damaged – give another --model")
        logits = said[self.head].astype(np.float64) / self.network.temperatures[self.head]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))  # (N, classes of the head)
        probabilities = np.zeros((len(inputs), len(self.labels)))
        for column, place in enumerate(self.places):
            if place is not None:
                probabilities[:, place] += shares[:, column]
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        affect = said["affect"].clip(-1.0, 1.0).tolist() if self.network.affect else [(None, None)] * len(inputs)
        return [
            FacePrediction(face, dict(zip(self.labels.names, row, strict=True)), valence, arousal)
            for face, row, (valence, arousal) in zip(faces, probabilities.tolist(), affect, strict=True)
        ]


def log_odds(prediction: FacePrediction, label: str) -> float:
    """The logarithm of a label's probability over that of all others together."""
    others = sum(share for name, share in prediction.probabilities.items() if name != label)
    smallest = sys.float_info.min
    return math.log(max(prediction.probabilities[label], smallest) / max(others, smallest))


def predict_single_image(
    image_path: str | os.PathLike[str],
    model: EmotionPredictor | str | os.PathLike[str],
    transform: None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[str, dict[str, float]]:
    """The largest face of a picture file, as the two-phase document asks for it; see EmotionPredictor.predict_single_image.

    model: a predictor, or what its constructor takes. transform: None, as a network brings its own preprocessing.
    class_names: what the answer calls the classes, as many as the network has: expressions ("Anger") are matched by name,
    whatever their order; other words stand for the network's classes in their order. Raises ValueError for both.
    """
    if transform is not None:
        raise ValueError("transform: the checkpoint brings its own preprocessing – leave it out")
    predictor = model if isinstance(model, EmotionPredictor) else EmotionPredictor(model)
    own = predictor.labels.names
    called = dict(zip(own, own, strict=True))
    if class_names is not None:
        try:
            called = {canonical(name): name for name in class_names}
        except KeyError:
            called = dict(zip(own, class_names, strict=False))
            for place, name in called.items():  # one that is matched by name elsewhere: the others are misspelt
                with suppress(KeyError):
                    if canonical(name) != place:
                        raise ValueError(f"class_names: {name} is an expression, but others are not known by name") from None
        if set(called) != set(own) or len(class_names) != len(own) or len(set(class_names)) != len(own):
            raise ValueError(f"class_names {', '.join(class_names)} are not names for {', '.join(own)}")
    label, probabilities = predictor.predict_single_image(image_path)
    return called[label], {name: probabilities[key] for key, name in called.items()}


def answers(
    predictor: EmotionPredictor,
    names: Iterable[tuple[int, str]],
    *,
    save: Path | None,
    explain: bool,
    batch: int,
) -> Iterator[list[tuple[int, Answer]]]:
    """What can be said of pictures, some at a time, each with its number; one that cannot be read gives an answer with an
    error. With `save` they are also written there with the answers drawn in, and with `explain` what the network looked at.
    """
    names = iter(names)
    while part := list(itertools.islice(names, 1 if save is not None else batch)):
        results: dict[int, Answer] = {}
        found: list[Found] = []
        readable: list[tuple[int, str]] = []
        for number, name in part:
            try:
                image = sources.read(name)
                found.append(predictor.find(image))
            except ImageError as error:
                results[number] = Answer(name, False, [], str(error))
                continue
            readable.append((number, name))
        for (number, name), each, said in zip(readable, found, predictor.answer_found(found), strict=True):
            results[number] = Answer(name, each.detected, said, None)
        for number, result in results.items():
            if save is not None and result.error is None:
                save_annotated(save, number, result, image)
                if explain and result.faces:
                    maps = [predictor.explain(array) for array in found[0].inputs]
                    faces = [predictor.preprocess.undo(array) for array in found[0].inputs]
                    save_explained(save, number, result, faces, maps)
        yield [(number, results[number]) for number, _ in part]


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="pictures and videos: files, folders, patterns, http(s) addresses; - for standard input's list",
    )
    known = ", ".join(shipped())
    add(
        "--model",
        default=DEFAULT_MODEL,
        help=f"{known}, an .onnx (.onnx.gz) or .pth file, or a run's folder (default: %(default)s)",
    )
    add(
        "--label_set",
        "--label-set",
        choices=sorted(LABEL_SETS),
        help="classes to answer in (default: the network's; FER+'s of two)",
    )
    add(
        "--detector", choices=DETECTORS, default="auto",
        help="auto: YuNet where its file is there, else OpenCV's Haar cascade; none: pictures are faces already",
    )  # fmt: skip
    add(
        "--detector_model", "--detector-model", metavar="ONNX",
        help="YuNet's file (default: that of the environment variable FER_DETECTOR, else what make detector fetched)",
    )  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1; mps for a .pth (default: %(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: one object, a list for several pictures")
    form.add_argument("--jsonl", action="store_true", help="print JSON, an object a line, as soon as it is known")
    form.add_argument("--csv", type=table_file, metavar="FILE", help="write a table, a row a face")
    form.add_argument("--parquet", type=table_file, metavar="FILE", help="the same as Parquet")
    add("--save", type=Path, metavar="DIR", help="write the pictures and videos with boxes and labels there")
    add("--explain", action="store_true", help="with --save: also write which parts of each face the answer rests on")
    add("--webcam", type=int, nargs="?", const=0, metavar="N", help="show camera N (default: the first); q quits, s saves")
    add("--resume", action="store_true", help="go on with the table of --csv or --parquet that was interrupted")
    add("--shard", metavar="PART/PARTS", help="answer every PARTS-th picture only (default: torchrun's RANK, WORLD_SIZE)")
    return parser


def table_file(text: str) -> Path:
    """The file of a table. Raises ArgumentTypeError for a name that is a folder's, or that stands for standard output."""
    if text == "-" or text.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(
            f"{text} is no file's name – give one: faces.csv (--jsonl writes to standard output)"
        )
    return Path(text)


def main(argv: list[str] | None = None) -> int:
    """Answer for every picture; see the exit statuses above."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)} (a name that begins with - is given as ./-b.jpg)")
    path = args.csv or args.parquet
    videos = [name for name in args.images if sources.is_video(name) and not sources.is_pattern(name)]
    if videos and path is not None:
        parser.error(f"{videos[0]}: the timeline of a video is written by --save DIR, not into a table")
    if args.explain and videos:
        parser.error(f"{videos[0]}: --explain is for pictures – leave it out, or the video")
    if args.explain and args.save is None:
        parser.error("--explain writes pictures: give --save DIR, too")
    if args.webcam is not None and (path is not None or args.json or args.jsonl or args.shard or args.explain):
        parser.error("--webcam shows a window and writes nothing but what s saves: leave out the others")
    if (args.webcam is None) == (not args.images):
        parser.error("give pictures or videos, or --webcam")
    if args.resume and path is None:
        parser.error("--resume goes on with a table: give --csv FILE or --parquet FILE")
    if args.parquet is not None and args.parquet.suffix.lower() != ".parquet":
        parser.error(f"--parquet {args.parquet} must end in .parquet")
    if args.csv is not None and args.csv.suffix.lower() == ".parquet":
        parser.error(f"{args.csv}: for Parquet give --parquet")
    if path is not None and sources.is_folder(str(path)):
        parser.error(f"{path} is a folder: give the name of a file in it, too")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files need not be text
    try:
        shard = sources.shard_of(args.shard)
        predictor = EmotionPredictor(
            args.model,
            label_set=args.label_set,
            device=args.device,
            detector=args.detector,
            detector_model=args.detector_model,
        )
        if args.webcam is not None:
            import video

            for remark in remarks(predictor, args):
                print(f"predict.py: {remark}", file=sys.stderr)
            video.watch(args.webcam, predictor.predict_frame, save=args.save or Path())
            return 0
        if path is not None and shard[1] > 1:
            path = path.with_name(f"{path.stem}-{shard[0] + 1}of{shard[1]}{path.suffix}")  # a file of its own
        call = {"images": args.images, "model": args.model, "labels": list(predictor.labels.names), "shard": list(shard)}
        call |= {"detector": predictor.detector, "network": file_digest(network_file(args.model))}
        table = Table(path, predictor.labels.names, call=call, resume=args.resume) if path is not None else None
        names = sources.numbered(sources.expand(args.images, leave_out=args.save), shard)
        if table is not None and table.complete:
            table.check(name for _, name in sources.without_videos(names, []))
            print(f"{path} is complete already: nothing was read; for another network's answers give another name")
            status = 1 if table.failed else 0
        else:
            status = write(predictor, names, args, table)
        by_torchrun = args.shard is None and shard[1] > 1
        return 0 if by_torchrun else status  # it would end the other shards for a picture that cannot be read
    except (ModelError, DetectorError, ImageError, sources.SourceError, TableError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"predict.py: {error.name} is missing – run: pip install -r requirements.txt", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename or 'a file'} cannot be written or read ({error.strerror or error})"
        print(f"predict.py: {what} – give another --save, --csv or --parquet", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if path is not None:
            print("\npredict.py: interrupted – to go on, call it again with --resume", file=sys.stderr)
        return 130


def remarks(predictor: EmotionPredictor, args: argparse.Namespace) -> list[str]:
    """What is to be said once, on standard error, of how faces are found."""
    said = []
    if args.detector == "auto" and predictor.detector == "haar":
        said.append(f"faces are found by {DETECTOR_NAMES['haar']}")
    if predictor.detector != "none" and predictor.preprocess.landmarks is None and predictor.preprocess.margin == 0.0:
        said.append(
            f"{args.model} does not say how faces lie in its training pictures, so boxes are taken as they are found – an "
            "ONNX file of export.py says it"
        )
    return said


def file_digest(path: Path) -> str:
    """What tells a network's file from others."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write(
    predictor: EmotionPredictor, names: Iterable[tuple[int, str]], args: argparse.Namespace, table: Table | None
) -> int:
    """Write answers as they come, pictures before videos, in the form that is asked for; returns the exit status."""
    from tqdm import tqdm

    at_once = table is None and not args.json  # somebody may be waiting for each line
    notes = remarks(predictor, args)
    failed, faces, documents = 0, 0, []
    videos: list[tuple[int, str]] = []
    names = sources.without_videos(names, videos)
    if table is not None:
        table.skip(names)

    def remark() -> None:
        while notes:
            tqdm.write(f"predict.py: {notes.pop(0)}", file=sys.stderr)

    def say(document: dict[str, Any], words: str) -> None:
        nonlocal failed
        failed += document["error"] is not None
        if args.json:
            documents.append(document)
        elif args.jsonl:
            print(json.dumps(document, allow_nan=False), flush=True)
        else:
            if document["error"] is None:
                remark()
            tqdm.write(words, file=sys.stdout if document["error"] is None else sys.stderr)

    shown = at_once and sys.stdout.isatty()  # answers that appear are a progress bar themselves
    begun = 0 if table is None else table.done
    with tqdm(unit="picture", initial=begun, leave=table is not None, disable=True if shown else None) as bar:
        for part in answers(predictor, names, save=args.save, explain=args.explain, batch=1 if at_once else BATCH_PICTURES):
            if table is not None:
                remark()
                table.write(part)
                faces += sum(len(result.faces) for _, result in part)
            else:
                for _, result in part:
                    say(to_dict(result, detector=predictor.detector), to_text(result, detector=predictor.detector))
            bar.update(len(part))
    if table is not None:
        table.close()
        counts = f"{table.done} pictures, {faces} faces in this call, {table.failed} that could not be read"
        print(f"{table.path}: {counts}")
        if videos:
            more = "their timelines are written by --save DIR, without a table"
            print(f"predict.py: {len(videos)} videos were passed over, first {videos[0][1]} – {more}", file=sys.stderr)
        return 1 if table.failed else 0
    alone = sources.shard_of(args.shard)[1] == 1
    if args.explain and videos:
        others = " and other videos" if len(videos) > 1 else ""
        print(f"predict.py: --explain is for pictures, not for {videos[0][1]}{others}", file=sys.stderr)
    stems = Counter(stem_of(name) for _, name in videos)
    for number, name in videos:
        stem = stem_of(name)  # what is saved of two videos, here or in another shard, must not have one name
        save_as = stem if alone and stems[stem] == 1 else f"{number:06d}_{stem}"
        say(*read_video(predictor, name, save=args.save, save_as=save_as))
    if args.json:
        # Escaped letters, so that every path survives every console.
        print(json.dumps(documents if len(documents) != 1 else documents[0], indent=2, allow_nan=False))
    return 1 if failed else 0


def read_video(predictor: EmotionPredictor, name: str, *, save: Path | None, save_as: str) -> tuple[dict[str, Any], str]:
    """What the faces of a video showed, as JSON documents it and in words; what is saved begins with `save_as`."""
    import video

    document: dict[str, Any] = {"path": name, "detector": predictor.detector}
    try:
        tracks = video.follow(name, predictor.predict_frame, save=save, name=save_as)
    except (sources.SourceError, ImageError) as error:
        return document | {"tracks": [], "error": str(error).removeprefix(f"{name}: ")}, str(error)
    document |= {"tracks": [video.track_to_dict(track) for track in tracks], "error": None}
    return document, video.describe_tracks(name, tracks)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` ends it quietly; Windows has no such signal
    sys.exit(main())
