"""Networks that a student asks, batch by batch, what they see in the very pictures that it is shown.

Augmented and mixed as they are, these pictures are new to the teachers, too: what they say of them is what they know of
expressions, not what they remember of training rows ("patient and consistent" teaching, Beyer et al. 2022).

    python train.py --recipe fernet_votes --teacher runs/a,runs/b --teacher_weight 0.9 --exp student
"""

from collections.abc import Sequence

from faces import Preprocess

import torch
from torch import Tensor
from torch.nn import functional

from fer_transform import shares_among
from labels import LabelSet, without_source
from models import ModelError, autocast, load_checkpoint

TABLES = ("votes", ".parquet")  # how the names end of what is no network, but known before the training


def is_network(teacher: str | None) -> bool:
    """Whether --teacher names networks, not the table of what one has said or the FER+ votes."""
    return teacher is not None and not teacher.endswith(TABLES)


class Teacher:
    """The networks of `paths`, of which each batch asks one, drawn by lot: over many batches that is their mean, at the cost
    of one. Raises ModelError where one is not there, or knows other classes or colours than the student.

    labels, preprocess: the student's; classes that a network knows more finely are summed by name.
    """

    def __init__(
        self, paths: Sequence[str], *, labels: LabelSet, preprocess: Preprocess, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.labels, self.device, self.dtype = labels, device, dtype
        self.members = [load_checkpoint(path, label_set=labels.name) for path in paths]
        for path, member in zip(paths, self.members, strict=True):
            lacking = without_source(member.labels, labels)
            if lacking:
                raise ModelError(f"--teacher {path} has nothing for {', '.join(lacking)} of {labels.name} – name another")
            seen = member.preprocess
            if (seen.channels, seen.order) != (preprocess.channels, preprocess.order):
                colours = f"{seen.channels} channels in {seen.order}"
                raise ModelError(f"--teacher {path} sees {colours}, the student does not – name another")
            member.model.requires_grad_(False).to(device)
        self.mean, self.std = self.scale(preprocess)

    def scale(self, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a network's input, (C, 1, 1)."""
        mean, std = (torch.tensor(values, device=self.device) for values in (preprocess.mean, preprocess.std))
        return mean[:, None, None], std[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W), as the student sees them → shares "teacher" (N, classes) and, of a network that knows the
        FER+ votes, "teacher_votes" (N, 8)."""
        member = self.members[int(torch.randint(len(self.members), ()))]
        mean, std = self.scale(member.preprocess)
        images = (images.float() * self.std + self.mean - mean) / std
        size = (member.preprocess.size_px, member.preprocess.size_px)
        if images.shape[-2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        with autocast(self.device, self.dtype):
            output = member.model(images)
        said = output.logits.to(self.device).float().softmax(dim=1)
        shares = {"teacher": shares_among(said, member.labels, self.labels)}
        if output.votes is not None:
            shares["teacher_votes"] = output.votes.to(self.device).float().softmax(dim=1)
        return shares
