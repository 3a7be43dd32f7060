"""The label sets of facial-expression data as data: which names, in which order, and how one set maps to another.

A class index means something only inside one `LabelSet`; everywhere else (files, columns, metrics, JSON) a class is its
canonical name. So labels are carried from one set to another by name, never by position.

    python -c "import labels; print(labels.LABEL_SETS['fer7'].names)"
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelSet:
    """A named, ordered set of classes: the position of a name is its class index."""

    name: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Class index of a canonical name or an alias of it. Raises KeyError where the set has no such class."""
        return self.names.index(self.canonical(name))

    def canonical(self, name: str) -> str:
        """The canonical name of a class of this set, given in any case or as an alias. Raises KeyError otherwise."""
        known = canonical(name)
        if known not in self.names:
            raise KeyError(f"{name!r} is not a class of {self.name} ({', '.join(self.names)})")
        return known


# Orders are those of the data sets' own class numbers: AffectNet 0..7, FER2013 0..6, the columns of FER+, and the four
# classes as the four-class document lists them.
LABEL_SETS = {
    label_set.name: label_set
    for label_set in (
        LabelSet("affectnet8", ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")),
        LabelSet("affectnet7", ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry")),
        LabelSet("fer7", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")),
        LabelSet("ferplus8", ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt")),
        LabelSet("fer4", ("angry", "sad", "happy", "neutral")),
    )
}

CANONICAL_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral", "contempt")

ALIASES = {
    "anger": "angry",
    "angriness": "angry",
    "disgusted": "disgust",
    "disgusting": "disgust",
    "afraid": "fear",
    "fearful": "fear",
    "scared": "fear",
    "happiness": "happy",
    "happily": "happy",
    "joy": "happy",
    "joyful": "happy",
    "smile": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "surprising": "surprise",
    "neutrality": "neutral",
    "calm": "neutral",
    "contemptuous": "contempt",
    "scorn": "contempt",
}

# The four-class document merges disgust into angry, fear into sad and surprise into neutral.
MERGES = {"fer4": {"disgust": "angry", "fear": "sad", "surprise": "neutral"}}


def canonical(name: str) -> str:
    """The canonical class name of a label as people write it: any case, surrounding blanks, aliases ("Anger", " happiness").

    Raises KeyError for a name of no class.
    """
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in CANONICAL_NAMES:
        raise KeyError(f"{name!r} is not the name of an expression ({', '.join(CANONICAL_NAMES)})")
    return key


def remap(source: LabelSet, target: LabelSet) -> tuple[int | None, ...]:
    """For every class of `source`, its index in `target` by name, None where `target` has no such class (contempt in fer7).

    Merges apply first, so fer7 to fer4 puts disgust with angry, fear with sad and surprise with neutral.
    """
    merge = MERGES.get(target.name, {})
    merged = [merge.get(name, name) for name in source.names]
    return tuple(target.names.index(name) if name in target.names else None for name in merged)


def without_source(source: LabelSet, target: LabelSet) -> list[str]:
    """The classes of `target` that none of `source` becomes (contempt from fer7 to affectnet8)."""
    found = set(remap(source, target))
    return [name for index, name in enumerate(target.names) if index not in found]


def label_set_of(names: Sequence[str]) -> LabelSet:
    """The known label set with exactly these names in this order, else an unnamed one ("custom") that holds them."""
    for label_set in LABEL_SETS.values():
        if label_set.names == tuple(names):
            return label_set
    return LabelSet("custom", tuple(names))
