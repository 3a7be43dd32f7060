"""Networks that a student asks, batch by batch, what they see in the very pictures that it is shown.

Augmented and mixed as they are, these pictures are new to the teachers, too: what they say of them is what they know of
expressions, not what they remember of training rows ("patient and consistent" teaching, Beyer et al. 2022).

    python train.py --recipe fernet_votes --teacher runs/a,runs/b --teacher_weight 0.9 --exp student
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from faces import Preprocess

import torch
from torch import Tensor
from torch.nn import functional

from fer_transform import shares_among
from labels import LABEL_SETS, LabelSet, without_source
from models import (
    VOTED,
    Checkpoint,
    ModelError,
    OnnxModule,
    autocast,
    checkpoint_path,
    load_checkpoint,
    memory_format,
    voted,
)
from onnx_network import contents_of


def is_network(teacher: str | None) -> bool:
    """Whether --teacher names networks, not a table of what one has said or the FER+ votes."""
    return teacher is not None and teacher != "votes" and not teacher.lower().endswith(".parquet")


def names_of(teacher: str) -> list[str]:
    """The networks that --teacher names, between commas, which the name of a single one may hold itself."""
    return [teacher] if Path(teacher).exists() else [name.strip() for name in teacher.split(",")]


class Member(NamedTuple):
    """A network that teaches, the central share of the student's pictures that it sees, and the mean and standard deviation
    of its input, (C, 1, 1)."""

    checkpoint: Checkpoint
    share: float
    mean: Tensor
    std: Tensor


class Teacher:
    """The networks that `teacher` names, of which each batch asks one, drawn by lot: over many batches that is their mean,
    at the cost of one.

    labels, preprocess, split_id: the student's; classes that a network knows more finely are summed by name. `record` tells
    which networks they are, as others may lie under their paths later; `voted`, whether FER+ votes are behind one. Raises
    ModelError where a network is not there, or knows other classes, colours or parts of pictures than the student.
    """

    def __init__(
        self,
        teacher: str,
        *,
        labels: LabelSet,
        preprocess: Preprocess,
        split_id: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.labels, self.device, self.dtype = labels, device, dtype
        self.mean, self.std = self.scale(preprocess)
        self.members = []
        self.record: list[dict[str, Any]] = []
        self.voted = False
        for name in names_of(teacher):
            if not name:
                raise ModelError(f"--teacher {teacher} has an empty name – give networks with a comma between them")
            checkpoint = load_checkpoint(name, label_set=labels.name if labels.name in LABEL_SETS else None)
            seen = checkpoint.preprocess
            lacking = without_source(checkpoint.labels, labels)
            if lacking:
                raise ModelError(f"--teacher {name} has nothing for {', '.join(lacking)} of {labels.name} – name another")
            if (seen.channels, seen.order) != (preprocess.channels, preprocess.order):
                colours = f"{seen.channels} channels in {seen.order}"
                raise ModelError(f"--teacher {name} sees {colours}, the student does not – name another")
            if seen.keep > preprocess.keep:
                raise ModelError(f"--teacher {name} sees more of each picture than the student – name another")
            on_cpu = isinstance(checkpoint.model, OnnxModule) and device.type != "cpu"
            foreign = checkpoint.info.get("split_id") not in (None, split_id)
            notes = [", on the CPU"] * on_cpu + [", trained on another split, which may hold validation rows"] * foreign
            print(f"teacher: {name}, {checkpoint.labels.name}{''.join(notes)}")
            checkpoint.model.requires_grad_(False).to(device).to(memory_format=memory_format(device))  # type: ignore[call-overload]
            digest = hashlib.sha256(contents_of(checkpoint_path(name))).hexdigest()
            self.record.append({"path": name, "exp": checkpoint.info.get("exp"), "sha256": digest})
            self.voted |= voted(checkpoint)
            self.members.append(Member(checkpoint, seen.keep / preprocess.keep, *self.scale(seen)))

    def scale(self, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a network's input, (C, 1, 1)."""
        mean, std = (torch.tensor(values, device=self.device) for values in (preprocess.mean, preprocess.std))
        return mean[:, None, None], std[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W), as the student sees them → shares "teacher" (N, classes) and, of a network that knows FER+'s
        eight classes, "teacher_votes" (N, 8)."""
        checkpoint, share, mean, std = self.members[int(torch.randint(len(self.members), ()))]
        images = (images.float() * self.std + self.mean - mean) / std
        length = round(images.shape[-1] * share)
        margin = (images.shape[-1] - length) // 2
        images = images[..., margin : margin + length, margin : margin + length]
        size = (checkpoint.preprocess.size_px, checkpoint.preprocess.size_px)
        if images.shape[-2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        with autocast(self.device, self.dtype):
            output = checkpoint.model(images.contiguous(memory_format=memory_format(self.device)))
        said = output.logits.to(self.device).float().softmax(dim=1)
        shares = {"teacher": shares_among(said, checkpoint.labels, self.labels)}
        if output.votes is not None:
            shares["teacher_votes"] = output.votes.to(self.device).float().softmax(dim=1)
        elif checkpoint.labels == VOTED:
            shares["teacher_votes"] = said
        return shares
