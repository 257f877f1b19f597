"""Which input files become which outputs: decided, and checked for collisions, before anything is restored."""

from __future__ import annotations

import glob
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lucidnft.images import IMAGE_EXTENSIONS, OUTPUT_FORMATS, list_images

AUTO_FORMAT = "auto"
"""The output has the input's format, or PNG where that one is not written (GIF)."""

_WRITTEN_AS = {
    ".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg", ".webp": ".webp", ".tif": ".tif", ".tiff": ".tif", ".bmp": ".bmp",
}  # fmt: skip


@dataclass(frozen=True)
class RestoreJob:
    """One input file and the file it becomes."""

    source: Path
    target: Path

    @property
    def key(self) -> str:
        """The stem, which keys the noise: a file gives the same pixels alone and in any folder."""
        return self.source.stem


def plan_jobs(
    source: str | Path,
    output_dir: str | Path,
    *,
    recursive: bool = False,
    image_format: str = "png",
    full_names: bool = False,
) -> list[RestoreJob]:
    """Inputs and outputs, sorted by path (a list keeps its order).

    Images already below output_dir are results, not inputs, when output_dir lies inside the input folder.

    Args:
        source: an image, a folder, a glob ("photos/**/*.jpg"), or a .txt file with one path a line (or with paths
            that end in NUL, as `find -print0` writes them), relative to the working directory.  What a list names is
            taken as it is: a file that is missing is reported when its turn comes.
        recursive: take sub-folders of a folder too; keep the sub-folders of what was found under output_dir.
        image_format: a name of OUTPUT_FORMATS, or "auto" for that of each input.
        full_names: name outputs by the whole name of the input, "a.jpg.png", where stems would collide.

    Raises:
        FileNotFoundError: the input does not exist.
        ValueError: no image was found, an unknown format, two inputs would be written to one file, or an output would
            replace an input; nothing has been written then.
    """
    output_dir = Path(output_dir)
    if image_format not in (AUTO_FORMAT, *OUTPUT_FORMATS):
        raise ValueError(
            f"format is {image_format!r}, expected one of {', '.join((AUTO_FORMAT, *OUTPUT_FORMATS))}"
        )
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {output_dir} is a file; give a folder")
    if os.path.isdir(source) and _real(output_dir) == _real(Path(source)):
        raise ValueError(
            f"output_dir {output_dir} is the input folder: the next run would take outputs for inputs; give another, "
            "it may lie inside"
        )
    folder, files = _found(source, recursive)
    files = _without_results(files, folder, output_dir)
    jobs = [
        RestoreJob(
            file,
            output_dir / _sub_folder(file, folder, recursive) / _output_name(file, image_format, full_names),
        )
        for file in files
    ]
    _check_targets(jobs)
    return jobs


def _found(source: str | Path, recursive: bool) -> tuple[Path, list[Path]]:
    """The folder that sub-folders are counted from, and the files."""
    path = Path(source)
    if os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        return path, list_images(path, recursive)
    if path.suffix.lower() == ".txt" and os.path.isfile(path):
        files = _listed(path)
        return Path(os.path.commonpath([_absolute(file).parent for file in files])), files
    if os.path.lexists(path):
        return path.parent, [path]
    if glob.has_magic(str(source)):
        return _matched(str(source))
    raise FileNotFoundError(f"input {source} does not exist")


def _listed(path: Path) -> list[Path]:
    text = path.read_bytes()
    names = text.split(b"\0") if b"\0" in text else text.splitlines()
    files = [Path(os.fsdecode(name)) for name in names if name.strip()]
    if not files:
        raise ValueError(f"the list {path} names no file; it should hold one path a line")
    folders = [file for file in files if os.path.isdir(file)]
    if folders:
        raise ValueError(f"the list {path} names the folder {folders[0]}; list the images themselves")
    return list(dict.fromkeys(files))


def _matched(pattern: str) -> tuple[Path, list[Path]]:
    """Images by extension, as in a folder; `**` crosses folders."""
    files = sorted(
        path
        for path in set(map(Path, _expanded(pattern)))
        if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()
    )
    if not files:
        raise ValueError(
            f"no image file matches '{pattern}'; looked for {' '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    parts = Path(pattern).parts
    magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:magic]), files


def _expanded(pattern: str) -> Iterator[str]:
    """As glob.iglob with recursive=True, but `**` enters a folder once: that one follows every loop of links."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    place = parts.index("**")
    rest = parts[place + 1 :]
    while rest[:1] == ["**"]:
        del rest[0]
    start = "".join(part + os.sep for part in parts[:place])
    for top in glob.iglob(start) if start else (os.curdir,):
        for folder in _folders_below(top):
            yield from _expanded(os.path.join(glob.escape(folder), *(rest or ["*"])))


def _folders_below(top: str) -> Iterator[str]:
    """`top` and the folders below it, each once, without hidden ones.

    Links come after all that is there without them, so that a folder is found under its own name.
    """
    seen = set()
    waiting = deque([top])
    while waiting:
        for folder, names, _ in os.walk(waiting.popleft()):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                names.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            yield folder
            names[:] = sorted(name for name in names if not name.startswith("."))
            paths = (os.path.join(folder, name) for name in names)
            waiting.extend(path for path in paths if os.path.islink(path))


def _without_results(files: list[Path], folder: Path, output_dir: Path) -> list[Path]:
    results, real_folder = _real(output_dir), _real(folder)
    if results == real_folder or not results.is_relative_to(real_folder):
        return files
    inputs = [file for file in files if not _real(file).is_relative_to(results)]
    if not inputs:
        raise ValueError(f"every image in '{folder}' lies in output_dir '{output_dir}'; nothing to restore")
    return inputs


def _sub_folder(file: Path, folder: Path, recursive: bool) -> Path:
    return _absolute(file).parent.relative_to(_absolute(folder)) if recursive else Path()


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _real(path: Path) -> Path:
    """Where links lead; a loop of links ends at itself instead of raising, as Path.resolve does."""
    return Path(os.path.realpath(path))


def _output_name(file: Path, image_format: str, full_names: bool) -> str:
    if image_format == AUTO_FORMAT:
        extension = _WRITTEN_AS.get(file.suffix.lower(), OUTPUT_FORMATS["png"])
    else:
        extension = OUTPUT_FORMATS[image_format]
    return (file.name if full_names else file.stem) + extension


def _check_targets(jobs: Sequence[RestoreJob]) -> None:
    sources: defaultdict[Path, list[Path]] = defaultdict(list)
    for job in jobs:
        sources[job.target].append(job.source)
    shared = [
        f"{target.name} <- {', '.join(map(str, files))}"
        for target, files in sources.items()
        if len(files) > 1
    ]
    if shared:
        raise ValueError(
            f"{len(shared)} output(s) would be written by several inputs: {'; '.join(shared[:3])}; keep whole names "
            "(--full_names), keep sub-folders (--recursive), or rename the inputs"
        )
    inputs = {_real(job.source) for job in jobs}
    replaced = [str(job.target) for job in jobs if _real(job.target) in inputs]
    if replaced:
        raise ValueError(
            f"{len(replaced)} output(s) would replace an input ({replaced[0]}); choose another output_dir"
        )
