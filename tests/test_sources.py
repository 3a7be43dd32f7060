"""Which pictures are meant: order, patterns, lists, addresses with their limits, shards."""

import http.client
import http.server
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faces import ImageError

import cv2
import numpy as np
import pytest

import sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("10.png", "9.jpg", "x/2.PNG", "x/1.gif", "x/y/3.bmp", "z/readme.md", "[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(folder: Path, *items: str, lines: list[str] | None = None) -> list[str]:
    """What `expand` gives, relative to the folder."""
    found = sources.expand([str(folder / item) if item != "-" else item for item in items], lines)
    return [Path(name).relative_to(folder).as_posix() for name in found]


def test_folders_are_walked_by_name(folder: Path) -> None:
    assert names(folder, ".") == ["10.png", "9.jpg", "[1].png", "x/1.gif", "x/2.PNG", "x/y/3.bmp"]
    assert names(folder, "x", "9.jpg", "x/y") == ["x/1.gif", "x/2.PNG", "x/y/3.bmp", "9.jpg", "x/y/3.bmp"]
    assert names(folder, "z", "nothing") == ["z", "nothing"]  # somebody has to say that there is nothing


def test_what_cameras_and_browsers_write_is_found(folder: Path) -> None:
    for name in ("a.jfif", "b.HEIC", "c.3gp", "d.ts"):  # the last a program, more often than a video
        (folder / "z" / name).touch()
    assert names(folder, "z") == ["z/a.jfif", "z/b.HEIC", "z/c.3gp"]


def test_the_folder_that_is_written_into_is_not_walked(folder: Path) -> None:
    found = list(sources.expand([str(folder)], leave_out=folder / "x" / "y"))
    assert [Path(name).name for name in found] == ["10.png", "9.jpg", "[1].png", "1.gif", "2.PNG"]


def test_patterns(folder: Path) -> None:
    assert names(folder, "*.png") == ["10.png", "[1].png"]  # and folder.png, in which there is nothing
    assert names(folder, "**/*.bmp") == ["x/y/3.bmp"]
    assert names(folder, "[xz]") == names(folder, "x*", "z/readme.m")[:3] == ["x/1.gif", "x/2.PNG", "x/y/3.bmp"]
    assert names(folder, "**") == names(folder, ".")  # each once
    assert names(folder, "[1].png") == ["[1].png"]  # a file of that name is no pattern
    assert names(folder, "*.tiff") == ["*.tiff"]


def test_patterns_find_nothing_that_was_written(folder: Path) -> None:
    def found(pattern: str) -> list[str]:
        return [Path(name).name for name in sources.expand([str(folder / pattern)], leave_out=folder / "x")]

    assert found("*") == ["10.png", "9.jpg", "[1].png"]
    assert found("**/*.[bg]*") == [(folder / "**/*.[bg]*").name]  # nothing else is there
    assert found("x/*.gif") == ["1.gif"]  # is meant


def test_videos_are_found_as_pictures_are(folder: Path) -> None:
    for name in ("a.mp4", "x/b.MOV"):
        (folder / name).touch()
    (folder / "c.mp4").mkdir()
    (folder / "c.mp4" / "in.png").touch()
    assert names(folder, ".")[3:6] == ["a.mp4", "c.mp4/in.png", "x/1.gif"] and "x/b.MOV" in names(folder, "x")
    assert names(folder, "*.mp4") == ["a.mp4", "c.mp4/in.png"]
    found = enumerate(["1.png", str(folder / "a.mp4"), str(folder / "c.mp4"), "http://host/a.MP4?b=1.png", "2.png"])
    videos: list[tuple[int, str]] = []
    assert [number for number, _ in sources.without_videos(found, videos)] == [0, 2, 4]
    assert [number for number, _ in videos] == [1, 3]
    endless = sources.without_videos(((number, "a.png") for number in itertools.count()), [])
    assert next(endless) == (0, "a.png")  # one at a time


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "a\0*", "a\0/*.png", "a\0.mp4"])
def test_names_that_no_file_system_takes_are_passed_on(name: str) -> None:
    assert list(sources.expand([name])) == [name]
    assert sources.is_video(name) is name.endswith(".mp4")


def test_a_folder_that_may_not_be_opened_stands_for_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "y":
            raise PermissionError
        return real(path)

    monkeypatch.setattr(sources.os, "scandir", scandir)
    assert names(folder, "x") == ["x/1.gif", "x/2.PNG", "x/y"]
    monkeypatch.setattr(sources.os, "access", lambda path, mode: Path(path).name != "y")  # root may open everything
    for name, error in (("x/y", "unreadable"), ("x", "a folder, not a picture")):
        with pytest.raises(ImageError, match=error):
            sources.read(str(folder / name))


def test_lists_on_standard_input(folder: Path) -> None:
    lines = [f"{folder / '9.jpg'}\n", "\n", f"{folder / 'x y'}\r\n", str(folder / "10.png")]
    assert names(folder, "x/y", "-", lines=lines) == ["x/y/3.bmp", "9.jpg", "x y", "10.png"]
    assert names(folder, "-", lines=["\ufeff" + lines[0], lines[3]]) == ["9.jpg", "10.png"]


def test_links_that_lead_round_are_not_followed(folder: Path) -> None:
    try:
        (folder / "x" / "round").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert len(names(folder, ".")) == 6


def test_shards_and_numbers() -> None:
    everything = list("abcdefghij")
    for parts in (1, 3, 4):
        found = [list(sources.numbered(everything, (part, parts))) for part in range(parts)]
        assert sorted(pair for part in found for pair in part) == list(enumerate(everything))
    assert list(sources.numbered(everything, (1, 3))) == [(1, "b"), (4, "e"), (7, "h")]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(sources.SourceError, match="PART/PARTS"):
        sources.shard_of(text)


def test_shards_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert sources.shard_of(None) == (0, 1) and sources.shard_of("2/4") == (1, 4)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert sources.shard_of(None) == (2, 4) and sources.shard_of("1/1") == (0, 1)
    for rank in ("nonsense", "4", "-1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(sources.SourceError, match=f"RANK={rank} is no part of WORLD_SIZE=4"):
            sources.shard_of(None)
    monkeypatch.delenv("WORLD_SIZE")  # a RANK of something else
    assert sources.shard_of(None) == (0, 1)


PICTURE = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A web server on this machine with a picture, a page, a large file and nothing."""
    contents = {
        "/a.png": cv2.imencode(".png", PICTURE[:, :, ::-1])[1].tobytes(),
        "/%C3%A4%20b.png?c=%20d": cv2.imencode(".png", PICTURE)[1].tobytes(),
        "/page": b"<html>no picture</html>",
        "/large": b"\xff" * 3000,
        "/empty": b"",
        "/slow": b"1",
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for _ in range(20 if self.path == "/slow_headers" else 0):
                self.wfile.write(b"HTTP/1.0 200 OK\r\n" if _ == 0 else b"A: b\r\n")
                time.sleep(0.1)
            content = contents.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.end_headers()
            self.wfile.write(content or b"")
            for _ in range(20 if self.path == "/slow" else 0):
                self.wfile.write(b"1")
                self.wfile.flush()
                time.sleep(0.05)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_addresses(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(sources.expand([f"{server}/a.png?x=[1]"])) == [f"{server}/a.png?x=[1]"]
    assert np.array_equal(sources.read(f"{server}/a.png"), PICTURE)
    assert np.array_equal(sources.read(f"{server}/ä b.png?c=%20d"), PICTURE[:, :, ::-1])
    assert sources.in_ascii("https://bücher.example:80/a?b=%C3%A4&c=[1]#d") == (
        "https://xn--bcher-kva.example:80/a?b=%C3%A4&c=[1]#d"
    )
    for path, reason in (("/page", "cannot be decoded"), ("/gone", "the server says 404"), ("/empty", "empty")):
        with pytest.raises(ImageError, match=reason):
            sources.read(server + path)
    monkeypatch.setattr(sources, "ADDRESS_MAX_BYTES", 2000)
    with pytest.raises(ImageError, match="larger than"):
        sources.read(f"{server}/large")
    monkeypatch.setattr(sources, "ADDRESS_MAX_BYTES", 10_000)
    monkeypatch.setattr(sources, "ADDRESS_WAIT_S", 0.2)
    with pytest.raises(ImageError, match="cannot be fetched"):
        sources.read(f"{server}/slow")
    with pytest.raises(ImageError, match="cannot be fetched"):
        sources.read("http://127.0.0.1:9/a.png")
    with pytest.raises(ImageError, match="cannot be fetched"):
        sources.read("http://no space/a.png")
    with pytest.raises(ImageError, match="cannot be fetched"):
        sources.read("http://[no/a.png")
    begin = time.monotonic()
    with pytest.raises(ImageError, match=r"cannot be fetched within 0\.2 seconds"):
        sources.read(f"{server}/slow_headers")
    assert time.monotonic() - begin < 1.5

    def garbage(address: str) -> bytes:
        raise http.client.BadStatusLine("a\r\nb\n")

    monkeypatch.setattr(sources, "fetch_from_web", garbage)
    with pytest.raises(ImageError) as caught:
        sources.read(f"{server}/a.png")
    assert "\n" not in str(caught.value)


def test_schemes(server: str) -> None:
    assert np.array_equal(sources.read(server.replace("http", "HTTP") + "/a.png"), PICTURE)
    for address in ("ftp://host/a.png", "file:///etc/a.png", "S3://host/[a].png"):
        assert list(sources.expand([address])) == [address]
        with pytest.raises(ImageError, match=r"^only http and https addresses can be read$"):
            sources.read(address)


def test_google_drive_is_gdowns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ImageError, match="pip install gdown"):
        sources.read("https://drive.google.com/file/d/1/view")

    named = []

    class Gdown:
        @staticmethod
        def download(  # gdown 6.5.1; up to 5 there was also `fuzzy`
            url: str | None = None, output: str | None = None, quiet: bool = False, proxy: str | None = None,
            speed: float | None = None, use_cookies: bool = True, verify: bool | str = True, id: str | None = None,
            resume: bool = False, format: str | None = None, user_agent: str | None = None,
            log_messages: dict[str, str] | None = None, progress: object = None, skip_download: bool = False,
            cookies_file: str | None = None, hasher: object = None, timeout: float | None = None, retries: int = 0,
            cancel: object = None,
        ) -> None:  # fmt: skip
            assert url is None and quiet and output is not None
            named.append(id)
            Path(output).write_bytes(cv2.imencode(".png", PICTURE[:, :, ::-1])[1].tobytes())

    monkeypatch.setitem(sys.modules, "gdown", Gdown)
    for address in (
        "https://drive.google.com/file/d/1a-B_c/view?usp=sharing",
        "https://drive.google.com/uc?export=download&id=1a-B_c",
        "HTTPS://drive.usercontent.google.com/download?id=1a-B_c&confirm=t",
    ):
        assert np.array_equal(sources.read(address), PICTURE)
    assert named == ["1a-B_c"] * 3
    with pytest.raises(ImageError, match="names no file of Google Drive"):
        sources.read("https://drive.google.com/drive/folders/1a")
    with pytest.raises(ImageError, match="cannot be fetched"):  # not Drive's own host
        sources.read("http://127.0.0.1:9/drive.google.com/d/1")
