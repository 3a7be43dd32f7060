"""The Makefile's verbs of several steps, with an interpreter that notes how it is called and leaves the files behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")

# Trains, scores and indexes by leaving the files that these leave; the training that STOPS names is interrupted.
PLAYED = f"""#!{sys.executable}
import os, sys
from pathlib import Path

with open("calls.txt", "a") as file:
    print(*sys.argv[1:], file=file)
script, first = Path(sys.argv[1]).name, Path((sys.argv + ["."])[2])
flags = dict(zip(sys.argv[2:], sys.argv[3:]))
leave = {{"metadata_parallel.py": ["metadata_train.parquet", "metadata_val.parquet"]}}.get(script, [])
if script == "train.py":
    run = Path("runs") / flags["--exp"] if "--exp" in flags else Path(flags["--resume"]).parent
    stops = run.name == os.environ.get("STOPS")
    scored = [] if "--no-score_test" in sys.argv else ["metrics.json"]
    leave = [run / name for name in ["last.pth", "best.pth"] + ([] if stops else ["training_history.png", *scored])]
elif script == "evaluate.py":
    leave = [Path(flags.get("--out", first.parent if first.suffix else first)) / "metrics.json"]
for path in map(Path, leave):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
sys.exit(130 if script == "train.py" and stops else 0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the Makefile and the played interpreter."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PLAYED, encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()
    return tmp_path


def make(folder: Path, *words: str, status: int = 0, **environment: str) -> list[str]:
    """What the interpreter was called with, call by call."""
    (folder / "calls.txt").unlink(missing_ok=True)
    clean = {key: value for key, value in os.environ.items() if not re.match("MAKE|MFLAGS|FERPLUS", key)}
    done = subprocess.run(["make", *words], cwd=folder, env=clean | environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is (status != 0), done.stderr
    path = folder / "calls.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_what_another_verb_needs_is_indexed_with_the_votes(folder: Path) -> None:
    calls = make(folder, "train", "RECIPE=fernet_votes", "DATA=a.csv", "FERPLUS=b.csv", "EXP=x")
    assert calls == ["metadata_parallel.py --data a.csv --ferplus b.csv", "train.py --recipe fernet_votes --exp x"]
    assert make(folder, "train", "EXP=y") == ["train.py --model lightcnn --exp y"]  # what is there is not built again
    assert make(folder, "metadata", "DATA=a", FERPLUS="the tests'") == ["metadata_parallel.py --data a"]


def test_scoring_trains_what_was_named(folder: Path) -> None:
    (folder / "metadata_train.parquet").touch()
    assert make(folder, "eval", "RECIPE=E5") == [
        "train.py --recipe E5 --exp E5_seed42", "evaluate.py runs/E5_seed42/best.pth",
    ]  # fmt: skip
    assert make(folder, "eval") == ["evaluate.py runs/E5_seed42/best.pth"]  # the newest


def test_scoring_takes_the_newest_of_what_was_named(folder: Path) -> None:
    for age_s, name in enumerate(("two_phase", "E5_seed41", "E5_seed42", "E0_seed42")):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "best.pth").touch()
        os.utime(folder / "runs" / name / "best.pth", (1e9 - age_s, 1e9 - age_s))
    assert make(folder, "eval") == ["evaluate.py runs/two_phase/best.pth"]  # which has an index of its own
    assert make(folder, "eval", "RECIPE=E5") == ["evaluate.py runs/E5_seed41/best.pth"]
    assert make(folder, "train", "ARGS=--resume runs/two_phase/last.pth") == ["train.py --resume runs/two_phase/last.pth"]


def test_what_would_do_nothing_is_refused(folder: Path) -> None:
    for verb, word in (("study", "RECIPE=E5"), ("two-phase", "MODEL=resnet50"), ("ensemble", "EXP=x"), ("train", "SEEDS=1")):
        assert make(folder, verb, word, "DATA=a", "DATA1=b", status=2) == []
    for verb, word in (("ensemble", "ARGS=--seed 7"), ("student", "ARGS2=--seed 7"), ("ensemble", "ARGS2=--mixup 0.1")):
        assert make(folder, verb, word, status=2) == []
    (folder / "metadata_train.parquet").touch()
    assert make(folder, "train", "DATA=others", status=2) == []
    assert make(folder, "train", "EXP=a", DATA="of the environment") == ["train.py --model lightcnn --exp a"]
    indexed = ["metadata_parallel.py --data others", "train.py --model lightcnn --exp a"]
    assert make(folder, "metadata", "train", "DATA=others", "EXP=a") == indexed


def test_reading_a_picture_by_a_run_or_a_shipped_network(folder: Path) -> None:
    assert make(folder, "predict", status=2) == []
    assert make(folder, "predict", "IMG=a b.jpg") == ["predict.py a b.jpg"]
    assert make(folder, "predict", "IMG=a.jpg", "EXP=x") == ["predict.py a.jpg --model runs/x"]
    assert make(folder, "predict", "IMG=a.jpg", "MODEL=fernet") == ["predict.py a.jpg --model fernet"]


def test_members_of_an_ensemble_are_not_scored_on_the_test_split(folder: Path) -> None:
    (folder / "metadata_train.parquet").touch()
    views = "--tta ten_crop --calibrate"
    training = "train.py --recipe BEST --seed {0} --no-score_test --exp BEST_seed{0}"
    scoring = f"evaluate.py runs/BEST_seed40 runs/BEST_seed41 {views} --out runs/ensemble"
    calls = make(folder, "ensemble", "MODEL=BEST", "SEEDS=40 41")
    assert calls == [
        training.format(40), "evaluate.py runs/BEST_seed40 --split val",
        training.format(41), "evaluate.py runs/BEST_seed41 --split val", scoring,
    ]  # fmt: skip
    calls = make(folder, "student", "RECIPE=BEST", "SEEDS=40 41", "ARGS2=--mixup 0.1")
    assert calls == [
        scoring,
        "train.py --recipe BEST --seed 42 --no-score_test --teacher runs/BEST_seed40,runs/BEST_seed41 --mixup 0.1 "
        "--exp student_BEST_40-41_seed42",
        "evaluate.py runs/student_BEST_40-41_seed42 --split val",
        f"evaluate.py runs/student_BEST_40-41_seed42 {views} --out runs/student",
    ]


def test_members_of_another_network_than_the_recipe_s(folder: Path) -> None:
    (folder / "metadata_train.parquet").touch()
    first, *_ = make(folder, "ensemble", "RECIPE=E5", "MODEL=resnet18", "SEEDS=40")
    expected = "train.py --recipe E5 --model resnet18 --seed 40 --no-score_test --exp E5_resnet18_seed40"
    assert " ".join(first.split()) == expected


def test_what_was_interrupted_goes_on_even_if_it_was_looked_at(folder: Path) -> None:
    (folder / "metadata_train.parquet").touch()
    assert len(make(folder, "study", "STUDY=E0 E5", "SEEDS=40", status=2, STOPS="E5_seed40")) == 2
    make(folder, "eval", "EXP=E5_seed40")
    calls = make(folder, "study", "STUDY=E0 E5", "SEEDS=40")
    assert calls == ["train.py --resume runs/E5_seed40/last.pth", "report.py runs/E0_seed40 runs/E5_seed40"]
    assert make(folder, "study", "STUDY=E0 E5", "SEEDS=40") == ["report.py runs/E0_seed40 runs/E5_seed40"]


def test_both_phases_and_what_they_want(folder: Path) -> None:
    for words in ((), ("DATA=a",), ("DATA1=a",), ("DATA=a b", "DATA1=a b")):
        assert make(folder, "two-phase", *words, status=2) == []
    calls = make(folder, "two-phase", "DATA1=a", "DATA=b", "EXP=x", "ARGS=--img_size 48", "ARGS1=--lr 1")
    data = "--train_meta runs/{0}/data/metadata_train.parquet --val_meta runs/{0}/data/metadata_val.parquet"
    assert calls == [
        "metadata_parallel.py --data a --out runs/x_1/data",
        "metadata_parallel.py --data b --label_set fer7 --out runs/x/data",
        f"train.py --recipe two_phase_1 {data.format('x_1')} --img_size 48 --lr 1 --exp x_1",
        f"train.py --recipe resnet34_attention --init runs/x_1/best.pth {data.format('x')} --img_size 48 --exp x",
    ]


def test_an_environment_without_pip_gets_it(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\n[ "$2" = ensurepip ] && touch has_pip\n[ "$2" = pip ] && [ ! -f has_pip ] && exit 1\n'
        'echo "$*" >> calls.txt\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    calls = make(tmp_path, "install")
    assert calls == ["-m ensurepip", "-m pip install --disable-pip-version-check -r requirements.txt"]


def test_an_environment_that_cannot_be_made_is_not_left_in_part(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    python = tmp_path / "bin" / "python3"  # as Debian's without python3-venv
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\n[ "$2" = venv ] && mkdir -p .venv/bin && touch .venv/bin/python && exit 1\nexit 0\n', encoding="utf-8"
    )
    python.chmod(0o755)
    make(tmp_path, "install", status=2, PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    assert not (tmp_path / ".venv").exists()
