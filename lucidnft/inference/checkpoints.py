"""From a checkpoint on disk to something that restores: an adapter on its base, or base weights alone.

The header of policy.safetensors says which base the adapter belongs to, so nothing but that file and the
base weights is needed: not the run's config, its data or its rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lucidnft.backbones.adapter_files import (
    POLICY_FORMAT,
    StoredAdapter,
    is_adapter_folder,
    read_adapter,
    read_card,
    read_policy_file,
    seed_of,
)
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from lucidnft.backbones.encoder_settings import EncoderSettings
from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from lucidnft.backbones.merged_files import is_merged, merged_section
from lucidnft.backbones.tiny import WEIGHTS_FORMAT, TinyBackbone, TinyBackboneConfig
from lucidnft.checkpoint import latest_checkpoint, load_header, load_tensors
from lucidnft.checkpoint.fingerprint import fingerprint
from lucidnft.checkpoint.required_files import check_files
from lucidnft.policy import Policy, Role

BASE = "base"
BackboneConfig = TinyBackboneConfig | LucidFluxBackboneConfig | DiT4SRBackboneConfig
BACKBONE_CONFIGS: dict[str, type[BackboneConfig]] = {
    "tiny": TinyBackboneConfig,
    "lucidflux": LucidFluxBackboneConfig,
    "dit4sr": DiT4SRBackboneConfig,
}  # by the type tag that a policy's header carries

_CHECKPOINT_FILES = ("policy.safetensors", "weights.safetensors")


def load_policy(
    path: str | Path,
    *,
    model_name_or_path: str | Path | None = None,
    base: BackboneConfig | None = None,
) -> Policy | Backbone:
    """Load what a run left behind, on the CPU and in float32, ready for `restore`.

    Args:
        path: a policy.safetensors (or ema.safetensors) file, base weights, a checkpoint-<step> folder, a run
            folder (its latest complete checkpoint is taken), an exported adapter (PEFT folders) or merged base, or
            "base": the base of `base`, else the tiny base that ships.
        model_name_or_path: base weights to put the adapter on, when they are no longer where the run
            found them.  They must be the same weights.
        base: the `model:` section of a run file, which says where the base is and how it is run, in place of what the
            adapter says.  A PEFT folder that this library did not write needs it.

    Returns:
        A Policy whose current adapter is the stored one, or the Backbone of base weights.

    Raises:
        FileNotFoundError: nothing is there, or the base weights are not.
        ValueError: no checkpoint in the folder, a file of another format, keys missing, an adapter that was trained
            on another base, or model_name_or_path or base where they have no use.
    """
    if base is not None and model_name_or_path is not None:
        raise ValueError(
            f"model_name_or_path ({model_name_or_path}) and the settings of a base are both given; set "
            "model.model_name_or_path in those settings"
        )
    if str(path) == BASE:
        return _bare_base(model_name_or_path, base)
    path = Path(path)
    if is_adapter_folder(path):
        return _load_with_shapes(path, model_name_or_path, base)
    if is_merged(path):
        _refuse_second_base(path, model_name_or_path, base)
        return _backbone_config(path, merged_section(path), None).build()
    file = find_weights(path)
    header = load_header(file)
    kind = header.get("format")
    if kind == POLICY_FORMAT:
        if base is not None or "lora" in header:
            return _load_with_shapes(file, model_name_or_path, base)
        return _load_adapter(file, header, model_name_or_path)
    if kind == WEIGHTS_FORMAT:
        _refuse_second_base(file, model_name_or_path, base)
        return TinyBackbone.from_pretrained(file)
    raise ValueError(
        f"{file} has format {kind!r} in its header; a policy ({POLICY_FORMAT}) or base weights "
        f"({WEIGHTS_FORMAT}) were expected. In a checkpoint folder that is policy.safetensors"
    )


def weights_id(loaded: Policy | Backbone) -> str:
    """What identifies the weights that `load_policy` gave: of the base, and of the adapter if there is one."""
    if isinstance(loaded, Policy):
        return f"{loaded.backbone.fingerprint}+{fingerprint(loaded.state(Role.CURRENT))}"
    return loaded.fingerprint


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


def stored_adapter(path: str | Path, base: BackboneConfig | None = None) -> StoredAdapter:
    """The adapter that `load_policy` takes from a path, without its base.

    Raises:
        FileNotFoundError, ValueError: nothing is there, no adapter, or nothing says which base it is for.
    """
    path = Path(path)
    if is_adapter_folder(path):
        if base is None and not read_card(path):
            raise ValueError(
                f"{path} does not say which base it is for, as lucidnft-export would have; give a run file whose "
                "model: section does (--base_config FILE)"
            )
        stored = read_adapter(path, base.type if base is not None else "")
    else:
        stored = read_policy_file(find_weights(path))
    if base is None:
        return stored
    if _usable(base).type != stored.backbone:
        raise ValueError(
            f"{path} is an adapter for backbone {stored.backbone!r}, the settings are for {base.type!r}"
        )
    return replace(stored, card={**stored.card, "backbone": base.model_dump(mode="json")})


def _bare_base(model_name_or_path: str | Path | None, base: BackboneConfig | None) -> Backbone:
    if base is not None:
        return _usable(base).build()
    if model_name_or_path is not None:
        raise ValueError(
            f"'{BASE}' is the base that ships, but model_name_or_path is {model_name_or_path}; "
            f"to restore with those base weights give that file as --checkpoint instead of '{BASE}'"
        )
    return TinyBackbone.from_pretrained("tiny")


def _refuse_second_base(
    path: Path, model_name_or_path: str | Path | None, base: BackboneConfig | None
) -> None:
    if model_name_or_path is not None or base is not None:
        other = "model_name_or_path" if base is None else "the settings of a base"
        raise ValueError(f"{path} holds base weights, not an adapter: leave {other} out")


def _load_with_shapes(
    path: Path, model_name_or_path: str | Path | None, base: BackboneConfig | None
) -> Policy:
    """A policy with the layers, ranks and scales that the adapter itself says."""
    stored = stored_adapter(path, base)
    backbone, config, seed = build_base(stored.path, stored.card, model_name_or_path)
    stored.check_base(backbone)
    return Policy(backbone, config, seed=seed, start=stored.lora)


def _usable(base: BackboneConfig) -> BackboneConfig:
    if base.adapter is not None:
        raise ValueError(
            f"the settings of the base name an adapter, {base.adapter}; give that as the checkpoint, and a base here"
        )
    return base


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
    backbone, config, seed = build_base(file, header, model_name_or_path)
    policy = Policy(backbone, config, seed=seed)
    tensors, _ = load_tensors(file, expected=policy.parameters)
    policy.load_state_(Role.CURRENT, tensors)
    return policy


def build_base(
    file: Path, header: Mapping[str, Any], model_name_or_path: str | Path | None
) -> tuple[Backbone, BackboneConfig, int]:
    """The base that an adapter's header names, its settings, and the run's seed.

    Raises:
        FileNotFoundError: its weights are not there.
        ValueError: an unknown backbone or unreadable settings, or other weights than the adapter was trained on.
    """
    config = _backbone_config(file, header["backbone"], model_name_or_path)
    check_files(config, f"{file}: its base", str(file))
    seed = seed_of(header)  # matters when the base itself was drawn from the seed
    try:
        backbone: Backbone = config.build(seed=seed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{file} needs its base weights: {error}; say where they are with model_name_or_path"
        ) from error
    if header.get("base_fingerprint") not in (None, backbone.fingerprint):
        raise ValueError(
            f"{file} was trained on base weights {header['base_fingerprint']}, but {config.model_name_or_path} "
            f"holds {backbone.fingerprint}; give the base it was trained on as model_name_or_path"
        )
    return backbone, config, seed


def _backbone_config(
    file: Path, section: dict[str, Any], model_name_or_path: str | Path | None
) -> BackboneConfig:
    tag = section.get("type")
    if tag not in BACKBONE_CONFIGS:
        known = ", ".join(BACKBONE_CONFIGS)
        raise ValueError(f"{file} is an adapter for backbone {tag!r}; this version knows {known}")
    section = {
        name: value for name, value in section.items() if name != "adapter"
    }  # what the run started from
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
