"""From a checkpoint on disk to something that restores: an adapter on its base, or base weights alone.

The header of policy.safetensors says which base the adapter belongs to, so nothing but that file and the
base weights is needed: not the run's config, its data or its rewards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lucidnft.backbones.base import Backbone
from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from lucidnft.backbones.encoder_settings import EncoderSettings
from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from lucidnft.backbones.tiny import WEIGHTS_FORMAT, TinyBackbone, TinyBackboneConfig
from lucidnft.checkpoint import latest_checkpoint, load_header, load_tensors
from lucidnft.checkpoint.required_files import check_files
from lucidnft.policy import Policy, Role

POLICY_FORMAT = "lucidnft.policy.1"
BASE = "base"
BackboneConfig = TinyBackboneConfig | LucidFluxBackboneConfig | DiT4SRBackboneConfig
BACKBONE_CONFIGS: dict[str, type[BackboneConfig]] = {
    "tiny": TinyBackboneConfig,
    "lucidflux": LucidFluxBackboneConfig,
    "dit4sr": DiT4SRBackboneConfig,
}  # by the type tag that a policy's header carries

_CHECKPOINT_FILES = ("policy.safetensors", "weights.safetensors")


def load_policy(path: str | Path, *, model_name_or_path: str | Path | None = None) -> Policy | Backbone:
    """Load what a run left behind, on the CPU and in float32, ready for `restore`.

    Args:
        path: a policy.safetensors (or ema.safetensors) file, base weights, a checkpoint-<step> folder, a run
            folder (its latest complete checkpoint is taken), or "base": the tiny base that ships.
        model_name_or_path: base weights to put the adapter on, when they are no longer where the run
            found them.  They must be the same weights.

    Returns:
        A Policy whose current adapter is the stored one, or the Backbone of a file of base weights.

    Raises:
        FileNotFoundError: nothing is there, or the base weights are not.
        ValueError: no checkpoint in the folder, a file of another format, keys missing, an adapter that was trained
            on another base, or model_name_or_path without an adapter to put on it.
    """
    if str(path) == BASE:
        if model_name_or_path is not None:
            raise ValueError(
                f"'{BASE}' is the base that ships, but model_name_or_path is {model_name_or_path}; "
                f"to restore with those base weights give that file as --checkpoint instead of '{BASE}'"
            )
        return TinyBackbone.from_pretrained("tiny")
    file = find_weights(path)
    header = load_header(file)
    kind = header.get("format")
    if kind == POLICY_FORMAT:
        return _load_adapter(file, header, model_name_or_path)
    if kind == WEIGHTS_FORMAT:
        if model_name_or_path is not None:
            raise ValueError(f"{file} holds base weights, not an adapter: leave model_name_or_path out")
        return TinyBackbone.from_pretrained(file)
    raise ValueError(
        f"{file} has format {kind!r} in its header; a policy ({POLICY_FORMAT}) or base weights "
        f"({WEIGHTS_FORMAT}) were expected. In a checkpoint folder that is policy.safetensors"
    )


def stored_backbone(path: str | Path) -> BackboneConfig:
    """The settings of the base that a policy belongs to; nothing is loaded.  path: as `find_weights`.

    Raises:
        FileNotFoundError, ValueError: as `find_weights`; or the file is no policy, or of another version.
    """
    file = find_weights(path)
    section = load_header(file).get("backbone")
    if not isinstance(section, dict):
        raise ValueError(f"{file} is no policy: its header names no base")
    return _backbone_config(file, section, None)


def find_weights(path: str | Path) -> Path:
    """The file that a path names: itself, or the one in a checkpoint folder or in a run's latest checkpoint.

    Raises:
        FileNotFoundError, ValueError: there is none; the message says what was looked for.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist; give a file, a folder or '{BASE}'")
    found = _weights_in(path)
    if found is not None:
        return found
    latest = latest_checkpoint(path)
    found = None if latest is None else _weights_in(latest)
    if found is None:
        raise ValueError(
            f"no checkpoint in {path}: it holds neither {' nor '.join(_CHECKPOINT_FILES)}, and no complete "
            "checkpoint-<step> folder with one of them"
        )
    return found


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in _CHECKPOINT_FILES if (folder / name).is_file()), None)


def _load_adapter(file: Path, header: dict[str, Any], model_name_or_path: str | Path | None) -> Policy:
    missing = [key for key in ("backbone", "base_fingerprint") if not header.get(key)]
    if missing:
        raise ValueError(
            f"{file} does not say {' and '.join(missing)} in its header; it is damaged or hand-made"
        )
    config = _backbone_config(file, header["backbone"], model_name_or_path)
    check_files(config, f"{file}: its base", str(file))
    seed = (header.get("config") or {}).get("seed", 0)  # matters when the base itself was drawn from the seed
    try:
        backbone: Backbone = config.build(seed=seed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{file} needs its base weights: {error}; say where they are with model_name_or_path"
        ) from error
    if backbone.fingerprint != header["base_fingerprint"]:
        raise ValueError(
            f"{file} was trained on base weights {header['base_fingerprint']}, but {config.model_name_or_path} "
            f"holds {backbone.fingerprint}; give the base it was trained on as model_name_or_path"
        )
    policy = Policy(backbone, config, seed=seed)
    tensors, _ = load_tensors(file, expected=policy.parameters)
    policy.load_state_(Role.CURRENT, tensors)
    return policy


def _backbone_config(
    file: Path, section: dict[str, Any], model_name_or_path: str | Path | None
) -> BackboneConfig:
    tag = section.get("type")
    if tag not in BACKBONE_CONFIGS:
        known = ", ".join(BACKBONE_CONFIGS)
        raise ValueError(f"{file} is an adapter for backbone {tag!r}; this version knows {known}")
    if model_name_or_path is not None:
        section = {**section, "model_name_or_path": str(model_name_or_path)}
    try:
        config = BACKBONE_CONFIGS[tag].model_validate(section)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in error.errors()[:3])
        raise ValueError(
            f"{file} describes its backbone in a way this version cannot read: {problems}"
        ) from error
    return config.without_cache() if isinstance(config, EncoderSettings) else config
