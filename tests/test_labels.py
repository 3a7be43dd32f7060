"""The label sets: their orders, names as people write them, and the way from one set to another."""

import re
from itertools import permutations

import pytest

from labels import ALIASES, CANONICAL_NAMES, LABEL_SETS, MERGES, LabelSet, canonical, label_set_of, remap

# The class numbers of the data sets themselves, written out again: AffectNet's annotations, FER2013's `emotion` column,
# the vote columns of FER+ (happiness, sadness and anger by their canonical names), the four-class document.
ORDERS = {
    "affectnet8": "neutral happy sad surprise fear disgust angry contempt",
    "affectnet7": "neutral happy sad surprise fear disgust angry",
    "fer7": "angry disgust fear happy sad surprise neutral",
    "ferplus8": "neutral happy surprise sad angry disgust fear contempt",
    "fer4": "angry sad happy neutral",
}

# What each class of a set becomes in another one, worked out by hand; None: the class has no place there.
REMAPS = {
    ("affectnet8", "affectnet7"): (0, 1, 2, 3, 4, 5, 6, None),
    ("affectnet8", "fer7"): (6, 3, 4, 5, 2, 1, 0, None),
    ("affectnet8", "ferplus8"): (0, 1, 3, 2, 6, 5, 4, 7),
    ("affectnet8", "fer4"): (3, 2, 1, 3, 1, 0, 0, None),
    ("affectnet7", "affectnet8"): (0, 1, 2, 3, 4, 5, 6),
    ("affectnet7", "fer7"): (6, 3, 4, 5, 2, 1, 0),
    ("affectnet7", "ferplus8"): (0, 1, 3, 2, 6, 5, 4),
    ("affectnet7", "fer4"): (3, 2, 1, 3, 1, 0, 0),
    ("fer7", "affectnet8"): (6, 5, 4, 1, 2, 3, 0),
    ("fer7", "affectnet7"): (6, 5, 4, 1, 2, 3, 0),
    ("fer7", "ferplus8"): (4, 5, 6, 1, 3, 2, 0),
    ("fer7", "fer4"): (0, 0, 1, 2, 1, 3, 3),
    ("ferplus8", "affectnet8"): (0, 1, 3, 2, 6, 5, 4, 7),
    ("ferplus8", "affectnet7"): (0, 1, 3, 2, 6, 5, 4, None),
    ("ferplus8", "fer7"): (6, 3, 5, 4, 0, 1, 2, None),
    ("ferplus8", "fer4"): (3, 2, 3, 1, 0, 0, 1, None),
    ("fer4", "affectnet8"): (6, 2, 1, 0),
    ("fer4", "affectnet7"): (6, 2, 1, 0),
    ("fer4", "fer7"): (0, 4, 3, 6),
    ("fer4", "ferplus8"): (4, 3, 1, 0),
}

# What the folders of balanced-affectnet and FER2013, the columns of FER+ and people call the classes.
WRITTEN = {
    "angry": "angry",
    "Anger": "angry",
    "disgust": "disgust",
    "Disgusted": "disgust",
    "fear": "fear",
    "fearful": "fear",
    "happy": "happy",
    "happiness": "happy",
    "sad": "sad",
    "sadness": "sad",
    "surprise": "surprise",
    "surprised": "surprise",
    "neutral": "neutral",
    "calm": "neutral",
    "contempt": "contempt",
    "scorn": "contempt",
}


def test_there_are_these_sets_in_these_orders() -> None:
    assert {name: " ".join(label_set.names) for name, label_set in LABEL_SETS.items()} == ORDERS
    assert all(label_set.name == name for name, label_set in LABEL_SETS.items())
    assert [len(LABEL_SETS[name]) for name in ORDERS] == [8, 7, 7, 8, 4]


@pytest.mark.parametrize("label_set", list(LABEL_SETS.values()), ids=lambda label_set: label_set.name)
def test_index_is_the_position(label_set: LabelSet) -> None:
    assert [label_set.index(name) for name in label_set.names] == list(range(len(label_set)))


def test_the_data_sets_own_numbers() -> None:
    assert LABEL_SETS["affectnet8"].index("anger") == 6
    assert LABEL_SETS["affectnet8"].index("Contempt") == 7
    assert LABEL_SETS["fer7"].index("Angry") == 0
    assert LABEL_SETS["fer7"].index("HAPPY") == 3
    assert LABEL_SETS["ferplus8"].index("happiness") == 1
    assert LABEL_SETS["ferplus8"].index("sadness") == 3


@pytest.mark.parametrize(("written", "name"), list(WRITTEN.items()))
def test_names_in_any_case_and_with_blanks(written: str, name: str) -> None:
    for variant in (written, written.upper(), written.lower(), written.title(), f"  {written}\t\n"):
        assert canonical(variant) == name


def test_aliases_are_lower_case_and_lead_to_canonical_names() -> None:
    assert set(CANONICAL_NAMES) == set(ORDERS["affectnet8"].split())
    for alias, name in ALIASES.items():
        assert alias == alias.strip().lower() and alias not in CANONICAL_NAMES
        assert name in CANONICAL_NAMES


@pytest.mark.parametrize("unknown", ["none", "uncertain", "no-face", "unknown", "NF", "", " ", "0", "happyy", "hap py"])
def test_unknown_names_are_named(unknown: str) -> None:
    with pytest.raises(KeyError, match=re.escape(f"{unknown!r} is not the name of an expression (angry, disgust, fear,")):
        canonical(unknown)
    with pytest.raises(KeyError, match="is not the name of an expression"):
        LABEL_SETS["fer7"].index(unknown)


def test_a_class_of_another_set_is_refused_with_the_names_of_this_one() -> None:
    expected = "'Contempt' is not a class of fer7 (angry, disgust, fear, happy, sad, surprise, neutral)"
    with pytest.raises(KeyError, match=re.escape(expected)):
        LABEL_SETS["fer7"].index("Contempt")
    with pytest.raises(KeyError, match=re.escape("'fear' is not a class of fer4 (angry, sad, happy, neutral)")):
        LABEL_SETS["fer4"].canonical("fear")  # indices are never merged silently: that is what remap is for


@pytest.mark.parametrize(("source", "target"), list(permutations(ORDERS, 2)))
def test_remap(source: str, target: str) -> None:
    assert remap(LABEL_SETS[source], LABEL_SETS[target]) == REMAPS[source, target]


@pytest.mark.parametrize("name", ORDERS)
def test_remap_to_itself_changes_nothing(name: str) -> None:
    assert remap(LABEL_SETS[name], LABEL_SETS[name]) == tuple(range(len(LABEL_SETS[name])))


def test_only_the_four_class_set_merges() -> None:
    assert MERGES == {"fer4": {"disgust": "angry", "fear": "sad", "surprise": "neutral"}}


def test_remap_goes_by_name_between_sets_nobody_knows() -> None:
    source, target = LabelSet("a", ("sad", "contempt", "happy")), LabelSet("b", ("happy", "angry", "sad"))
    assert remap(source, target) == (2, None, 0)
    assert remap(target, source) == (2, None, 0)


def test_label_set_of() -> None:
    for label_set in LABEL_SETS.values():
        assert label_set_of(list(label_set.names)) is label_set
    turned = tuple(reversed(LABEL_SETS["fer7"].names))  # the same names in another order are another set
    assert label_set_of(turned) == LabelSet("custom", turned)
    assert label_set_of(["happy", "sad"]) == LabelSet("custom", ("happy", "sad"))
    assert label_set_of(["happy", "sad"]).index("sadness") == 1
