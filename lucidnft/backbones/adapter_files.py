"""Adapters on the disk: a policy.safetensors, or PEFT folders in the layout of the LucidNFT release.

    OUTPUT_DIR/lora_dit/{adapter_config.json, adapter_model.safetensors}
    OUTPUT_DIR/lora_condition/ ...      LucidFlux only
    OUTPUT_DIR/lucidnft.json            of ours: the base it belongs to, the layers, and where it comes from

Nothing here needs the base weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucidnft import __version__
from lucidnft.backbones.lora_names import TRUNK, Names, folder_names, folders_of, from_folders, to_folders
from lucidnft.backbones.lora_start import SHAPE_SETTINGS
from lucidnft.backbones.lora_values import Lora, check_modules, lora_from_tensors, lora_shapes, weight_shapes
from lucidnft.backbones.peft_folder import PeftFolder, is_peft_folder, read_peft_folder, write_peft_folder
from lucidnft.checkpoint import load_header, load_json, load_tensors, save_json
from lucidnft.checkpoint.tensor_files import first_few

if TYPE_CHECKING:
    from lucidnft.backbones.base import Backbone

POLICY_FORMAT = "lucidnft.policy.1"
CARD = "lucidnft.json"
CARD_FORMAT = "lucidnft.adapter.1"


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as it was found, by the names of our networks' modules."""

    path: Path
    backbone: str  # the family, e.g. "lucidflux"
    lora: Lora
    card: Mapping[str, Any]  # what the file says of itself; empty for somebody else's PEFT folder
    folders: Mapping[str, PeftFolder] = field(default_factory=dict)

    def check_base(self, backbone: Backbone) -> None:
        """Raise a ValueError unless it belongs on this backbone, as far as it says so, with all of its layers."""
        if self.backbone != backbone.name:
            raise ValueError(
                f"{self.path} is an adapter for backbone {self.backbone!r}, not for {backbone.name!r}"
            )
        trained_on = self.card.get("base_fingerprint")
        if trained_on and trained_on != backbone.fingerprint:
            raise ValueError(
                f"{self.path} was trained on base weights {trained_on}, but these are {backbone.fingerprint}; give the "
                "base it was trained on"
            )
        check_modules(backbone.network, self.lora)
        found = {name: list(folder.lora) for name, folder in self.folders.items()}
        expected = folder_names(self.backbone, weight_shapes(backbone.network), like=found)
        for name, folder in self.folders.items():
            folder.check_targets(expected[name])


def read_adapter(path: str | Path, backbone: str) -> StoredAdapter:
    """The adapter in a policy.safetensors, in a folder of PEFT folders, or in one PEFT folder (the trunk's).

    backbone: the family of a folder that does not say it.

    Raises:
        FileNotFoundError: nothing is there, or half a folder.
        ValueError: not an adapter, damaged, or of a kind that is not supported.
    """
    path = Path(path)
    if path.is_file():
        return read_policy_file(path)
    if not path.exists():
        raise FileNotFoundError(f"adapter {path} does not exist; give a PEFT folder or a policy.safetensors")
    if not is_adapter_folder(path):
        raise ValueError(
            f"{path} holds no adapter: neither PEFT's files nor folders {' and '.join(folders_of('lucidflux'))} with "
            "them; of a run, give the policy.safetensors in a checkpoint folder"
        )
    card = read_card(path)
    backbone = card["backbone"]["type"] if card else backbone
    shapes = card.get("lora")
    wanted = _folders(path, backbone, card.get("folders"))
    folders = {name: read_peft_folder(folder) for name, folder in wanted.items()}
    ranks = {name: int(rank) for name, (rank, _) in shapes.items()} if shapes else None
    lora = from_folders(backbone, {n: f.lora for n, f in folders.items()}, str(path), ranks)
    if shapes is not None:
        _check_listed(path, CARD, lora, shapes)
    return StoredAdapter(path, backbone, lora, card, folders)


def read_policy_file(file: Path) -> StoredAdapter:
    """The adapter in a policy.safetensors.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is another.
    """
    header = load_header(file)
    if header.get("format") != POLICY_FORMAT:
        raise ValueError(
            f"{file} has format {header.get('format')!r} in its header, expected {POLICY_FORMAT}"
        )
    missing = [key for key in ("backbone", "base_fingerprint") if not header.get(key)]
    if missing:
        raise ValueError(
            f"{file} does not say {' and '.join(missing)} in its header; it is damaged or hand-made"
        )
    tensors, _ = load_tensors(file)
    section, shapes = header["backbone"], header.get("lora")
    alphas: Any = None
    if shapes is not None:
        alphas = {name: float(alpha) for name, (_, alpha) in shapes.items()}
    elif "lora_alpha" in section:
        alphas = float(section["lora_alpha"])
    if alphas is None:
        raise ValueError(f"{file} does not say lora_alpha in its header; it is damaged or hand-made")
    lora = lora_from_tensors(str(file), tensors, alphas)
    if shapes is not None:
        _check_listed(file, "header", lora, shapes)
    return StoredAdapter(file, section.get("type"), lora, header)


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder is meant as an exported adapter, whole or not."""
    folders = (path, *(path / name for name in folders_of("lucidflux")))
    return path.is_dir() and (any(map(is_peft_folder, folders)) or (path / CARD).is_file())


def read_card(path: Path) -> dict[str, Any]:
    """What lucidnft.json in a folder says; {} where there is none.

    Raises:
        ValueError: it is damaged, or of another kind of folder.
    """
    if not (path / CARD).is_file():
        return {}
    card = load_json(path / CARD)
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise ValueError(f"{path / CARD} has format {found!r}, expected {CARD_FORMAT} of an exported adapter")
    missing = [name for name in ("backbone", "folders", "lora") if not card.get(name)]
    if not missing and not card["backbone"].get("type"):
        missing = ["backbone.type"]
    if missing:
        raise ValueError(f"{path / CARD} does not say {' and '.join(missing)}; it is damaged or hand-made")
    return card


def write_adapter(path: Path, stored: StoredAdapter, names: Names) -> None:
    """Fill an empty folder with an adapter's PEFT folders and its card."""
    folders = to_folders(stored.backbone, stored.lora, names)
    section = stored.card.get("backbone") or {}
    for name, lora in folders.items():
        (path / name).mkdir()
        write_peft_folder(path / name, lora, base=section.get("model_name_or_path"))
    left_out = (*SHAPE_SETTINGS, "adapter")
    card = {
        "format": CARD_FORMAT,
        "library_version": __version__,
        "names": names,
        "folders": list(folders),
        "backbone": {n: v for n, v in section.items() if n not in left_out},
        "base_fingerprint": stored.card.get("base_fingerprint"),
        "seed": seed_of(stored.card),
        "step": stored.card.get("step"),
        "lora": lora_shapes(stored.lora),
    }
    save_json(path / CARD, card)


def seed_of(card: Mapping[str, Any]) -> int:
    """The seed of the run that made it, which matters when the base itself was drawn from the seed."""
    return int(card.get("seed") or (card.get("config") or {}).get("seed", 0))


def _check_listed(path: Path, where: str, lora: Lora, shapes: Mapping[str, Any]) -> None:
    """Raise a ValueError unless exactly the listed layers are there, with the listed ranks."""
    missing, extra = sorted(shapes.keys() - lora.keys()), sorted(lora.keys() - shapes.keys())
    wrong = sorted(name for name in shapes.keys() & lora.keys() if shapes[name][0] != lora[name].rank)
    if missing or extra or wrong:
        raise ValueError(
            f"{path} does not hold the layers that its {where} lists: {len(missing)} missing ({first_few(missing)}), "
            f"{len(extra)} unknown ({first_few(extra)}), {len(wrong)} of another rank ({first_few(wrong)}); it was "
            "changed or cut short"
        )


def _folders(path: Path, backbone: str, listed: Iterable[str] | None) -> dict[str, Path]:
    """{name: PEFT folder} of an adapter's folder."""
    if is_peft_folder(path):
        return {TRUNK: path}
    if listed is None:
        # as for the release's script, the trunk's must be there
        listed = [name for name in folders_of(backbone) if name == TRUNK or (path / name).exists()]
    others = [name for name in folders_of("lucidflux") if name not in listed and (path / name).exists()]
    if others:
        raise ValueError(
            f"{path} has a folder {others[0]}, which does not belong to an adapter for {backbone!r}"
        )
    return {name: path / name for name in listed}
