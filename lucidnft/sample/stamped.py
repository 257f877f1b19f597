"""Pictures that carry in their comment what they were made of, so that an unchanged one is not made again."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lucidnft.atomic_file import atomic_file

JPEG_QUALITY = 92


def file_states(paths: Iterable[Path]) -> str | None:
    """When files were last written and how long they are; None when one of them is not there."""
    try:
        states = [path.stat() for path in paths]
    except OSError:
        return None
    return " ".join(f"{state.st_mtime_ns}-{state.st_size}" for state in states)


def save_stamped(path: Path, picture: Image.Image, stamp: str, icc_profile: bytes | None = None) -> None:
    """Write a picture with its stamp (ASCII) as JPEG or PNG, by the suffix, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    content = BytesIO()  # Pillow reports a full disk as an encoder's error
    if path.suffix == ".jpg":
        options = {"quality": JPEG_QUALITY, "subsampling": 0, "icc_profile": icc_profile}
        picture.save(content, "JPEG", comment=stamp, **options)
    else:
        text = PngInfo()
        text.add_text("comment", stamp)
        picture.save(content, "PNG", icc_profile=icc_profile, pnginfo=text)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content.getbuffer())


def read_stamp(path: Path) -> tuple[str, tuple[int, int]]:
    """The stamp of a picture, and its (width, height); ("", (0, 0)) of what is not there or is no such picture."""
    try:
        with Image.open(path) as image:
            comment, size = image.info.get("comment", b""), image.size
    except OSError:  # it is made again
        return "", (0, 0)
    text = comment.decode("ascii", "replace") if isinstance(comment, bytes) else str(comment)
    return text, size
