"""Groups of runs, their mean and spread, and the study's tables and pictures, on made-up figures worked out by hand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import study
from labels import LABEL_SETS

NAMES = LABEL_SETS["fer7"].names


def made_up(name: str, **more: Any) -> dict[str, Any]:
    """The figures of a made-up run of the light CNN: accuracy 0.5, F1 0.1 to 0.7 by class, two epochs of one minute each.

    `more` replaces or adds figures; `args` adds settings, `run` to its record, `minutes` gives the length of each epoch.
    """
    args, minutes, record = more.pop("args", {}), more.pop("minutes", (1, 1)), more.pop("run", {})
    values: dict[str, Any] = {"exp": name, "model": "lightcnn", "label_set": "fer7", "split": "test", "rows": 3589}
    values |= {"epoch": 2, "accuracy": 0.5, "accuracy_low": 0.48, "accuracy_high": 0.52, "macro_f1": 0.4}
    values |= {f"f1_{label}": 0.1 * place for place, label in enumerate(NAMES, start=1)} | {"recall_fear": 0.25} | more
    machine = {"processor": "Made Up 1", "threads": 2, "device": "cpu", "precision": "float32, as asked for"}
    values["run"] = {"command": f"python train.py --exp {name}", "args": args, "machine": machine} | record
    values["history"] = [{"epoch": epoch, "time_s": 60 * length} for epoch, length in enumerate(minutes, start=1)]
    return values


def groups_of(**runs: dict[str, Any]) -> list[study.Group]:
    """The groups of made-up runs, given as what differs from the plain one."""
    return study.grouped({name: made_up(name, **more) for name, more in runs.items()})


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that the study draws, which are not written."""
    figures = []

    @contextmanager
    def picture(paths: Sequence[Path], width_in: float, height_in: float, title: str) -> Iterator[Figure]:
        figures.append(Figure(figsize=(width_in, height_in)))
        yield figures[-1]

    monkeypatch.setattr(study, "picture", picture)
    return figures


# Runs, and groups of them


def test_what_was_typed_names_resumptions() -> None:
    values = made_up("a")
    values["run"] |= {
        "resumed": ["python train.py --resume runs/a/last.pth"],
        "scored": "python evaluate.py runs/a --tta flip",
    }
    assert study.Run("a", values).commands == [
        "python train.py --exp a", "python train.py --resume runs/a/last.pth", "python evaluate.py runs/a --tta flip",
    ]  # fmt: skip


def test_ferplus_votes_and_members_are_said() -> None:
    args = {"recipe": "fernet_votes", "votes_weight": 1.0}
    (group,) = groups_of(ensemble={"args": args, "members": 3, "views": 10})
    assert group.system == (
        "an ensemble of our networks (3 members), with the FER+ votes of the training rows, mean of 10 views"
    )
    (group,) = groups_of(fernet_votes={"args": args})
    assert group.system.count("FER+") == 1
    (group,) = groups_of(longer={"args": args})
    assert group.system.startswith("fernet_votes, with the FER+ votes of the training rows")
    (group,) = groups_of(taught={"args": {"recipe": "fernet"}, "run": {"voted": True}})  # by a network that has
    assert "with the FER+ votes of the training rows" in group.system


def test_what_differs_from_its_recipe_where_its_name_is_none() -> None:
    args = {"recipe": "resnet18_gray", "epochs": 40, "dropout": 0.0}
    (group,) = groups_of(four_class_longer={"args": args})
    assert group.system == "resnet18_gray, here with --epochs 40"
    first = {"args": {"recipe": "two_phase_1", "weights": "none", "epochs": 15}}
    groups = groups_of(two_phase_1=first, mine={"args": {"init": "runs/two_phase_1/best.pth"} | args})
    assert groups[0].system == "resnet18_gray, two_phase_1 with --weights none, here with --epochs 40"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("E0_seed40", "E0"), ("two_phase", "two_phase"), ("two_phase_1_seed7", "two_phase_1"), ("E0_seed", "E0_seed"),
        ("E0_seed40_longer", "E0_seed40_longer"), ("reseed4", "reseed4"),
    ],
)  # fmt: skip
def test_group_of(name: str, group: str) -> None:
    assert study.group_of(name) == group


def test_groups_stand_in_the_order_of_the_documents_then_by_name() -> None:
    scrambled = "mixup_seed42 four_class E5_seed42 cb_focal_seed42 two_phase E2b_seed42 BEST E0_seed40"
    groups = groups_of(**{name: {} for name in scrambled.split()})
    names = [group.name for group in groups]
    assert names == ["E0", "E2b", "E5", "two_phase", "four_class", "BEST", "cb_focal", "mixup"]


def test_what_was_chosen_before_its_classes_were_weighted_says_so() -> None:
    weighted = {"args": {"drw_epoch": 3}}
    groups = groups_of(early={"epoch": 2} | weighted, late={"epoch": 3} | weighted, mean={"epoch": None} | weighted)
    said = {group.name: "chosen before its classes were weighted" in group.system for group in groups}
    assert said == {"early": True, "late": False, "mean": False}


def test_the_lowest_seed_stands_first() -> None:
    (group,) = groups_of(E0_seed100={}, E0_seed9={}, E0_seed40={})
    assert [run.seed for run in group.runs] == [9, 40, 100]
    (group,) = groups_of(E0={}, E0_seed5={}, E0_seed7={"args": {"seed": 3}})  # a setting goes before a name
    assert [(run.name, run.seed) for run in group.runs] == [("E0_seed7", 3), ("E0_seed5", 5), ("E0", None)]


def test_mean_and_sample_standard_deviation() -> None:
    # Deviations from 0.63 are -0.03, -0.01, 0.04; their squares add up to 0.0026, half of that is 0.0013.
    (group,) = groups_of(E0_seed40={"accuracy": 0.60}, E0_seed41={"accuracy": 0.62}, E0_seed42={"accuracy": 0.67})
    assert group.mean("accuracy") == pytest.approx(0.63, abs=1e-12)
    assert group.std("accuracy") == pytest.approx(0.0013**0.5, abs=1e-12)
    assert study.plus_minus(group, "accuracy") == "0.630 ± 0.036"


def test_a_single_seed_has_no_spread() -> None:
    (group,) = groups_of(E0_seed40={})
    assert (group.mean("accuracy"), group.std("accuracy")) == (0.5, None)
    assert study.plus_minus(group, "accuracy") == "0.500"


def test_a_score_that_one_seed_lacks_has_no_mean() -> None:
    (group,) = groups_of(E0_seed40={"f1_disgust": None}, E0_seed41={})
    assert (group.mean("f1_disgust"), group.std("f1_disgust")) == (None, None)
    assert (group.mean("never_written"), study.plus_minus(group, "never_written")) == (None, "–")


def test_what_a_group_is_called() -> None:
    groups = groups_of(
        E5_seed42={"args": {"recipe": "lightcnn"}},
        BEST_seed42={"args": {"recipe": "mixup"}},
        old_seed42={"model": "resnet18"},
    )
    assert [group.system for group in groups] == ["light CNN: balanced sampler", "light CNN: mixup", "resnet18"]


def test_earlier_phases_are_found_by_their_checkpoint() -> None:
    groups = groups_of(
        two_phase_1={"minutes": (2, 2, 2), "epoch": 3},
        two_phase={"minutes": (1, 4), "args": {"init": "runs/two_phase_1/best.pth"}},
        two_phase_as_written={"args": {"init": "D:\\my\\runs\\two_phase_1\\best.pth"}},
        alone_1={"args": {"init": "runs/somebody_elses/best.pth"}},
        shipped={"args": {"init": "runs/two_phase_1/best_int8.onnx"}},
        alone_2={"args": {"init": "runs/two_phase_1/last.pth"}},
        alone_3={"args": {"init": "runs/alone_3/best.pth"}},
        alone_4={"args": {"init": None}},
        multitask={"args": {"vggface2_ckpt": "runs/alone_4/best.pth"}},
        resnet50={"args": {"vggface2_ckpt": "weight/resnet50_vggface2.pth"}},
        student={"args": {"init": "weights/shipped.onnx"}},
        first={"args": {"exp": "first_seed40"}},
        second={"args": {"init": "runs/first_seed40/best.pth"}},
        third={"args": {"init": "weights/second.onnx"}, "run": {"init_exp": "first_seed40"}},  # what lay there then
    )
    phases = {run.name: [phase.name for phase in run.phases] for group in groups for run in group.runs}
    assert phases.pop("two_phase") == ["two_phase_1", "two_phase"]
    assert phases.pop("two_phase_as_written") == ["two_phase_1", "two_phase_as_written"]
    assert phases.pop("shipped") == ["two_phase_1", "shipped"]
    assert phases.pop("multitask") == ["alone_4", "multitask"]
    assert phases.pop("student") == ["two_phase_1", "shipped", "student"]
    assert phases.pop("second") == ["first", "second"]
    assert phases.pop("third") == ["first", "third"]
    alone = ("two_phase_1", "alone_1", "alone_2", "alone_3", "alone_4", "resnet50", "first")
    assert phases == {name: [name] for name in alone}
    by_name = {group.name: group for group in groups}
    assert by_name["two_phase"].runs[0].minutes == 11
    assert study.chosen_epochs(by_name["two_phase"]) == "3 of 3 + 2 of 2"
    assert "two_phase_1" not in [group.name for group in study.systems(groups)]
    assert len(study.systems(groups)) == len(groups) - 4


def test_an_ensemble_counts_the_earlier_phases_of_its_members_once() -> None:
    members = [{"name": "a_seed1", "epoch": 1, "epochs": 1}, {"name": "b", "epoch": 2, "epochs": 1}, {"name": "gone"}]
    groups = groups_of(
        start={"minutes": (8, 8)},
        other={"minutes": (4,), "args": {"init": "runs/start/best.pth"}},
        a={"minutes": (1,), "args": {"exp": "a_seed1", "init": "runs/start/best.pth"}},
        b={"minutes": (2,), "args": {"init": "runs/other/best.pth"}},
        ensemble={"minutes": (1, 2), "members": 2, "run": {"members": members}},
    )
    run = next(group.runs[0] for group in groups if group.name == "ensemble")
    assert [phase.name for phase in run.phases] == ["start", "other", "ensemble"]
    assert run.minutes == 16 + 4 + 3


def test_a_documented_system_stays_one_where_another_starts_from_it() -> None:
    start = {"args": {"init": "runs/E0_seed42/best.pth"}}
    assert [group.name for group in study.systems(groups_of(E0_seed42={}, longer=start))] == ["E0", "longer"]
    circle = groups_of(a={"args": {"init": "runs/b/best.pth"}}, b={"args": {"init": "runs/a/best.pth"}})
    assert [len(group.runs[0].phases) for group in circle] == [2, 2]


def test_chosen_epochs() -> None:
    (group,) = groups_of(E0_seed1={"epoch": 2}, E0_seed2={"epoch": 1}, E0_seed3={"epoch": 2})
    assert study.chosen_epochs(group) == "2, 1, 2 of 2"
    (group,) = groups_of(E0_seed1={"epoch": 2}, E0_seed2={"epoch": 3, "minutes": (1, 1, 1)})
    assert study.chosen_epochs(group) == "2 of 2; 3 of 3"


def test_variants_are_those_of_one_network_classes_and_split() -> None:
    groups = groups_of(
        E0_seed42={}, mixup_seed42={}, val_seed42={"split": "val"}, demo={"label_set": "affectnet8"},
        resnet18={"model": "resnet18"}, mixed_seed1={}, mixed_seed2={"model": "resnet18"}, ensemble={"members": 3},
        E0_flipped={"views": 2}, strangers={"split_id": "other pictures"},
    )  # fmt: skip
    assert [group.name for group in study.variants(groups)] == ["E0", "mixup"]


# Tables


def test_study_csv() -> None:
    groups = groups_of(
        E0_seed41={"accuracy": 0.6, "macro_f1": 0.5, "f1_angry": 0.3, "minutes": (1, 2)},
        E0_seed40={"f1_angry": 0.2},
        mixup={"f1_disgust": None, "args": {"recipe": "mixup"}, "minutes": (0.5,)},
    )
    assert study.study_csv(groups).split("\n") == [
        "group,system,seeds,runs,accuracy_mean,accuracy_std,macro_f1_mean,macro_f1_std,f1_angry_mean,f1_disgust_mean,"
        "f1_fear_mean,f1_happy_mean,f1_sad_mean,f1_surprise_mean,f1_neutral_mean,epochs,minutes_mean",
        'E0,"light CNN: softmax, cross-entropy",40;41,2,0.550000,0.070711,0.450000,0.070711,0.250000,0.200000,'
        "0.300000,0.400000,0.500000,0.600000,0.700000,2,2.50",
        "mixup,light CNN: mixup,,1,0.500000,,0.400000,,0.100000,,0.300000,0.400000,0.500000,0.600000,0.700000,1,0.50",
        "",
    ]


def test_study_tex() -> None:
    groups = groups_of(
        E0_seed40={"macro_f1": 0.5}, E0_seed41={"macro_f1": 0.4, "accuracy": 0.7}, E1_seed40={"accuracy": 0.60004},
        my_best={"macro_f1": None, "f1_disgust": None, "f1_fear": 0.31},
    )  # fmt: skip
    assert study.study_tex(groups).split("\n") == [
        "% Generated by: python report.py (from results/ alone; do not edit). Needs \\usepackage{booktabs}.",
        "% FER2013 PrivateTest; mean and sample standard deviation over the runs (seeds), the best of each column bold.",
        "\\begin{tabular}{lccccc}",
        "\\toprule",
        "Variant & Runs & Accuracy & Macro-F1 & Disgust F1 & Fear F1 \\\\",
        "\\midrule",
        "E0 & 2 & \\textbf{0.600 $\\pm$ 0.141} & \\textbf{0.450 $\\pm$ 0.071} & \\textbf{0.200} & 0.300 \\\\ "
        "% light CNN: softmax, cross-entropy; seeds: 40, 41",
        "E1 & 1 & \\textbf{0.600} & 0.400 & \\textbf{0.200} & 0.300 \\\\ % light CNN: ArcFace, cross-entropy; seeds: 40",
        "\\midrule",
        "my\\_best & 1 & 0.500 & -- & -- & \\textbf{0.310} \\\\ % lightcnn; seeds: ?",
        "\\bottomrule",
        "\\end{tabular}",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("ldam_drw", r"ldam\_drw"),
        ("50% & #1 $x {y}", r"50\% \& \#1 \$x \{y\}"),
        ("a\\b", r"a\textbackslash{}b"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
    ],
)
def test_latex(text: str, escaped: str) -> None:
    assert study.latex(text) == escaped


# Pictures


def test_class_shares() -> None:
    assert study.class_shares(groups_of(E0={})) == {}
    counts = np.diag([10, 0, 8, 40, 10, 10, 20])
    counts[1] = 0, 1, 0, 1, 0, 0, 0
    shares = study.class_shares(groups_of(E0={}, E1={"confusion": counts.tolist()}))
    assert list(shares.values()) == [0.1, 0.02, 0.08, 0.4, 0.1, 0.1, 0.2] and tuple(shares) == NAMES


def test_best_variant() -> None:
    assert study.best_variant([]) is None
    assert study.best_variant(groups_of(E0={"macro_f1": None})) is None
    groups = groups_of(
        E0={}, E1={"macro_f1": 0.6}, E2={"macro_f1": 0.6}, E3_seed1={"macro_f1": 0.9}, E3_seed2={"macro_f1": 0.2}
    )
    best = study.best_variant(groups)
    assert best is not None and best.name == "E1"


def confused(hits: int) -> dict[str, Any]:
    """Confusions of ten rows a class, of which so many are right and the others taken for the class before."""
    counts = np.eye(7, dtype=int) * hits + np.roll(np.eye(7, dtype=int), -1, axis=1) * (10 - hits)
    return {"confusion": counts.tolist()}


def cells(figure: Figure) -> list[tuple[str, str]]:
    """The percent shown for angry taken for angry, by the first line of each panel's title."""
    return [(axis.get_title().split("\n")[0], axis.texts[0].get_text()) for axis in figure.axes]


def test_confusions_are_those_of_e0_e5_and_the_best(drawn_figures: list[Figure]) -> None:
    best = confused(9) | {"macro_f1": 0.9}
    groups = groups_of(
        E0_seed1=confused(2), E0_seed2=confused(4), E0_seed3={}, E1=confused(1), E5=confused(6), mixup=best
    )  # fmt: skip
    assert study.plot_study_confusion(groups, Path("not_written.png"))
    assert cells(drawn_figures[0]) == [("E0, 2 of 3 runs", "30"), ("E5, runs: 1", "60"), ("mixup (best), runs: 1", "90")]
    assert [label.get_text() for label in drawn_figures[0].axes[0].get_yticklabels()] == list(NAMES)


def test_confusions_where_e5_is_best_or_lacking(drawn_figures: list[Figure]) -> None:
    assert study.plot_study_confusion(groups_of(E0=confused(2), E5=confused(5) | {"macro_f1": 0.9}), Path("not_written.png"))
    assert study.plot_study_confusion(groups_of(E1=confused(1)), Path("not_written.png"))
    assert [cells(figure) for figure in drawn_figures] == [
        [("E0, runs: 1", "20"), ("E5 (best), runs: 1", "50")],
        [("E1 (best), runs: 1", "10")],
    ]


def test_no_counts_no_confusions(drawn_figures: list[Figure]) -> None:
    assert not study.plot_study_confusion(groups_of(E0={}, E5={}), Path("not_written.png"))
    assert not study.plot_study_confusion([], Path("not_written.png"))
    assert drawn_figures == []


def test_bars_of_every_class(drawn_figures: list[Figure]) -> None:
    rows = {"confusion": np.diag([1 if label == "disgust" else 33 for label in NAMES]).tolist()}  # 1 of 199: 0.5%
    groups = groups_of(
        E0_seed1={"f1_disgust": 0.3, **rows},
        E0_seed2={"f1_disgust": 0.5},
        E1={"f1_disgust": 0.7},
        mixup={"f1_disgust": None},
    )
    study.plot_study_f1(groups, Path("not_written.png"))
    axes = {axis.get_title(): axis for axis in drawn_figures[0].axes}
    minority = "disgust (minority: 0.5% of rows)"
    assert list(axes) == ["macro F1", "angry", minority, *NAMES[2:]]
    disgust: Any = axes[minority]
    assert [bar.get_width() for bar in disgust.patches] == pytest.approx([0.4, 0.7, 0.0])
    assert [to_hex(bar.get_facecolor()) for bar in disgust.patches] == ["#0072b2", "#0072b2", "#e69f00"]
    assert [(text.get_text(), text.get_fontweight()) for text in disgust.texts] == [
        ("0.400", "normal"),
        ("0.700", "bold"),
        ("undefined", "normal"),
    ]
    (whisker,) = [line.get_segments()[0] for line in disgust.collections]  # of E0 alone: the others have one seed
    assert whisker[:, 0] == pytest.approx([0.4 - 0.02**0.5, 0.4 + 0.02**0.5])
    assert [label.get_text() for label in disgust.get_yticklabels()] == ["E0 (2)", "E1 (1)", "mixup (1)"]
    assert to_hex(disgust.get_facecolor()) == study.MARKED.lower()
    assert to_hex(axes["angry"].get_facecolor()) == "#ffffff"
    legend = [text.get_text() for text in drawn_figures[0].legends[0].get_texts()]
    assert legend == ["in the document", "beyond it", "E0"]


def test_without_supports_no_class_is_marked(drawn_figures: list[Figure]) -> None:
    study.plot_study_f1(groups_of(E1={}), Path("not_written.png"))
    assert [axis.get_title() for axis in drawn_figures[0].axes] == ["macro F1", *NAMES]
    assert [text.get_text() for text in drawn_figures[0].legends[0].get_texts()] == ["in the document"]
