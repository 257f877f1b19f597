"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """An empty file that takes the place of `path` when the block ends, and leaves it alone when the block fails.

    Until then it is a hidden file of another name in the same folder, which a killed process leaves behind.

    Raises:
        OSError: the file cannot be written; nothing is left behind and an older file stays.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # `path` may be as long as names can be
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the name with nothing in it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
