"""Which files a run needs, where they are expected, and whether they are there.

Config classes that name files have a method `required_files`; this module collects, checks and prints them.  It loads
no tensor and never reaches the network.
"""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from lucidnft.checkpoint.places import cached_snapshot, repository_of
from lucidnft.checkpoint.tensor_files import load_json, opened
from lucidnft.schema import ConfigModel

State = Literal["present", "missing", "incomplete"]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class RequiredFile:
    """A file, or the files of one folder of a diffusers or transformers model, that must be on this machine."""

    # a file's name; or "transformer/*": config.json and the weights; or "x/*.safetensors": the weights alone
    file: str
    folder: Path | None  # that `file` is in; None: the repository's in the Hugging Face cache
    setting: str  # that names it
    repository: str | None = None  # on huggingface.co; None: the user's own, or at `url`
    size: int | None = None  # bytes, about; None is unknown
    licence: str = UNKNOWN
    accept: str = ""  # what its owner wants to be accepted before it can be fetched; empty: nothing
    url: str = ""  # a page to read; without a repository, the file itself; empty: nothing fetches it
    also: tuple[str, ...] = ()  # other names of the same contents
    released_as: str = ""  # its name in the repository, where that is another
    needed: bool = True  # False: a run starts without it
    note: str = ""

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return self.repository or urlparse(self.url).netloc or "your own file"

    @property
    def fetched(self) -> bool:
        """Whether lucidnft-download can fetch it."""
        return bool(self.repository or self.url)

    @property
    def place(self) -> str:
        """Where it is expected, for people."""
        if self.folder is not None:
            return str(self.folder / self.file)
        return "Hugging Face cache" if self.repository else UNKNOWN


@dataclass(frozen=True)
class Release:
    """What is known of something released on huggingface.co."""

    repository: str
    licence: str
    accept: str = ""

    @property
    def url(self) -> str:
        """Its page."""
        return f"https://huggingface.co/{self.repository}"


def single_file(
    path: str, setting: str, release: Release | None = None, *, name: str = "", size: int | None = None
) -> RequiredFile:
    """A file that a setting names by its path: the release's file `name` if it is called so, else the user's own."""
    place = Path(path)
    if release is None or place.name != name:
        return RequiredFile(place.name, place.parent, setting)
    return RequiredFile(
        name, place.parent, setting, release.repository, size, release.licence, release.accept, release.url
    )


def model_part(
    name: str, part: str, setting: str, releases: Sequence[Release] = (), *, size: int | None = None
) -> RequiredFile:
    """Files of a model that a setting names by its folder or repository.

    part: as `RequiredFile.file`, inside the model's folder.  releases: those whose licence, and of the first of them
    whose size, is known.
    """
    place = repository_of(name)
    if place is None:
        return RequiredFile(part, Path(name), setting)
    repository, folder = place
    part = f"{folder}/{part}" if folder else part
    known = next((release for release in releases if release.repository == repository), None)
    if known is None:
        return RequiredFile(part, None, setting, repository, url=Release(repository, "").url)
    size = size if known is releases[0] else None
    return RequiredFile(part, None, setting, repository, size, known.licence, known.accept, known.url)


def required_files(config: ConfigModel) -> tuple[RequiredFile, ...]:
    """Every file that a config and its sections name, with the settings' full names, each file once."""
    found: dict[tuple[object, ...], RequiredFile] = {}

    def visit(value: object, prefix: str) -> None:
        if isinstance(value, ConfigModel):
            own = getattr(value, "required_files", None)
            for file in () if own is None else own():
                full = f"{prefix}{file.setting}".rstrip(".")
                found.setdefault((file.repository, file.folder, file.file), replace(file, setting=full))
            for name in type(value).model_fields:
                visit(getattr(value, name), f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            for name, item in value.items():
                visit(item, f"{prefix}{name}.")

    visit(config, "")
    return tuple(found.values())


def missing_files(config: ConfigModel) -> tuple[RequiredFile, ...]:
    """Those of `required_files` without which a run cannot start and that are not there, or not whole."""
    return tuple(file for file in required_files(config) if file.needed and state_of(file) != "present")


def check_files(config: ConfigModel, subject: str, *arguments: str) -> None:
    """Nothing, when every needed file is there.

    subject: what needs them, the start of the message; arguments: of the lucidnft-download that fetches them.

    Raises:
        FileNotFoundError: with the table of all files, and what to do.
    """
    missing = missing_files(config)
    if missing:
        raise FileNotFoundError(
            f"{subject} needs files of which {len(missing)} are not here or not whole:\n"
            f"{describe_required(required_files(config))}\n{what_to_do(missing, *arguments)}"
        )


def state_of(file: RequiredFile) -> State:
    """Whether a file is there and whole, as far as can be told without reading it through."""
    folder = _folder(file)
    pieces = [] if folder is None else _pieces(folder, file)
    if not pieces or not all(piece.is_file() for piece in pieces):
        return "missing"
    return "present" if all(map(is_whole, pieces)) else "incomplete"


def damaged_pieces(file: RequiredFile) -> list[str]:
    """Names inside the repository of those files that are there but cut short."""
    folder = _folder(file)
    pieces = [] if folder is None else _pieces(folder, file)
    return [p.relative_to(str(folder)).as_posix() for p in pieces if p.is_file() and not is_whole(p)]


def _folder(file: RequiredFile) -> Path | None:
    return cached_snapshot(file.repository) if file.folder is None and file.repository else file.folder


def _pieces(folder: Path, file: RequiredFile) -> list[Path]:
    """The files that must be there, of which some may not be; empty when not even their names are known."""
    inside, _, last = file.file.rpartition("/")
    if "*" not in last:
        names = (file.file, *file.also)
        return [next((folder / name for name in names if (folder / name).is_file()), folder / file.file)]
    folder = folder / inside
    indices = sorted(folder.glob("*.safetensors.index.json"))
    pieces = [*indices, *([folder / "config.json"] if last == "*" else [])]
    if not indices:
        weights = sorted(folder.glob("*.safetensors")) or (
            sorted(folder.glob("*.bin")) if last == "*" else []
        )
        return [*pieces, *weights] if weights else []
    for index in indices:
        if is_whole(index):
            pieces += [folder / name for name in sorted(set(load_json(index)["weight_map"].values()))]
    return pieces


def is_whole(file: Path) -> bool:
    """False for a file that is cut short, where its format shows that, or that is no such file."""
    if file.stat().st_size == 0:
        return False
    try:
        if file.suffix == ".json":
            value = load_json(file)
            return not file.name.endswith(".index.json") or isinstance(value["weight_map"], dict)
        if file.suffix == ".safetensors":
            with opened(file, "cpu"):
                return True
    except (ValueError, KeyError, TypeError):
        return False
    with open(file, "rb") as content:
        zipped = content.read(2) == b"PK"  # as torch.save writes; the directory of a zip file is at its end
    return not zipped or zipfile.is_zipfile(file)


def format_size(size: int | None) -> str:
    """E.g. 23.80 GB (decimal, as huggingface.co counts)."""
    if size is None:
        return UNKNOWN
    unit, name = next(
        (u, n) for u, n in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B")) if size >= u or u == 1
    )
    return f"{size} B" if unit == 1 else f"{size / unit:.{2 if unit == 10**9 else 0}f} {name}"


def describe_required(files: Sequence[RequiredFile]) -> str:
    """A table of the files, one a line, and below it what to accept and what else there is to know."""
    if not files:
        return "no files beside those of this package"
    rows = [("from", "file", "about", "licence", "state", "expected in")]
    for file in files:
        state = "not looked for" if not file.fetched and file.folder is None else state_of(file)
        rows.append((file.source, file.file, format_size(file.size), file.licence, state, file.place))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    remarks = [f"  {f.repository}: {f.accept}" for f in files if f.accept]
    remarks += [f"  {f.setting}: {f.note}" for f in files if f.note]
    return "\n".join([*lines, *dict.fromkeys(remarks)])


def what_to_do(missing: Sequence[RequiredFile], *arguments: str) -> str:
    """How to get missing files: by lucidnft-download with these arguments, or, those of the user's own, by hand."""
    lines = []
    if any(file.fetched for file in missing):
        lines.append(f"fetch them with: {shlex.join(['lucidnft-download', *arguments])}")
    own = [file for file in missing if not file.fetched]
    lines += [f"nothing fetches {file.place}: put it there, or change {file.setting}" for file in own]
    return "\n".join(lines)
