"""From a photo to network input: read an image safely, find the faces, crop them, and `Preprocess` a crop into an array.

Only numpy and OpenCV are used, so that prediction can start without torch.

    python -c "import faces; print(faces.detect_faces(faces.read_image('face.jpg')))"
"""

import math
import os
import stat
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

# OpenCV reads its own limit once, when it is loaded; a picture above it is refused before memory is taken for it.
MAX_PIXELS = 100_000_000
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

# What is wrong with a file is said by ImageError, in one line.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CROP_SIZE_MAX_PX = 256  # a picture up to this size that is nearly square may be a face crop already
TAIL_BYTES = 1024  # the end marker is looked for in so many last bytes: some programs write padding behind it

# First bytes of each format, and the bytes that must stand near its end (None: the format has no end marker).
SIGNATURES: tuple[tuple[bytes, bytes | None], ...] = (
    (b"\xff\xd8\xff", b"\xff\xd9"),
    (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
    (b"BM", None),
    (b"RIFF", None),
    (b"II*\x00", None),
    (b"MM\x00*", None),
    (b"GIF8", b";"),
)


class ImageError(Exception):
    """An image that cannot be read; the message names the reason in a few words, without the path."""


class Face(NamedTuple):
    """One detected face: box in pixels of the picture, detector score (NaN where the detector gives none)."""

    x: int
    y: int
    w: int
    h: int
    score: float


def image_fault(path: str | os.PathLike[str], *, decode: bool = False) -> str | None:
    """What is wrong with an image file, judged by its size, header and end marker, or None where nothing is.

    Cheap: one open, two reads, no decoding unless `decode`. Reasons are short and constant, so that they can be counted:
    "missing", "not a file", "unreadable", "empty", "not an image", "truncated", "cannot be decoded".
    """
    try:
        # O_NONBLOCK, because opening a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return "missing"
    except OSError:  # Windows refuses to open a folder
        return "not a file" if os.path.isdir(path) else "unreadable"  # noqa: PTH112
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "not a file"
        size = status.st_size
        head = os.read(descriptor, TAIL_BYTES)
        if size > TAIL_BYTES:
            os.lseek(descriptor, size - TAIL_BYTES, os.SEEK_SET)
            tail = os.read(descriptor, TAIL_BYTES)
        else:
            tail = head
    except OSError:
        return "unreadable"
    finally:
        os.close(descriptor)
    fault = bytes_fault(head, tail, size)
    if fault is None and decode:
        try:
            read_image(path)
        except ImageError:
            return "cannot be decoded"
    return fault


def bytes_fault(head: bytes, tail: bytes, size: int) -> str | None:
    """The fault of an image of `size` bytes, given its first and last bytes (up to TAIL_BYTES each), or None."""
    if size == 0:
        return "empty"
    for signature, end_marker in SIGNATURES:
        if not head.startswith(signature):
            continue
        if signature == b"RIFF":
            if head[8:12] != b"WEBP":
                return "not an image"
            return "truncated" if size < int.from_bytes(head[4:8], "little") + 8 else None
        if signature == b"BM":
            return "truncated" if size < int.from_bytes(head[2:6], "little") else None
        if signature == b"GIF8":  # one byte, which picture data hold too: it must be the last but for padding
            return None if tail.rstrip(b"\0").endswith(b";") else "truncated"
        if end_marker is not None and end_marker not in tail:
            return "truncated"
        return None
    return "not an image"


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as RGB, uint8 (H, W, 3), upright by its EXIF tag; the first frame of an animation.

    Grey, 16-bit and CMYK pictures become 8-bit RGB; transparent ones are laid on white. Raises `ImageError` where the
    file is missing, no image, truncated, or larger than MAX_PIXELS.
    """
    fault = image_fault(path)
    if fault is not None:
        raise ImageError(fault)
    try:
        # np.fromfile and imdecode, because cv2.imread cannot open paths with non-Latin letters on Windows.
        return decode_image(np.fromfile(path, dtype=np.uint8))
    except OSError as error:
        raise ImageError(f"unreadable ({error.strerror})") from error


def decode_image(data: np.ndarray) -> np.ndarray:
    """Encoded bytes (uint8, (n,)) as an RGB image, uint8 (H, W, 3); see `read_image`. Raises `ImageError`."""
    if not png_is_whole(data):
        raise ImageError("truncated")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        alpha = decode_alpha(data, image) if image is not None else None
    except cv2.error as error:
        if "MAX_IMAGE_PIXELS" in str(error) or "pixels" in str(error):
            raise ImageError(f"larger than {MAX_PIXELS // 1_000_000} million pixels") from error
        raise ImageError("cannot be decoded") from error
    if image is None:
        raise ImageError("cannot be decoded")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:  # where OpenCV was loaded before its limit was set
        raise ImageError(f"larger than {MAX_PIXELS // 1_000_000} million pixels")
    if alpha is not None:
        image = np.rint(image * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def png_is_whole(data: np.ndarray) -> bool:
    """False for a PNG in which a chunk claims to reach beyond the end: OpenCV would take up to 2 GB for its content."""
    if data[:8].tobytes() != b"\x89PNG\r\n\x1a\n":
        return True
    content = data.tobytes()
    position, kind = 8, b""
    while position + 8 <= len(content) and kind != b"IEND":
        kind = content[position + 4 : position + 8]
        position += 12 + int.from_bytes(content[position : position + 4], "big")  # length, kind, content, checksum
    return position <= len(content)


def decode_alpha(data: np.ndarray, image: np.ndarray) -> np.ndarray | None:
    """The opacity of encoded bytes, 0..1, float32 (H, W, 1), turned as `image`, its decoded colours, by the EXIF tag.

    None where everything is opaque. IMREAD_COLOR drops alpha and shows whatever colour stands under transparent pixels;
    the flag that keeps alpha leaves the picture unturned, so the turn is found by comparing colours.
    """
    if data[:2].tobytes() == b"\xff\xd8":  # JPEG has no alpha
        return None
    raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if raw is None or raw.ndim != 3 or raw.shape[2] != 4:
        return None
    alpha = raw[:, :, 3:].astype(np.float32) / (255.0 if raw.dtype == np.uint8 else 65535.0)
    stored = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if alpha.min() < 1.0 else None
    if stored is None:
        return None
    for axes in ((0, 1, 2), (1, 0, 2)):  # as it is, and mirrored at the diagonal
        for quarter_turns in range(4):
            if np.array_equal(np.rot90(stored.transpose(axes), quarter_turns), image):
                return np.rot90(alpha.transpose(axes), quarter_turns)
    return None


def looks_like_crop(image: np.ndarray) -> bool:
    """Whether a picture in which no face was found may be a face crop already: at most 256 px and nearly square."""
    height, width = image.shape[:2]
    return max(height, width) <= CROP_SIZE_MAX_PX and max(height, width) <= 1.25 * min(height, width)


def detect_faces(image: np.ndarray) -> list[Face]:
    """Faces of an RGB image, uint8 (H, W, 3), largest first, found by OpenCV's frontal Haar cascade (Viola and Jones 2001).

    Faces under 40 px are not looked for. The cascade gives no score: it is NaN.
    """
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")  # type: ignore[attr-defined]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    boxes = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(40, 40))
    faces = [Face(int(x), int(y), int(w), int(h), math.nan) for x, y, w, h in boxes]
    return sorted(faces, key=lambda face: (-face.w * face.h, face.x, face.y))


def crop_face(image: np.ndarray, face: Face, margin: float) -> np.ndarray:
    """The square around a face box, widened by `margin` (a fraction of the longer side) on every side.

    What lies outside the picture repeats its border pixels, so that faces at an edge keep their proportions.
    """
    side = round(max(face.w, face.h) * (1.0 + 2.0 * margin))
    side = max(side, 1)
    left = round(face.x + face.w / 2 - side / 2)
    top = round(face.y + face.h / 2 - side / 2)
    height, width = image.shape[:2]
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    return image[rows[:, None], columns[None, :]]


@dataclass(frozen=True)
class Preprocess:
    """How a face crop becomes network input; stored in every checkpoint, so that use equals training.

    size_px: height and width; channels: 3 (RGB) or 1 (grey); mean and std: one value a channel, on the 0..1 scale;
    margin: how much `crop_face` widens a detector's box to match the crops of the training data; keep: the central share
    of the picture's sides that is used, below 1 where training crops zoomed in, so that faces keep their size; order:
    "rgb" or "bgr", that of the colours in the network input and of mean and std.
    """

    size_px: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    margin: float = 0.0
    keep: float = 1.0
    order: str = "rgb"

    def __post_init__(self) -> None:
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f"order must be rgb or bgr, not {self.order}")
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"keep must lie in (0, 1], not be {self.keep}")
        if self.channels not in (1, 3) or len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"{self.channels} channels need as many values in mean {self.mean} and std {self.std}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """An RGB (H, W, 3) or grey (H, W) uint8 image → float32 (channels, size_px, size_px)."""
        mean = np.asarray(self.mean, dtype=np.float32) * 255.0
        scale = 1.0 / (np.asarray(self.std, dtype=np.float32) * 255.0)
        return np.ascontiguousarray(((self.resize(image) - mean) * scale).transpose(2, 0, 1), dtype=np.float32)  # (C, H, W)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """An RGB (H, W, 3) or grey (H, W) uint8 image → uint8 (size_px, size_px, channels): all but mean and std."""
        image = centre(to_channels(image, self.channels), self.keep)
        if image.shape[:2] != (self.size_px, self.size_px):
            shrinks = max(image.shape[:2]) > self.size_px
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, (self.size_px, self.size_px), interpolation=interpolation)
        image = image.reshape(self.size_px, self.size_px, self.channels)
        return image[:, :, ::-1] if self.order == "bgr" else image

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for checkpoints and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`, also after a detour through JSON (tuples as lists)."""
        return cls(**(values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])}))


def centre(image: np.ndarray, keep: float) -> np.ndarray:
    """The middle of an image (H, W) or (H, W, C), of `keep` times its sides, at least one pixel."""
    height, width = image.shape[:2]
    rows, columns = max(1, round(height * keep)), max(1, round(width * keep))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An RGB (H, W, 3) or grey (H, W) uint8 image as RGB (H, W, 3) or grey (H, W)."""
    if channels == 1 and image.ndim == 3:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if channels == 3 and image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return image
