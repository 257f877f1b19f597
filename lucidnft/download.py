"""Fetch the files that a run needs: what, from where, how large, under which licence; then, if asked, fetched.

    lucidnft-download configs/lucidflux/nft.yaml [key=value ...] [--list] [--yes]

Instead of a run file, a policy.safetensors or the folder of a run: then the base that it belongs to.  A download that
was stopped continues where it was.  Exit status: 0 when everything is there or was only listed, else 1.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lucidnft.checkpoint.required_files import (
    RequiredFile,
    damaged_pieces,
    describe_required,
    format_size,
    is_whole,
    missing_files,
    required_files,
    state_of,
    what_to_do,
)
from lucidnft.config import load_config
from lucidnft.inference.checkpoints import stored_backbone
from lucidnft.schema import ConfigModel

STAGING = ".lucidnft-download"
"""Beside the place of a single file: what arrives there is moved once it is whole."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)


class DownloadError(OSError):
    """A file cannot be fetched; the message says what to do."""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description="List the files that a run needs, and fetch the missing ones."
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="a run file, or what sample.py takes as --checkpoint"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--list", action="store_true", help="only list")
    parser.add_argument("--yes", action="store_true", help="fetch without asking")
    args = parser.parse_intermixed_args(argv)
    try:
        config = read_config(args.config, args.overrides)
        files = required_files(config)
        print(describe_required(files))
        missing = [file for file in files if state_of(file) != "present"]
        wanted = [file for file in missing if file.fetched]
        if args.list or not missing or not (wanted or missing_files(config)):
            return 0
        if wanted:
            if not args.yes and not confirmed(f"fetch {len(wanted)} missing? [y/N] "):
                return 1
            fetch(wanted)
    except KeyboardInterrupt:
        print("\nlucidnft-download: stopped; the same command continues where it was", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"lucidnft-download: {error}", file=sys.stderr)
        return 1
    own = missing_files(config)
    if own:
        print(f"lucidnft-download: {what_to_do(own, args.config)}", file=sys.stderr)
    return 1 if own else 0


def read_config(source: str, overrides: Sequence[str]) -> ConfigModel:
    """The config of a run file, or the backbone's of a policy.

    Raises:
        ValueError, FileNotFoundError: no such file, a file with mistakes, or overrides for a policy.
    """
    path = Path(source)
    if not path.is_dir() and path.suffix != ".safetensors":
        return load_config(source, overrides)
    if overrides:
        raise ValueError(f"{source} is no run file: leave {overrides[0]} out")
    return stored_backbone(path)


def confirmed(question: str) -> bool:
    """The user's answer.  Raises ValueError where nobody can answer."""
    if not sys.stdin.isatty():
        raise ValueError("nobody is there to ask before fetching: give --yes, or --list")
    return input(question).strip().lower() in ("y", "yes")


def fetch(files: Sequence[RequiredFile]) -> None:
    """Fetch files to where they are expected, once all are known to be reachable and to fit on the disks.

    Raises:
        DownloadError: a repository is gated, unknown or out of reach, or a disk too full; one message.
    """
    sizes = []
    for file in files:
        with explained(file):
            sizes.append(bytes_to_fetch(file))
    check_room(files, sizes)
    for file in files:
        print(f"{file.source}: {file.file}")
        with explained(file):
            _fetch(file)
        if state_of(file) != "present":
            raise DownloadError(
                f"{file.source}: {file.file} was fetched but is {state_of(file)} in {file.place}; run the command "
                "again, and if that does not help remove what is there"
            )


def bytes_to_fetch(file: RequiredFile) -> int:
    """The size of what is still to come, as the repository says; 0 where that is not known."""
    if file.repository is None:
        return file.size or 0
    found = _download(file, dry_run=True)
    infos = found if isinstance(found, list) else [found]
    if not infos:
        raise DownloadError(f"{file.repository} has no {file.file}; see {file.url}")
    return sum(info.file_size or 0 for info in infos if info.will_download)


def check_room(files: Sequence[RequiredFile], sizes: Sequence[int]) -> None:
    """Raise a DownloadError unless each disk has room for what is to come; half a file that is kept is room."""
    needed: dict[int, int] = defaultdict(int)
    kept: dict[int, dict[Path, int]] = defaultdict(dict)
    folders: dict[int, Path] = {}
    for file, size in zip(files, sizes, strict=True):
        target = _target(file)
        folder = next(parent for parent in (target, *target.absolute().parents) if parent.is_dir())
        disk = folder.stat().st_dev
        folders.setdefault(disk, folder)
        needed[disk] += size
        if folder == target:
            kept[disk].update({half: half.stat().st_size for half in target.rglob("*.incomplete")})
    for disk, folder in folders.items():
        free = shutil.disk_usage(folder).free + sum(kept[disk].values())
        if needed[disk] > free:
            raise DownloadError(
                f"{format_size(needed[disk])} are to be fetched, but the disk of {folder} has room for "
                f"{format_size(free)}; free some, or set HF_HOME (of the Hugging Face cache) or the settings' paths to "
                "another disk"
            )


@contextmanager
def explained(file: RequiredFile) -> Iterator[None]:
    """Inside, what huggingface_hub raises becomes one message."""
    from huggingface_hub import errors

    try:
        yield
    except DownloadError:
        raise
    except (errors.HTTPError, errors.EntryNotFoundError, errors.DryRunError, OSError, ValueError) as error:
        raise DownloadError(_explanation(error, file)) from error


def _explanation(error: BaseException, file: RequiredFile) -> str:
    from huggingface_hub import errors, get_token

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    what = f"{file.source}: {file.file}"
    page = file.url or file.source
    if has(errors.GatedRepoError):
        who = (
            "log in with `hf auth login`"
            if get_token() is None
            else "check that you are logged in as who accepted"
        )
        return f"{what} is gated: accept its conditions on {page}, then {who} and run this again"
    if has(errors.RepositoryNotFoundError):
        return (
            f"{what}: huggingface.co has no such repository, or it is private; correct {file.setting} (there is no "
            "folder of that name either), or log in with `hf auth login`"
        )
    if has(errors.EntryNotFoundError) and not has(errors.LocalEntryNotFoundError):
        return f"{what} is not in the repository (any more); see {page}"
    refused = next((link for link in chain if isinstance(link, OSError) and link.errno in DISK_ERRORS), None)
    if refused is not None:
        return f"{what} cannot be written: {refused.strerror}"
    if has(errors.OfflineModeIsEnabled):
        return f"{what} cannot be fetched: HF_HUB_OFFLINE=1 is set; unset it and run this again"
    reason = (str(chain[-1]).splitlines() or [""])[0] or type(chain[-1]).__name__
    return f"{what} cannot be fetched, there is no connection to its server ({reason}); run this again where there is"


def _target(file: RequiredFile) -> Path:
    """The folder that what is fetched goes into first."""
    from huggingface_hub import constants

    if file.folder is not None:
        return file.folder / STAGING / file.file
    return Path(constants.HF_HUB_CACHE) / f"models--{str(file.repository).replace('/', '--')}"


def _download(file: RequiredFile, *, dry_run: bool = False) -> Any:
    from huggingface_hub import hf_hub_download, snapshot_download

    assert file.repository is not None
    if file.folder is not None:
        name = file.released_as or file.file
        return hf_hub_download(file.repository, name, local_dir=_target(file), dry_run=dry_run)
    if "*" not in file.file:
        return hf_hub_download(file.repository, file.file, dry_run=dry_run)
    return snapshot_download(file.repository, allow_patterns=patterns(file.file), dry_run=dry_run)


def patterns(part: str) -> list[str]:
    """What of a repository belongs to "transformer/*" or "x/*.safetensors"."""
    if part.endswith(".safetensors"):
        return [part, f"{part}.index.json"]
    # a processor's words and templates are in .txt and .jinja
    return [f"{part}.{kind}" for kind in ("json", "safetensors", "txt", "jinja")]


def _fetch(file: RequiredFile) -> None:
    from huggingface_hub import hf_hub_download

    if file.folder is None:
        assert file.repository is not None
        for name in damaged_pieces(file):
            hf_hub_download(file.repository, name, force_download=True)
        _download(file)
        return
    target = _target(file)
    target.mkdir(parents=True, exist_ok=True)
    if file.repository is None:
        from torch.hub import download_url_to_file

        arrived = target / file.file
        download_url_to_file(file.url, str(arrived))
    else:
        arrived = Path(_download(file))
    if not is_whole(arrived):
        shutil.rmtree(target)
        raise DownloadError(f"{file.source}: {file.file} arrived damaged and was removed; run this again")
    arrived.replace(file.folder / file.file)
    shutil.rmtree(target)
    with suppress(OSError):  # others are still to come
        target.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
