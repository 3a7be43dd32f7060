"""Write a checkpoint as an ONNX file, which prediction runs without torch: float32, half the size, or 8-bit integers.

The file holds labels, `Preprocess` (with how faces lie in the training pictures) and temperatures besides the network. It
is written only where its answers equal the checkpoint's to 1e-4 (float32); with the validation split at hand, accuracy is
reported for all and temperatures are fitted.

    python export.py runs/lightcnn
    python export.py runs/lightcnn lightcnn.onnx --half          # weights stored in half precision
    python export.py runs/lightcnn lightcnn_int8.onnx --int8     # calibrated on 512 training pictures
    python export.py runs/lightcnn lightcnn.onnx.gz --int8       # and packed
"""

import gzip
import json
import logging
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from faces import DetectorError, Preprocess, find_yunet, haar_faces, make_detector, to_channels

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from command_line import Parser, line_of
from evaluate import EvaluationError, check_belongs, record_of, split_of
from fer_transform import FERDataset, drawn_pictures, make_loader
from inference import BATCH_SIZE, Predictions, fit_temperature, run_inference
from metadata_parallel import MetadataError, read_metadata
from models import (
    Checkpoint,
    ExpressionNet,
    ModelError,
    OnnxModule,
    Output,
    checkpoint_path,
    heads_of,
    load_checkpoint,
    versions,
)
from onnx_network import METADATA_KEY, ONNX_FORMAT, OnnxNetwork, is_onnx, is_packed

KEPT = (
    "model",
    "model_args",
    "exp",
    "recipe",
    "seed",
    "epoch",
    "epochs",
    "split_id",
    "label_set",
    "affect_rows",
    "class_counts",
    "voted",
)
MEASURED_PICTURES, MEASURED_PX = 1000, 192  # YuNet finds 97% of FER2013's faces at that size
CALIBRATION = 512  # training pictures
HALVED_FROM = 256  # numbers in a tensor
TOLERANCE = 1e-4  # between the outputs of checkpoint and float32 file
CPU = torch.device("cpu")


class ExportError(Exception):
    """A file that cannot be written; the message is one line and says what to do next."""


class Outputs(nn.Module):
    """A network's heads as a tuple, which is what ONNX knows."""

    def __init__(self, model: ExpressionNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(head for head in self.model(images) if head is not None)


def head_names(model: ExpressionNet) -> list[str]:
    """The outputs of a network, by the names of `Output`."""
    return ["logits"] + ["affect"] * (model.regressor is not None) + ["votes"] * (model.votes is not None)


def write_float32(checkpoint: Checkpoint, path: Path) -> None:
    """Trace the network into an ONNX file of one piece, for any number of images."""
    pre = checkpoint.preprocess
    example = torch.zeros(2, pre.channels, pre.size_px, pre.size_px)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on what the exporter itself will change one day
        program: Any = torch.onnx.export(
            Outputs(checkpoint.model).eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=head_names(checkpoint.model),
            dynamic_shapes={"images": {0: torch.export.Dim("rows")}},
            verbose=False,
        )
        program.save(str(path), external_data=False)


def largest_difference(checkpoint: Checkpoint, path: Path, images: Tensor) -> float:
    """The largest absolute difference between the outputs of the checkpoint and of an ONNX file, before any temperature; NaN
    where one is NaN."""
    with torch.inference_mode():
        expected = checkpoint.model.eval()(images)._asdict()
    found = OnnxNetwork(path)(images.numpy())
    return float(np.max([np.abs(expected[name].numpy() - theirs).max() for name, theirs in found.items()]))


def write_half(source: Path, target: Path) -> None:
    """Store the large tensors of a float32 file in half precision; they are widened when it is opened, so that it computes
    in float32 as before."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source))
    widened = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= HALVED_FROM:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_half"))
            widened.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*widened, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(target))


def write_int8(source: Path, target: Path, pictures: Sequence[Tensor]) -> None:
    """Quantise a float32 file statically: weights by channel, activations by the range that they take on `pictures`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows: Iterator[Tensor] = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self.rows, None)
            return None if picture is None else {"images": picture[None].numpy()}

    logging.getLogger().setLevel(logging.ERROR)
    prepared = target.with_suffix(".prepared")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Pictures(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # weights of 7 bits: with 8, processors without VNNI overflow in silence
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def write_metadata(path: Path, contents: dict[str, Any]) -> None:
    """Put the description into an ONNX file's own metadata, as JSON."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(contents)})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def describe_file(checkpoint: Checkpoint, temperatures: dict[str, float]) -> dict[str, Any]:
    """What an ONNX file says of itself: heads with their labels and temperatures, `Preprocess`, where it comes from."""
    info = checkpoint.info
    return {
        "format": ONNX_FORMAT,
        "heads": {
            name: {"label_set": labels.name, "labels": list(labels.names), "temperature": temperatures.get(name, 1.0)}
            for name, labels in heads_of(checkpoint).items()
        },
        "affect": checkpoint.model.regressor is not None and info.get("affect_rows", 0) > 0,
        "preprocess": checkpoint.preprocess.to_dict(),
        "parameters": checkpoint.info["parameters"],
        **{key: info.get(key) for key in KEPT},
        "versions": versions(),
    }


def measure_crops(dataset: FERDataset, detector_model: str, count: int) -> tuple[Preprocess, str]:
    """How faces lie in the training pictures, so that faces found in photos can be cropped alike.

    `count` pictures, enlarged to MEASURED_PX, are searched by both detectors. Where YuNet finds one face, its landmarks as
    shares of the side count towards the mean; where the Haar cascade does, so does the margin between its box and the whole
    picture (the median, as it now and then takes a mouth for a face). Returns the dataset's Preprocess with both, and a line
    on them; what fewer than a tenth of the pictures tell stays as it is.
    """
    yunet, _ = make_detector("yunet", detector_model)
    rows = np.random.default_rng(1).choice(len(dataset), size=min(count, len(dataset)), replace=False)
    found, margins = [], []
    for row in tqdm(rows, desc="measuring crops", unit="face", leave=False, disable=None):
        image = to_channels(dataset.image(int(row)), 3)
        image = cv2.resize(image, (MEASURED_PX, MEASURED_PX), interpolation=cv2.INTER_CUBIC)
        faces = yunet(image)
        if len(faces) == 1 and faces[0].landmarks is not None:
            found.append(np.asarray(faces[0].landmarks) / MEASURED_PX)
        boxes = haar_faces(image)
        if len(boxes) == 1:
            margins.append((MEASURED_PX / max(boxes[0].w, boxes[0].h) - 1.0) / 2.0)
    preprocess = dataset.preprocess
    if len(found) >= len(rows) / 10:
        mean = np.mean(found, axis=0).ravel().round(4).tolist()
        preprocess = replace(preprocess, landmarks=tuple(mean))
    if len(margins) >= len(rows) / 10:
        preprocess = replace(preprocess, margin=round(float(np.median(margins)), 4))
    measured = f"landmarks of {len(found)}, boxes of {len(margins)} of {len(rows)} training pictures"
    return preprocess, f"crops: {measured}; margin {preprocess.margin}"


def score_heads(
    checkpoint: Checkpoint, network: nn.Module, val_meta: Path, data_root: str | None = None
) -> dict[str, Predictions]:
    """What a network says of the validation rows, by each classifier for which they have labels: `logits` and `votes`."""
    said = {}
    for name, labels in heads_of(checkpoint).items():
        if name == "votes" and "votes_happy" not in read_metadata(val_meta)[0]:
            continue
        dataset = FERDataset(val_meta, labels=labels, preprocess=checkpoint.preprocess, data_root=data_root)
        loader = make_loader(dataset, batch_size=BATCH_SIZE, workers=0, device=CPU)
        first: Any = HeadFirst(network, name)
        said[name] = run_inference(first, loader, device=CPU, label=f"scoring {name}")
    return said


class HeadFirst(nn.Module):
    """A network whose `logits` are those of the classifier `name`."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, images: Tensor) -> Output:
        output = self.network(images)
        return output._replace(logits=getattr(output, self.name))


def accuracy_line(kind: str, size_bytes: int, said: dict[str, Predictions], labels: dict[str, str]) -> str:
    """One line on a file: its size and its accuracy on the validation rows, by head."""
    scores = [f"{labels[name]} {(rows.y_true == rows.y_pred).mean():.4f}" for name, rows in said.items()]
    return f"{kind:<11}{size_bytes / 1e6:>8.1f} MB   accuracy on the validation split: {', '.join(scores)}"


def export(
    checkpoint: Checkpoint,
    source: Path,
    out: Path,
    *,
    kind: str,
    train_meta: Path | None,
    val_meta: Path | None,
    calibration: int,
    data_root: str | None,
    detector_model: str | None,
) -> list[str]:
    """Write the ONNX file and return lines on it. Raises ExportError, EvaluationError or MetadataError."""
    pre = checkpoint.preprocess
    lines = []
    if detector_model is not None and train_meta is not None:
        dataset = FERDataset(train_meta, labels=checkpoint.labels, preprocess=pre, data_root=data_root)
        pre, line = measure_crops(dataset, detector_model, MEASURED_PICTURES)
        checkpoint = checkpoint._replace(preprocess=pre)
        lines.append(line)
    else:
        lack = "training pictures" if detector_model is not None else "YuNet: make detector"
        lines.append(f"crops: how faces lie in the training pictures was not measured, for want of {lack}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        plain = Path(folder) / "float32.onnx"
        write_float32(checkpoint, plain)
        write_metadata(plain, describe_file(checkpoint, {}))
        images = torch.randn(8, pre.channels, pre.size_px, pre.size_px, generator=torch.Generator().manual_seed(0))
        difference = largest_difference(checkpoint, plain, images)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{source}: the ONNX file answers otherwise than the checkpoint (by up to {difference:.1e}, allowed "
                f"{TOLERANCE:.0e}) – nothing was written; is it trained to the end, and are its weights numbers?"
            )
        lines.append(f"largest difference between checkpoint and float32 file: {difference:.1e}")
        written = plain
        if kind == "half":
            written = Path(folder) / "half.onnx"
            write_half(plain, written)
        elif kind == "int8":
            if train_meta is None:
                raise ExportError("--int8 is calibrated on training pictures – give --train_meta metadata_train.parquet")
            dataset = FERDataset(train_meta, labels=checkpoint.labels, preprocess=pre, data_root=data_root)
            written = Path(folder) / "int8.onnx"
            write_int8(plain, written, drawn_pictures(dataset, calibration))
            write_metadata(written, describe_file(checkpoint, {}))
        temperatures = {}
        if val_meta is not None:
            label_sets = {name: labels.name for name, labels in heads_of(checkpoint).items()}
            said = score_heads(checkpoint, checkpoint.model, val_meta, data_root)
            lines.append(accuracy_line("checkpoint", source.stat().st_size, said, label_sets))
            for name, path in {"float32": plain, kind: written}.items():
                said = score_heads(checkpoint, OnnxModule(OnnxNetwork(path)), val_meta, data_root)
                lines.append(accuracy_line(name, path.stat().st_size, said, label_sets))
            for name in label_sets.keys() - said.keys():
                lines.append(
                    f"{label_sets[name]}: {val_meta} has no such labels, so this head is neither scored nor calibrated – "
                    "index with --ferplus fer2013new.csv first"
                )
            temperatures = {name: fit_temperature(rows) for name, rows in said.items()}
            lines.append("temperatures: " + ", ".join(f"{label_sets[name]} {t:.3f}" for name, t in temperatures.items()))
            if 1.0 in temperatures.values():
                lines.append("a temperature of 1: every row is right, and none can be fitted – give more rows")
        else:
            lines.append("temperatures: none, for want of validation pictures – give --val_meta metadata_val.parquet")
        write_metadata(written, describe_file(checkpoint, temperatures))
        if is_packed(out):
            written.write_bytes(gzip.compress(written.read_bytes(), mtime=0))  # the same bytes whenever it is done
        written.replace(out)
    return lines


def rows_of(checkpoint: Checkpoint, source: Path, given: Path | None, split: str, data_root: str | None) -> Path | None:
    """The parquet of a split: the one that is given, which must hold those rows and fit the checkpoint, else the one that
    the run was trained with, else the one in this folder, where they, and their pictures, are there and fit, else None.
    Raises ExportError, EvaluationError or MetadataError.
    """
    if given is not None:
        split_of(given, split)
        if read_metadata(given)[1]["split_id"] != checkpoint.info.get("split_id"):
            raise ExportError(f"{source} was trained on another split than that of {given} – give its own, or leave it out")
        check_belongs(checkpoint, source, given, cross_dataset=False)
        return given
    named = record_of(source.parent).get("args", {}).get(f"{split}_meta")
    for path in [Path(name) for name in (named, f"metadata_{split}.parquet") if name]:
        if path.is_file() and read_metadata(path)[1]["split_id"] == checkpoint.info.get("split_id"):
            try:
                check_belongs(checkpoint, source, path, cross_dataset=False)
                FERDataset(path, labels=checkpoint.labels, preprocess=checkpoint.preprocess, data_root=data_root)
            except (EvaluationError, MetadataError) as error:
                print(f"note: {line_of(error)}")
                continue
            return path
    return None


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="checkpoint or run folder")
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        help="the .onnx file, or .onnx.gz (default: beside the checkpoint, best.onnx, best_half.onnx, best_int8.onnx)",
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--half", dest="kind", action="store_const", const="half", default="float32",
        help="store the weights in half precision; it still computes in float32",
    )  # fmt: skip
    kinds.add_argument(
        "--int8", dest="kind", action="store_const", const="int8", help="8-bit integers, calibrated on training pictures"
    )
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="how many of them (default: %(default)s)")
    parser.add_argument(
        "--train_meta", "--train-meta", type=Path,
        help="parquet of the training pictures, for --int8 and for how faces lie in them (default: the run's)",
    )  # fmt: skip
    parser.add_argument(
        "--val_meta", "--val-meta", type=Path,
        help="parquet of the rows for accuracy and temperatures (default: the run's)",
    )  # fmt: skip
    parser.add_argument(
        "--data_root", "--data-root", help="where the pictures are, if not where the parquets say (default: the run's)"
    )
    parser.add_argument("--detector_model", "--detector-model", metavar="ONNX", help="YuNet's file (default: as predict.py)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Export; status 2 with one line where that cannot be done."""
    args = build_parser().parse_args(argv)
    path = checkpoint_path(args.checkpoint)
    out = args.out or path.with_name(path.stem + ("" if args.kind == "float32" else f"_{args.kind}") + ".onnx")
    try:
        if is_onnx(path):
            raise ExportError(f"{path} is an ONNX file already – give a checkpoint: best.pth")
        if not is_onnx(out):
            raise ExportError(f"{out} must end in .onnx, or in .onnx.gz, which packs it")
        if out.is_dir():
            raise ExportError(f"{out} is a folder – give the name of a file")
        if args.calibration < 1:
            raise ExportError("--calibration must be at least 1")
        if args.calibration != CALIBRATION and args.kind != "int8":
            raise ExportError("--calibration does nothing here – add --int8")
        checkpoint = load_checkpoint(path)
        settings = record_of(path.parent).get("args", {})
        checkpoint.info["epochs"] = settings.get("epochs")  # a training may go on later
        data_root = args.data_root or settings.get("data_root")
        lines = export(
            checkpoint,
            path,
            out,
            kind=args.kind,
            train_meta=rows_of(checkpoint, path, args.train_meta, "train", data_root),
            val_meta=rows_of(checkpoint, path, args.val_meta, "val", data_root),
            calibration=args.calibration,
            data_root=data_root,
            detector_model=find_yunet(args.detector_model),
        )
    except DetectorError as error:
        print(f"export.py: {error}".replace(", or give --detector haar", ""), file=sys.stderr)
        return 2
    except (ExportError, EvaluationError, MetadataError, ModelError, OSError) as error:
        print(f"export.py: {line_of(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"export.py: {error.name} is missing – run: pip install -r requirements-export.txt", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nexport.py: interrupted", file=sys.stderr)
        return 130
    print("\n".join(lines))
    print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    print(f"try it: python predict.py --model {shlex.quote(str(out))} face.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
