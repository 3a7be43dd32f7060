"""Where pictures come from: files, folders, patterns, a list on standard input, addresses; one at a time, in a fixed order.

python -c "import sources; print(*sources.expand(['photos', 'more/*.png']), sep='\\n')"
"""

import glob
import http.client
import itertools
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from faces import IMAGE_EXTENSIONS, ImageError, decode_image, read_image

ADDRESSES = ("http://", "https://")
ADDRESS_MAX_BYTES, ADDRESS_WAIT_S = 50_000_000, 30
GOOGLE_DRIVE = "drive.google.com"
VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
READABLE = (*IMAGE_EXTENSIONS, ".gif")


class SourceError(Exception):
    """Pictures, a video or a camera that cannot be had; the message is one line and says what to do next."""


def expand(items: Iterable[str], lines: Iterable[str] | None = None, *, leave_out: Path | None = None) -> Iterator[str]:
    """The names of pictures, in order: files and addresses as they are, folders with all that is below them, patterns
    (*, ?, [], ** for any depth) by name, and for "-" the lines of standard input (`lines`).

    A pattern or folder without a picture stands for itself, so that somebody says so. The folder `leave_out`, where pictures
    are written, is not walked.
    """
    for item in items:
        if item == "-":
            yield from (line for line in (text.rstrip("\r\n") for text in (sys.stdin if lines is None else lines)) if line)
            continue
        found: Iterator[str] = iter(())
        if not item.startswith(ADDRESSES):
            if Path(item).is_dir():
                found = walk(item, None if leave_out is None else leave_out.resolve())
            elif glob.has_magic(item) and not Path(item).exists():
                found = iter(sorted(glob.glob(item, recursive=True)))  # noqa: PTH207
        first = next(found, None)
        yield item if first is None else first
        yield from found


def walk(folder: str, leave_out: Path | None = None) -> Iterator[str]:
    """The pictures of a folder and, after them, of the folders in it but `leave_out`, each by name; links to folders are not
    followed."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.name.lower().endswith(READABLE) and not entry.name.startswith("."):
                    files.append(entry.name)
    except OSError:  # a folder that may not be opened has no pictures for us
        return
    for name in sorted(files):
        yield os.path.join(folder, name)  # noqa: PTH118
    for name in sorted(folders):
        below = os.path.join(folder, name)  # noqa: PTH118
        if leave_out is None or Path(below).resolve() != leave_out:
            yield from walk(below, leave_out)


def read(name: str) -> np.ndarray:
    """A picture by its file name or address, RGB uint8 (H, W, 3). Raises ImageError."""
    if not name.startswith(ADDRESSES):
        return read_image(name)
    return decode_image(np.frombuffer(fetch(name), np.uint8))


def fetch(address: str) -> bytes:
    """What lies at an address, at most ADDRESS_MAX_BYTES; Google Drive's through gdown. Raises ImageError."""
    if GOOGLE_DRIVE in address:
        return fetch_from_drive(address)
    request = urllib.request.Request(address, headers={"User-Agent": "fer-predict"})
    try:
        content, until = b"", time.monotonic() + ADDRESS_WAIT_S
        with urllib.request.urlopen(request, timeout=ADDRESS_WAIT_S) as answer:
            while part := answer.read1(1 << 20):
                content += part
                if len(content) > ADDRESS_MAX_BYTES:
                    raise ImageError(f"larger than {ADDRESS_MAX_BYTES // 1_000_000} MB")
                if time.monotonic() > until:  # a server that sends a byte now and then is never late
                    raise ImageError(f"cannot be fetched within {ADDRESS_WAIT_S} seconds")
    except urllib.error.HTTPError as error:
        raise ImageError(f"the server says {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(f"cannot be fetched ({getattr(error, 'reason', error)})") from error
    if not content:
        raise ImageError("empty")
    return content


def fetch_from_drive(address: str) -> bytes:
    """A file of Google Drive, whose pages only gdown knows how to get past. Raises ImageError."""
    try:
        import gdown
    except ModuleNotFoundError as error:
        raise ImageError("Google Drive needs gdown: pip install gdown") from error
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "picture"
        try:
            gdown.download(address, str(target), quiet=True, fuzzy=True)
        except Exception as error:  # gdown raises kinds of its own
            raise ImageError(f"cannot be fetched ({type(error).__name__})") from error
        if not target.is_file() or target.stat().st_size > ADDRESS_MAX_BYTES:
            raise ImageError(f"cannot be fetched, or is larger than {ADDRESS_MAX_BYTES // 1_000_000} MB")
        return target.read_bytes()


def shard_of(text: str | None) -> tuple[int, int]:
    """Which part of how many a machine answers: "2/4" is (1, 4), counted from 0. Without text, torchrun's RANK and
    WORLD_SIZE, else (0, 1). Raises SourceError.
    """
    if text is None:
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        return (int(rank), int(size)) if rank.isdecimal() and size.isdecimal() and int(rank) < int(size) else (0, 1)
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise SourceError(f"--shard is PART/PARTS, 1/4 to 4/4 for four machines, not {text!r}")
    return int(part) - 1, int(parts)


def numbered(names: Iterable[str], shard: tuple[int, int]) -> Iterator[tuple[int, str]]:
    """The names of a shard with their numbers among all."""
    part, parts = shard
    return itertools.islice(enumerate(names), part, None, parts)
