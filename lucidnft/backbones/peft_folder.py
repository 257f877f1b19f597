"""One PEFT folder: adapter_config.json and the factors, read strictly and written so that peft reads the same.

What peft itself does with a folder is to fill what is missing and to leave out what it does not know, with a warning
at most.  Here everything that would change the result is accounted for or refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucidnft.backbones.lora_values import Lora, LoraPair, common_shape, lora_from_tensors, lora_state
from lucidnft.checkpoint import load_json, save_json
from lucidnft.checkpoint.released_files import read_released_file
from lucidnft.checkpoint.tensor_files import first_few

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."

_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_config", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fields that are read below, or that change nothing once an adapter is trained  # fmt: skip
_UNCHANGED_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights as they are."""


@dataclass(frozen=True)
class PeftFolder:
    """What a folder holds, under its own names."""

    path: Path
    config: dict[str, Any]
    lora: Lora

    def check_targets(self, modules: Iterable[str]) -> None:
        """Raise a ValueError when the config asks for LoRA on one of these modules and there is none.

        modules: of the network, under the folder's names.
        """
        from peft import LoraConfig
        from peft.tuners.tuners_utils import check_target_module_exists

        fields = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
        config = LoraConfig(**{name: self.config[name] for name in fields if self.config.get(name)})
        missing = [
            name
            for name in sorted(modules)
            # peft answers with an object of its own for an excluded module, which is false too
            if name not in self.lora and check_target_module_exists(config, name)
        ]
        if missing:
            raise ValueError(
                f"{self.path} lacks the factors of {len(missing)} layers that its {CONFIG} targets: "
                f"{first_few(missing)}; it is cut short"
            )


def is_peft_folder(path: Path) -> bool:
    """Whether there is any part of one."""
    return any((path / name).is_file() for name in (CONFIG, *WEIGHTS))


def read_peft_folder(path: Path) -> PeftFolder:
    """The adapter in a folder; a .bin file is read weights-only.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: another method than plain LoRA, rank or alpha missing or not those of the factors, or damage.
    """
    files = [path / name for name in WEIGHTS if (path / name).is_file()]
    if not (path / CONFIG).is_file() or not files:
        missing = f"neither {WEIGHTS[0]} nor {WEIGHTS[1]}" if (path / CONFIG).is_file() else f"no {CONFIG}"
        raise FileNotFoundError(f"{path} is half a PEFT folder: it has {missing}; copy it again")
    config = load_json(path / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{path / CONFIG} holds a {type(config).__name__}, expected an object")
    _check_method(path / CONFIG, config)
    tensors = {name.removeprefix(_PREFIX): value for name, value in read_released_file(files[0]).items()}
    return PeftFolder(
        path, config, _with_alphas(path, config, lora_from_tensors(str(files[0]), tensors, 1.0))
    )


def write_peft_folder(path: Path, lora: Lora, *, base: str | None) -> None:
    """Write the two files into a new folder.  base: the model's name, for people who read the config."""
    rank, alpha = common_shape(lora)
    # a bare name would match every layer whose name ends with it
    bare = any("." not in name for name in lora)
    listed = sorted(lora)
    save_json(
        path / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": "|".join(map(re.escape, listed)) if bare else listed,
            "rank_pattern": {_exactly(n): p.rank for n, p in lora.items() if p.rank != rank},
            "alpha_pattern": {_exactly(n): p.alpha for n, p in lora.items() if p.alpha != alpha},
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
            "inference_mode": True,
        },
    )
    save_weights(path / WEIGHTS[0], {f"{_PREFIX}{n}": value for n, value in lora_state(lora).items()})


def save_weights(path: Path, tensors: dict[str, Any]) -> None:
    """A safetensors file as diffusers and peft write it."""
    from safetensors.torch import save_file

    # parts of a fused layer may share one A, which safetensors refuses to write twice
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})


def _exactly(name: str) -> str:
    """A pattern of peft's, which also look for their text after a dot within a name."""
    return name if "." in name else f"^{name}"


def _check_method(file: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{file} is of method {kind!r}; only plain LoRA ('LORA') can be read")
    others = sorted(name for name, value in config.items() if name not in _HARMLESS and value)
    if others:
        raise ValueError(
            f"{file} uses {first_few(f'{name}: {config[name]}' for name in others)}, which cannot be applied; only "
            "plain LoRA can be read"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{file} trained biases (bias: {config['bias']}), which cannot be applied; only LoRA can"
        )
    if config.get("init_lora_weights", True) not in _UNCHANGED_BASE:
        raise ValueError(
            f"{file} was started by {config['init_lora_weights']!r}, which changes the base's weights too; convert it "
            "to plain LoRA with peft first"
        )
    for name, least in (("r", 1), ("lora_alpha", 0)):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
            raise ValueError(f"{file}: {name} is {value!r}, expected a number; the LoRA's scale is not known")


def _with_alphas(path: Path, config: dict[str, Any], lora: Lora) -> dict[str, LoraPair]:
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    found, wrong = {}, []
    for name, pair in lora.items():
        rank = _of_pattern(ranks, name, config["r"])
        alpha = float(_of_pattern(alphas, name, config["lora_alpha"]))
        if rank != pair.rank:
            wrong.append(f"{name} has rank {pair.rank}, not {rank}")
        # rsLoRA divides by the rank's root
        alpha = alpha * math.sqrt(pair.rank) if config.get("use_rslora") else alpha
        found[name] = LoraPair(pair.a, pair.b, alpha)
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of {len(lora)} layers have another rank than {CONFIG} says: {first_few(wrong)}; the "
            "two files do not belong together"
        )
    return found


def _of_pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that is the name, or its end after a dot, as peft matches them."""
    found = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(found, default)
