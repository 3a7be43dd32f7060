"""Read the expressions of the faces in pictures.

Finds the faces (OpenCV's frontal Haar cascade), crops them as the network's training data was, and prints label and
probabilities, with valence and arousal where the network was trained on them.

    python predict.py face.jpg
    python predict.py photos/*.jpg --json
    python predict.py crop.png --detector none        # the picture is a face already

Exit status: 0 answered ("no face found" is an answer), 1 a file could not be read, 2 wrong usage.
"""

import argparse
import io
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from faces import DETECTORS, DetectorError, Face, ImageError, looks_like_crop, make_detector, read_image
from labels import LABEL_SETS, remap
from onnx_network import ModelError

SHIPPED_MODEL = Path(__file__).resolve().parent / "weights" / "lightcnn.onnx"
BAR_WIDTH = 30

DETECTOR_NAMES = {"haar": "OpenCV's Haar cascade – make detector fetches YuNet, which finds more", "yunet": "YuNet"}

# What to do about the faults of image files that people meet most.
HINTS = {
    "missing": "is the path right?",
    "not a file": "for a folder, give the pictures in it: FOLDER/*.jpg",
    "not an image": "JPEG, PNG, WebP, BMP, TIFF and GIF can be read",
    "truncated": "copy or download it again",
}


class FacePrediction(NamedTuple):
    """One face: its box and score as detected, the probability of each label (they sum to 1), valence and arousal in
    [−1, 1] or None where the network was not trained on them."""

    face: Face
    probabilities: dict[str, float]
    valence: float | None
    arousal: float | None

    @property
    def label(self) -> str:
        """The most probable label."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


class Answer(NamedTuple):
    """What is said of one picture: `detected` is False where the faces are the whole picture, not found in it."""

    path: str
    detected: bool
    faces: list[FacePrediction]
    error: str | None


class EmotionPredictor:
    """A network ready to use: `EmotionPredictor("best.onnx").predict(image)`.

    path: an ONNX file of export.py, or a checkpoint (.pth), which needs torch. label_set: the classes to answer in, where
    the network has a head for them or they can be summed from its own; default: the network's own. `use_gpu_if_available`
    False is device "cpu", in the four-class document's words. detector, detector_model: see `faces.make_detector`; the name
    of the one that is used stands in `detector`. Raises onnx_network.ModelError or faces.DetectorError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = SHIPPED_MODEL,
        use_gpu_if_available: bool = True,
        *,
        label_set: str | None = None,
        device: str = "auto",
        detector: str = "auto",
        detector_model: str | os.PathLike[str] | None = None,
    ) -> None:
        device = device if use_gpu_if_available else "cpu"
        self.network: Any
        if Path(path).suffix.lower() == ".onnx":
            from onnx_network import OnnxNetwork

            self.network = OnnxNetwork(path, device=device)
        else:
            from models import TorchNetwork, choose_device

            self.network = TorchNetwork(path, choose_device(device))
        self.detect, self.detector = make_detector(detector, detector_model)
        self.preprocess = self.network.preprocess
        asked = LABEL_SETS[label_set] if label_set is not None else None
        self.head = next((name for name, labels in self.network.heads.items() if labels == asked), "logits")
        own = self.network.heads[self.head]
        self.labels = own if asked is None else asked
        # Where each class of the head goes, None for one that is left out.
        self.places = remap(own, self.labels) if self.labels != own else tuple(range(len(own)))
        lacking = [name for index, name in enumerate(self.labels.names) if index not in self.places]
        if lacking:
            raise ModelError(f"{path} says nothing of {', '.join(lacking)} – it knows {', '.join(own.names)}")

    def predict(self, image: np.ndarray) -> tuple[list[FacePrediction], bool]:
        """The faces of an RGB image, uint8 (H, W, 3), largest first, and whether they were detected.

        With detector "none" the picture is one face; so is a small, nearly square one in which none is found.
        """
        faces = self.detect(image)
        detected = bool(faces)
        if not faces and (self.detector == "none" or looks_like_crop(image)):
            height, width = image.shape[:2]
            crops, faces = [image], [Face(0, 0, width, height, math.nan)]
        else:
            crops = [self.preprocess.crop(image, face) for face in faces]
        return self.classify(crops, faces), detected

    def predict_emotion_from_frame(self, frame: np.ndarray, face: tuple[int, int, int, int]) -> tuple[str, int, np.ndarray]:
        """One face of a camera's or cv2.imread's frame: its label, the label's index, and all probabilities (classes,).

        frame: BGR, uint8 (H, W, 3); face: the box (x, y, w, h) in its pixels. Raises ValueError where frame or box is
        not that, onnx_network.ModelError as `classify`.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame is BGR, uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
        x, y, w, h = (int(value) for value in face)
        box = Face(x, y, w, h, math.nan)
        if box.w < 1 or box.h < 1 or not (-box.w < box.x < frame.shape[1] and -box.h < box.y < frame.shape[0]):
            raise ValueError(f"the box {face} is (x, y, w, h) of no part of a frame of {frame.shape[1]}×{frame.shape[0]} px")
        image = np.ascontiguousarray(frame[:, :, ::-1])
        (prediction,) = self.classify([self.preprocess.crop(image, box)], [box])
        probabilities = np.array(list(prediction.probabilities.values()))
        index = int(probabilities.argmax())
        return self.labels.names[index], index, probabilities

    def classify(self, crops: list[np.ndarray], faces: list[Face]) -> list[FacePrediction]:
        """Predictions for face crops, RGB uint8 (H, W, 3) of any size, and the boxes they came from.

        Raises onnx_network.ModelError where the network's weights are not numbers.
        """
        if not crops:
            return []
        said = self.network(np.stack([self.preprocess(crop) for crop in crops]))  # of (N, C, H, W)
        if not all(np.isfinite(values).all() for values in said.values()):
            raise ModelError("the network answers with no numbers: its weights are damaged – give another --model")
        logits = said[self.head].astype(np.float64) / self.network.temperatures[self.head]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))  # (N, classes of the head)
        probabilities = np.zeros((len(crops), len(self.labels)))
        for column, place in enumerate(self.places):
            if place is not None:
                probabilities[:, place] += shares[:, column]
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        affect = said["affect"].clip(-1.0, 1.0).tolist() if self.network.affect else [(None, None)] * len(crops)
        return [
            FacePrediction(face, dict(zip(self.labels.names, row, strict=True)), valence, arousal)
            for face, row, (valence, arousal) in zip(faces, probabilities.tolist(), affect, strict=True)
        ]


def answer(predictor: EmotionPredictor, path: str) -> Answer:
    """What can be said of one file; a file that cannot be read gives an answer with an error."""
    try:
        image = read_image(path)
    except ImageError as error:
        return Answer(path, False, [], str(error))
    faces, detected = predictor.predict(image)
    return Answer(path, detected, faces, None)


def to_dict(result: Answer) -> dict[str, Any]:
    """An answer as the JSON documents it; unknown figures are null."""
    faces = []
    for prediction in result.faces:
        box = prediction.face
        faces.append(
            {
                "box": [box.x, box.y, box.w, box.h],
                "label": prediction.label,
                "probabilities": {name: round(value, 6) for name, value in prediction.probabilities.items()},
                "valence": prediction.valence,
                "arousal": prediction.arousal,
                "score": None if math.isnan(box.score) else box.score,
                "landmarks": None if box.landmarks is None else [[round(x, 1), round(y, 1)] for x, y in box.landmarks],
            }
        )
    return {"path": result.path, "detected": result.detected, "faces": faces, "error": result.error}


def to_text(result: Answer, *, detector: str) -> str:
    """An answer for people to read, with a bar for each probability."""
    if result.error is not None:
        return f"{result.path}: {result.error}" + (f" – {HINTS[result.error]}" if result.error in HINTS else "")
    if not result.faces:
        more = f", by {DETECTOR_NAMES[detector]}" if detector in DETECTOR_NAMES else ""
        return f"{result.path}: no face found{more} (a picture that is a face already: --detector none)"
    lines = []
    for number, prediction in enumerate(result.faces, start=1):
        box = prediction.face
        where = f"face {number} of {len(result.faces)} at {box.x},{box.y}, {box.w}×{box.h} px"
        if not result.detected:
            where = "taken whole" + ("" if detector == "none" else ": no face found, but it looks like a face crop")
        lines.append(f"{result.path}: {prediction.label} {prediction.probabilities[prediction.label]:.0%} ({where})")
        for name, value in sorted(prediction.probabilities.items(), key=lambda item: -item[1]):
            lines.append(f"  {name:<9} {value:6.1%} {'█' * round(BAR_WIDTH * value)}".rstrip())
        if prediction.valence is not None and prediction.arousal is not None:
            lines.append(f"  valence {prediction.valence:+.2f}, arousal {prediction.arousal:+.2f}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--model", default=str(SHIPPED_MODEL), help=".onnx or .pth file (default: the shipped network)")
    parser.add_argument(
        "--label_set", "--label-set", choices=sorted(LABEL_SETS), help="classes to answer in (default: the network's own)"
    )
    parser.add_argument(
        "--detector", choices=DETECTORS, default="auto",
        help="auto: YuNet where its file is there, else OpenCV's Haar cascade; none: pictures are faces already",
    )  # fmt: skip
    parser.add_argument(
        "--detector_model", "--detector-model", metavar="ONNX",
        help="YuNet's file (default: that of the environment variable FER_DETECTOR, else what make detector fetched)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument(
        "--json", action="store_true", help="print JSON: one object, or a list where several pictures are given"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Answer for every picture; see the exit statuses above."""
    args = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # consoles that cannot show a bar or a path's letters
    try:
        predictor = EmotionPredictor(
            args.model,
            label_set=args.label_set,
            device=args.device,
            detector=args.detector,
            detector_model=args.detector_model,
        )
        answers = []
        for path in args.images:
            result = answer(predictor, path)
            answers.append(result)
            if not args.json:
                print(to_text(result, detector=predictor.detector), file=sys.stdout if result.error is None else sys.stderr)
    except (ModelError, DetectorError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if args.json:
        documents = [to_dict(result) for result in answers]
        # Escaped letters, so that every path survives every console.
        print(json.dumps(documents if len(documents) > 1 else documents[0], indent=2, allow_nan=False))
    return 1 if any(result.error is not None for result in answers) else 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` ends it quietly; Windows has no such signal
    sys.exit(main())
