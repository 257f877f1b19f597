"""What a run leaves on the disk: safetensors with JSON headers, optimiser state, checkpoint folders.

Knows no model class, pickles nothing, and never leaves half a file under a final name.
"""

from lucidnft.checkpoint.folders import (
    check_checkpoint,
    checkpoint_folder,
    latest_checkpoint,
    prune_checkpoints,
    set_aside_newer,
    unused_name,
)
from lucidnft.checkpoint.optimizer_state import flatten_optimizer, load_optimizer_
from lucidnft.checkpoint.tensor_files import (
    CheckpointWriteError,
    load_header,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
    save_text,
)

__all__ = [
    "CheckpointWriteError",
    "check_checkpoint",
    "checkpoint_folder",
    "flatten_optimizer",
    "latest_checkpoint",
    "load_header",
    "load_json",
    "load_optimizer_",
    "load_tensors",
    "prune_checkpoints",
    "save_json",
    "save_tensors",
    "save_text",
    "set_aside_newer",
    "unused_name",
]
