"""Names of models in run files: a folder here, or a repository of huggingface.co that is in its cache.

Nothing here reaches the network.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS_FOLDER = "weights"
"""Where a run file's defaults look for single files, relative to the working directory."""

_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def repository_of(name: str) -> tuple[str, str] | None:
    """("owner/name", folder inside it or "") of a name like owner/name or owner/name/folder; None for a local path.

    A local path is what exists, what starts with /, ., ~ or weights/, what ends like a weight file, and whatever
    cannot be a repository's id.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    parts = name.split("/")
    local = Path(name).exists() or parts[0] == WEIGHTS_FOLDER or name.startswith((".", "~"))
    if local or name.endswith(_FILES) or len(parts) < 2 or not all(parts):
        return None
    repository = "/".join(parts[:2])
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return None
    return repository, "/".join(parts[2:])


def cached_snapshot(repository: str) -> Path | None:
    """The folder of a repository's files in the Hugging Face cache, which may hold only some; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError as error:
        partial = getattr(
            error, "snapshot_path", None
        )  # only some files are wanted, so none or few is no fault
        return None if partial is None else Path(partial)


def find_folder(name: str, setting: str) -> Path:
    """The local path that a name stands for: itself, or the folder of a repository in the Hugging Face cache.

    setting: that gave the name, for the message.

    Raises:
        FileNotFoundError: the name is a repository's, which is not in the cache.
    """
    place = repository_of(name)
    if place is None:
        return Path(name)
    snapshot = cached_snapshot(place[0])
    if snapshot is None:
        raise FileNotFoundError(
            f"{setting}: there is no folder {name}, and no repository {place[0]} in the Hugging Face cache; fetch it "
            "with lucidnft-download and the run file, or give a folder"
        )
    return snapshot / place[1]
