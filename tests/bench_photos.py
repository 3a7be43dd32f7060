"""How much accuracy a network keeps on faces that it has to find: dataset faces, enlarged, pasted into scenes, found again.

Faces of the validation split are enlarged to 96 to 192 px and laid on scenes of 640×480 px: the pictures without faces of
FACE_FIXTURES/nonfaces where there are such, else smooth noise. Each way of detecting and cropping is scored on the same
scenes, faces that are not found counted as wrong. The target: with YuNet 90% of the accuracy on the faces themselves.

    FER_DETECTOR=yunet.onnx python tests/bench_photos.py weights/student.onnx.gz --faces 500
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faces import Face, find_yunet, make_detector, read_image, to_channels

from command_line import Parser
from fer_transform import FERDataset
from layouts import MetadataError
from metadata_parallel import read_metadata
from onnx_network import ModelError
from predict import DEFAULT_MODEL, EmotionPredictor
from video import overlap

SCENE_PX = (480, 640)
SIZES_PX = (96, 192)
TARGET = 0.9


def backgrounds(generator: np.random.Generator) -> list[np.ndarray]:
    """Scenes without faces, RGB uint8 of SCENE_PX."""
    folder = os.environ.get("FACE_FIXTURES", "")
    pictures = [read_image(path) for path in sorted((Path(folder) / "nonfaces").glob("*.*"))]
    if not pictures:
        pictures = [generator.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(8)]
    return [cv2.resize(picture, SCENE_PX[::-1], interpolation=cv2.INTER_CUBIC) for picture in pictures]


def paste(face: np.ndarray, scene: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, Face]:
    """A face (H, W) or (H, W, 3) at a random size and place in a copy of the scene, and its box."""
    side = int(generator.integers(*SIZES_PX, endpoint=True))
    x, y = (int(generator.integers(0, length - side)) for length in (SCENE_PX[1], SCENE_PX[0]))
    picture = scene.copy()
    picture[y : y + side, x : x + side] = cv2.resize(to_channels(face, 3), (side, side), interpolation=cv2.INTER_CUBIC)
    return picture, Face(x, y, side, side, 1.0)


def main(argv: list[str] | None = None) -> int:
    """Print a line for each way; status 1 where YuNet with alignment misses the target."""
    parser = Parser(__doc__)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--meta", default="metadata_val.parquet", help="default: %(default)s")
    parser.add_argument("--faces", type=int, default=500, help="default: %(default)s")
    args = parser.parse_args(argv)
    generator = np.random.default_rng(0)
    try:
        label_set = read_metadata(args.meta)[1]["label_set"]  # of a network with two heads the one for these labels
        predictor = EmotionPredictor(args.model, label_set=label_set, detector="none")
        dataset = FERDataset(args.meta, preprocess=predictor.preprocess)
    except (MetadataError, ModelError) as error:
        parser.error(str(error))
    rows = generator.choice(len(dataset), size=min(args.faces, len(dataset)), replace=False)
    truth = [predictor.labels.names[int(dataset.y_cls[row])] for row in rows]
    scenes = backgrounds(generator)
    pasted = [paste(dataset.image(int(row)), scenes[at % len(scenes)], generator) for at, row in enumerate(rows)]

    crops = [to_channels(dataset.image(int(row)), 3) for row in rows]
    boxes = [place for _, place in pasted]
    direct = np.mean([said.label == name for said, name in zip(predictor.classify(crops, boxes), truth, strict=True)])
    print(f"{len(rows)} faces of {args.meta}, {label_set}; cropped already: accuracy {direct:.3f}")
    known = predictor.preprocess
    box, tight = replace(known, landmarks=None), replace(known, landmarks=None, margin=0.0)
    ways = [("haar", tight), ("haar", box)]
    if find_yunet() is not None:
        ways += [("yunet", tight), ("yunet", box)] + ([("yunet", known)] if known.landmarks is not None else [])
    kept = 0.0
    for name, preprocess in ways:
        detect, _ = make_detector(name)
        hits = found = 0
        for (picture, place), label in zip(pasted, truth, strict=True):
            faces = [(overlap(face, place), face) for face in detect(picture)]
            share, face = max(faces, default=(0.0, place))
            if share > 0.3:
                found += 1
                hits += predictor.classify([preprocess.crop(picture, face)], [face])[0].label == label
        kept = float(hits / len(rows) / direct)
        how = "aligned" if preprocess.landmarks is not None else f"box with margin {preprocess.margin:.2f}"
        print(f"{name:<6} {how:<22} found {found / len(rows):.3f}   accuracy {hits / len(rows):.3f}   {kept:.0%} of it")
    return 0 if kept >= TARGET or find_yunet() is None else 1


if __name__ == "__main__":
    sys.exit(main())
