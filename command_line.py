"""The parser of all scripts: their help is mostly their docstring; what is wrong with a call is said in one line, status 2.

python -c "import command_line; command_line.Parser('what it does').parse_args(['--help'])"
"""

import argparse
import io
import sys
from typing import Any, NoReturn

ADVICE: dict[type, str] = {
    PermissionError: " – look at its permissions",
    FileExistsError: " – it is a file, where a folder is wanted",
    NotADirectoryError: " – a file stands where a folder is wanted",
}


def line_of(error: BaseException) -> str:
    """What an exception says, as a line; of the operating system's which file, what is wrong, and what to do."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}{ADVICE.get(type(error), '')}"


class Parser(argparse.ArgumentParser):
    """argparse's parser, with a description that stays as it is written."""

    def __init__(self, description: str | None = None, **options: Any) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; from here on a console that cannot show a letter shows a question mark."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the program: one line, without the usage, which is long."""
        self.exit(2, f"{self.prog}: {message} – see --help\n")
