"""A network in an ONNX file: how it is opened, what it says of itself, and its answers as numpy arrays, without torch.

`export.py` writes such files, `predict.py` uses them; `models.load_checkpoint` puts one in the place of a checkpoint.

    python -c "import onnx_network; print(onnx_network.OnnxNetwork('weights/fernet_votes.onnx.gz').heads)"
"""

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

from faces import Preprocess

import numpy as np

from labels import LabelSet, label_set_of, without_source

ONNX_FORMAT = 1
METADATA_KEY = "fer"  # under which the file's own metadata hold everything, as JSON


class ModelError(Exception):
    """A network's file that cannot be used; the message is one line and says what to do next."""


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an ONNX file, packed or not."""
    return Path(path).name.lower().endswith((".onnx", ".onnx.gz"))


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a file packed by gzip, in which a network in 8-bit integers takes three quarters of the room."""
    return Path(path).suffix.lower() == ".gz"


def bare_name(path: Path) -> str:
    """What a network's file is called without its ending."""
    return Path(path.stem).stem if is_packed(path) else path.stem


def contents_of(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a network's file, of a packed one as they are unpacked. Raises ModelError where they cannot be."""
    contents = Path(path).read_bytes()
    try:
        return gzip.decompress(contents) if is_packed(path) else contents
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ModelError(f"{path} cannot be unpacked ({type(error).__name__}) – copy or export it again") from error


def head_for(heads: dict[str, LabelSet], wanted: LabelSet) -> str:
    """The name of the classifier that is to answer in the classes `wanted`: the one that has just these, else the first
    whose classes can be summed into them, else "logits"."""
    exact = [name for name, labels in heads.items() if labels == wanted]
    able = [name for name, labels in heads.items() if not without_source(labels, wanted)]
    return next(iter(exact + able), "logits")


class OnnxNetwork:
    """A network of an ONNX file (.onnx, or .onnx.gz), ready to answer.

    heads: the label set of each classifier, by the name of its output ("logits", and "votes" where there is a second);
    temperatures: by what their logits are divided, by the same names; affect: whether it knows valence and arousal;
    preprocess: how its input is made; info: everything else that the file says. `device`: cpu, cuda, cuda:1, or auto, which
    is CUDA (which comes with onnxruntime-gpu) where it is there, each process of torchrun its own. `threads`: of the CPU, by
    default one a core. Raises ModelError.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: str = "cpu", threads: int = 0) -> None:
        if not Path(path).is_file():
            raise ModelError(f"{path} not found – is the path right? Such a file is made by: python export.py CKPT {path}")
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModelError(f"{path} needs onnxruntime – run: pip install -r requirements.txt") from error
        if not os.access(path, os.R_OK):
            raise ModelError(f"{path} may not be read – look at its permissions")
        contents = contents_of(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is said below
        options.intra_op_num_threads = threads
        kind, _, number = device.partition(":")
        there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        gpu = there and kind != "cpu"
        if kind not in ("auto", "cpu", "cuda") or not (number or "0").isdecimal():
            raise ModelError(f"{Path(path).name} runs on cpu or cuda, not {device} – use --device auto")
        cuda = ("CUDAExecutionProvider", {"device_id": int(number or os.environ.get("LOCAL_RANK", "0"))})
        providers = [cuda, "CPUExecutionProvider"] if gpu else ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(contents, options, providers=providers)
        except Exception as error:  # onnxruntime raises a kind of its own for each fault
            raise ModelError(f"{path} is no ONNX file that can be run ({type(error).__name__}) – export it again") from error
        if kind == "cuda" and self.session.get_providers()[0] != "CUDAExecutionProvider":  # or its libraries are not there
            raise ModelError(
                f"device {device} is not available here to ONNX Runtime – install onnxruntime-gpu, or --device auto"
            )
        stored = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if stored is None:
            raise ModelError(f"{path} is not a network of this project (it does not say which classes it knows)")
        self.info: dict[str, Any] = json.loads(stored)
        if self.info["format"] != ONNX_FORMAT:
            raise ModelError(f"{path} has format {self.info['format']}, this program reads {ONNX_FORMAT}")
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.heads: dict[str, LabelSet] = {name: label_set_of(head["labels"]) for name, head in self.info["heads"].items()}
        self.temperatures: dict[str, float] = {name: head["temperature"] for name, head in self.info["heads"].items()}
        self.affect: bool = self.info["affect"]
        self.preprocess = Preprocess.from_dict(self.info["preprocess"])

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images, float32 (N, C, H, W) of `preprocess`, → "logits" (N, classes), and "affect" (N, 2) and "votes" (N, 8)
        where the network has those heads; float32."""
        return dict(zip(self.outputs, self.session.run(None, {"images": images}), strict=True))
