"""The parser that all scripts share, and errors as lines."""

import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Parser, line_of


def test_a_mistaken_call_is_answered_by_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("What it does.\n\n    python x.py", prog="x.py")
    parser.add_argument("--model", choices=["a", "b"])
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--model", "c"])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.startswith("x.py: argument --model: invalid choice: 'c' (choose from ")
    assert error.endswith(") – see --help\n") and error.count("\n") == 1
    assert "What it does.\n\n    python x.py\n" in parser.format_help()


@pytest.mark.parametrize("name", ["bench_metadata", "bench_photos", "bench_predict"])
def test_measurements_find_the_scripts(name: str) -> None:
    script = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name}.py"), done.stderr


def test_errors_of_the_system_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    for action, said in (
        (lambda: path.mkdir(), f"{path}: File exists – it is a file, where a folder is wanted"),
        (lambda: (path / "b").write_bytes(b""), f"{path / 'b'}: Not a directory – a file stands where a folder is wanted"),
        (lambda: (tmp_path / "c").read_bytes(), f"{tmp_path / 'c'}: No such file or directory"),
    ):
        with pytest.raises(OSError) as caught:
            action()
        assert line_of(caught.value) == said
    assert line_of(PermissionError(13, "Permission denied", "x")) == "x: Permission denied – look at its permissions"
    assert line_of(ValueError("as it is")) == "as it is" and line_of(OSError("no file")) == "no file"
