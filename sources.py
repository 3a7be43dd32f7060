"""Where pictures and videos come from: files, folders, patterns, a list on standard input, addresses; one at a time, in a
fixed order.

python -c "import sources; print(*sources.expand(['photos', 'more/*.png']), sep='\\n')"
"""

import glob
import itertools
import os
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from faces import IMAGE_EXTENSIONS, ImageError, decode_image, read_image

import numpy as np

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
ADDRESS_MAX_BYTES, ADDRESS_WAIT_S = 50_000_000, 30
GOOGLE_DRIVE = ("drive.google.com", "drive.usercontent.google.com")
DRIVE_FILE = re.compile(r"/d/([\w-]+)|[?&]id=([\w-]+)")  # both ways in which its links name a file
VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".flv", ".ogv")
# What a folder is searched for: also what cameras write and this machine's OpenCV may not read, so that somebody says so.
READABLE = (*IMAGE_EXTENSIONS, ".gif", ".jfif", ".jpe", ".avif", ".heic", ".heif")


class SourceError(Exception):
    """Pictures, a video or a camera that cannot be had; the message is one line and says what to do next."""


def is_address(name: str) -> bool:
    """Whether a name is an address, of whatever scheme."""
    return ADDRESS.match(name) is not None


def is_folder(name: str) -> bool:
    """Whether a name is a folder's; one that no file system takes (too long, with a NUL) is not."""
    return os.path.isdir(name)  # noqa: PTH112 (Path.is_dir raises OSError or ValueError for such a name)


def is_pattern(name: str) -> bool:
    """Whether a name stands for those that match it: with *, ? or [], and no file's or folder's own."""
    return glob.has_magic(name) and "\0" not in name and not is_address(name) and not os.path.exists(name)  # noqa: PTH110


def is_video(name: str) -> bool:
    """Whether a name is a video's, by its end; a folder may be called a.mp4, too."""
    path = re.split(r"[?#]", name)[0] if is_address(name) else name
    return path.lower().endswith(VIDEO_EXTENSIONS) and not is_folder(name)


def expand(items: Iterable[str], lines: Iterable[str] | None = None, *, leave_out: Path | None = None) -> Iterator[str]:
    """The names of pictures and videos, in order: files and addresses as they are, folders with all that is below them,
    patterns (*, ?, [], ** for any depth) by name, and for "-" the lines of standard input (`lines`).

    A pattern or folder with neither stands for itself, so that somebody says so. The folder `leave_out`, where pictures are
    written, is not walked, and no pattern finds what lies in it, unless folder or pattern begin there.
    """
    leave_out = None if leave_out is None else leave_out.resolve()
    for item in items:
        if item == "-":
            for number, text in enumerate(sys.stdin if lines is None else lines):
                name = text.rstrip("\r\n").removeprefix("" if number else "\ufeff")  # Windows' byte-order mark
                if name:
                    yield name
            continue
        found: Iterator[str] = iter(())
        if is_folder(item):
            found = walk(item, leave_out)
        elif is_pattern(item):
            found = matches(item, leave_out)
        first = next(found, None)
        yield item if first is None else first
        yield from found


def matches(pattern: str, leave_out: Path | None = None) -> Iterator[str]:
    """The files that match a pattern, by name, and what is in the folders that do, each once."""
    begin = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)).resolve()
    if leave_out is not None and begin.is_relative_to(leave_out):
        leave_out = None
    walked: set[Path] = set()
    for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        path = Path(name)
        written = leave_out is not None and path.resolve().is_relative_to(leave_out)
        if written or not walked.isdisjoint(path.parents):
            continue
        if is_folder(name):
            walked.add(path)
            yield from walk(name, leave_out)
        else:
            yield name


def walk(folder: str, leave_out: Path | None = None) -> Iterator[str]:
    """The pictures and videos of a folder and, after them, of the folders in it but `leave_out`, each by name; links to
    folders are not followed. A folder that may not be opened stands for itself."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.name.lower().endswith((*READABLE, *VIDEO_EXTENSIONS)) and not entry.name.startswith("."):
                    files.append(entry.name)
    except OSError:
        yield folder
        return
    files.sort()
    folders.sort()
    for name in files:
        yield os.path.join(folder, name)  # noqa: PTH118
    for name in folders:
        below = os.path.join(folder, name)  # noqa: PTH118
        if leave_out is None or Path(below).resolve() != leave_out:
            yield from walk(below, leave_out)


def read(name: str) -> np.ndarray:
    """A picture by its file name or address, RGB uint8 (H, W, 3). Raises ImageError."""
    if is_folder(name):  # what is in folders was named one by one, but for those on standard input
        may_be_read = os.access(name, os.R_OK | os.X_OK)
        raise ImageError("a folder, not a picture" if may_be_read else "unreadable")
    if not is_address(name):
        return read_image(name)
    if not name.lower().startswith(("http://", "https://")):
        raise ImageError("only http and https addresses can be read")
    return decode_image(np.frombuffer(fetch(name), np.uint8))


def fetch(address: str) -> bytes:
    """What lies at an address, at most ADDRESS_MAX_BYTES, within ADDRESS_WAIT_S; Google Drive's through gdown. Raises
    ImageError."""
    import http.client  # 8 MB, with what it draws in, that pictures on this machine do not need
    import urllib.error
    import urllib.parse

    done: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            drive = urllib.parse.urlsplit(address).hostname in GOOGLE_DRIVE
            done.put(fetch_from_drive(address) if drive else fetch_from_web(address))
        except urllib.error.HTTPError as error:
            done.put(ImageError(f"the server says {error.code} {' '.join(str(error.reason).split())}"))
        except (OSError, ValueError, http.client.HTTPException) as error:
            done.put(ImageError(f"cannot be fetched ({' '.join(str(getattr(error, 'reason', error)).split())})"))
        except Exception as error:
            done.put(error)

    # In a thread, which may be left behind: a server that sends a byte of its headers now and then is never late.
    threading.Thread(target=work, daemon=True).start()
    try:
        content = done.get(timeout=ADDRESS_WAIT_S)
    except queue.Empty:
        raise ImageError(f"cannot be fetched within {ADDRESS_WAIT_S} seconds") from None
    if isinstance(content, Exception):
        raise content
    if not content:
        raise ImageError("empty")
    return content


def fetch_from_web(address: str) -> bytes:
    """What lies at an address. Raises ImageError where it is too large, else what urllib raises."""
    import urllib.request

    request = urllib.request.Request(in_ascii(address), headers={"User-Agent": "fer-predict"})
    content, until = b"", time.monotonic() + ADDRESS_WAIT_S
    with urllib.request.urlopen(request, timeout=ADDRESS_WAIT_S) as answer:
        while part := answer.read1(1 << 20):
            content += part
            if len(content) > ADDRESS_MAX_BYTES:
                raise ImageError(f"larger than {ADDRESS_MAX_BYTES // 1_000_000} MB")
            if time.monotonic() > until:
                raise TimeoutError("too slow")
    return content


def in_ascii(address: str) -> str:
    """An address as servers want it, its spaces and letters beyond ASCII encoded as browsers do. Raises ValueError."""
    import urllib.parse

    parts = urllib.parse.urlsplit(address)
    place = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    return urllib.parse.quote(parts._replace(netloc=place).geturl(), safe="%/:?#[]@!$&'()*+,;=~")


def fetch_from_drive(address: str) -> bytes:
    """A file of Google Drive, whose pages only gdown knows how to get past. Raises ImageError."""
    try:
        import gdown
    except ModuleNotFoundError as error:
        raise ImageError("Google Drive needs gdown: pip install gdown") from error
    named = DRIVE_FILE.search(address)
    if named is None:
        raise ImageError("names no file of Google Drive – its links have /d/… or id=…")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "picture"
        try:
            gdown.download(id=named[1] or named[2], output=str(target), quiet=True)
        except Exception as error:  # gdown raises kinds of its own
            raise ImageError(f"cannot be fetched ({type(error).__name__})") from error
        if not target.is_file() or target.stat().st_size > ADDRESS_MAX_BYTES:
            raise ImageError(f"cannot be fetched, or is larger than {ADDRESS_MAX_BYTES // 1_000_000} MB")
        return target.read_bytes()


def shard_of(text: str | None) -> tuple[int, int]:
    """Which part of how many a machine answers: "2/4" is (1, 4), counted from 0. Without text, torchrun's RANK and
    WORLD_SIZE where both are set, else (0, 1). Raises SourceError.
    """
    if text is None:
        rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if not (rank and size):
            return 0, 1
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise SourceError(f"RANK={rank} is no part of WORLD_SIZE={size} – unset both, or give --shard 1/1")
        return int(rank), int(size)
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise SourceError(f"--shard is PART/PARTS, 1/4 to 4/4 for four machines, not {text!r}")
    return int(part) - 1, int(parts)


def numbered(names: Iterable[str], shard: tuple[int, int]) -> Iterator[tuple[int, str]]:
    """The names of a shard with their numbers among all."""
    part, parts = shard
    return itertools.islice(enumerate(names), part, None, parts)


def without_videos(names: Iterable[tuple[int, str]], videos: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The pictures among numbered names; the videos, which are few, are put into `videos` in passing."""
    for number, name in names:
        if is_video(name):
            videos.append((number, name))
        else:
            yield number, name
