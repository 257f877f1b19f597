"""A base with an adapter added into its weights, as plain files that our own configuration reads again.

    tiny       weights.safetensors
    lucidflux  transformer/ and vae/ in diffusers' layout, lucidflux.safetensors (conditioner and connector)
    dit4sr     transformer/config.json and vae/ in diffusers' layout, dit4sr/ with the transformer's weights

DiT4SR's weights lie beside transformer/: diffusers would read them from there as plain SD3 and leave out what DiT4SR
added.  merged.json holds the `model:` section for the files.  Of a base with random weights everything is written; of
another the files that no adapter changes (pre-restorer, SigLIP, prompt or text embeddings) stay where the run had them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucidnft.backbones.lora_start import SHAPE_SETTINGS
from lucidnft.backbones.peft_folder import save_weights
from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.checkpoint import load_json, save_json

if TYPE_CHECKING:
    from lucidnft.backbones.base import Backbone
    from lucidnft.backbones.dit4sr import DiT4SRBackbone
    from lucidnft.backbones.lucidflux import LucidFluxBackbone

CARD = "merged.json"
CARD_FORMAT = "lucidnft.merged.1"


def write_merged(path: Path, backbone: Backbone, section: Mapping[str, Any], **card: Any) -> None:
    """Fill an empty folder with a backbone's weights.  section: the `model:` section it was built from.

    Raises:
        ValueError: a backbone that has no form to be written in.
    """
    if isinstance(backbone, TinyBackbone):
        backbone.save_pretrained(path / "weights.safetensors", **card)
        files = {"model_name_or_path": "weights.safetensors"}
    elif backbone.name == "lucidflux":
        files = _write_lucidflux(path, backbone, section["model_name_or_path"] is None)  # type: ignore[arg-type]
    elif backbone.name == "dit4sr":
        files = _write_dit4sr(path, backbone, section["model_name_or_path"] is None)  # type: ignore[arg-type]
    else:
        raise ValueError(f"merged weights of backbone {backbone.name!r} have no layout of files")
    left_out = (*SHAPE_SETTINGS, "adapter")
    model = {name: value for name, value in section.items() if name not in left_out}
    save_json(path / CARD, {"format": CARD_FORMAT, **card, "files": files, "model": {**model, **files}})


def is_merged(path: Path) -> bool:
    """Whether a folder holds merged weights."""
    return (path / CARD).is_file()


def merged_section(path: Path) -> dict[str, Any]:
    """The `model:` section of a merged folder, with the paths of its files.

    Raises:
        ValueError: merged.json is damaged or another's.
    """
    card = load_json(path / CARD)
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise ValueError(f"{path / CARD} is damaged, or not that of merged weights ({CARD_FORMAT})")
    return {**card["model"], **{name: str(path / file) for name, file in card["files"].items()}}


def _write_lucidflux(path: Path, backbone: LucidFluxBackbone, everything: bool) -> dict[str, str]:
    network, encoders = backbone.network, backbone.encoders
    network.transformer.save_pretrained(path / "transformer")
    encoders.vae.save_pretrained(path / "vae")
    parts = {**network.conditioner.released_state(), "connector": encoders.connector.state_dict()}
    named = {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
    save_weights(path / "lucidflux.safetensors", named)
    files = {"model_name_or_path": ".", "lucidflux_weights": "lucidflux.safetensors"}
    if everything:
        save_weights(path / "swinir.safetensors", encoders.swinir.state_dict())
        encoders.siglip.save_pretrained(path / "siglip")
        prompt = {"txt": backbone.prompt.text, "vec": backbone.prompt.pooled}
        save_weights(path / "prompt_embeddings.safetensors", prompt)
        files |= {
            "swinir_weights": "swinir.safetensors",
            "siglip_name_or_path": "siglip",
            "prompt_embeddings": "prompt_embeddings.safetensors",
        }
    return files


def _write_dit4sr(path: Path, backbone: DiT4SRBackbone, everything: bool) -> dict[str, str]:
    network, vae = backbone.network, backbone.autoencoder.vae
    network.save_pretrained(path / "dit4sr")
    fields = {name: value for name, value in dict(network.config).items() if not name.startswith("_")}
    (path / "transformer").mkdir()
    save_json(path / "transformer" / "config.json", {"_class_name": "SD3Transformer2DModel", **fields})
    vae.save_pretrained(path / "vae")
    files = {"model_name_or_path": ".", "transformer_path": "dit4sr"}
    if everything:
        text = {name: value[None] for name, value in backbone.text.fields().items()}
        save_weights(path / "text_embeddings.safetensors", text)
        files["text_embeddings"] = "text_embeddings.safetensors"
    return files
