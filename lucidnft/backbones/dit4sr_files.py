"""What DiT4SR is made of, and where its parts were released.

Names and licences are those of the repositories' pages and of the published code, which loads
<version>/transformer of acceptee/DiT4SR.  The size of its files could not be confirmed.
"""

from __future__ import annotations

from pathlib import Path

from lucidnft.checkpoint.places import repository_of
from lucidnft.checkpoint.required_files import Release, RequiredFile, model_part, single_file

SD3 = Release(
    "stabilityai/stable-diffusion-3.5-medium",
    "Stability AI Community",
    "gated: accept its licence on https://huggingface.co/stabilityai/stable-diffusion-3.5-medium and log in with "
    "`hf auth login`",
)
DIT4SR = Release("acceptee/DiT4SR", "Pi-Lab License 1.0 (non-commercial)")


def dit4sr_files(base: str, transformer: str, text: str | None) -> tuple[RequiredFile, ...]:
    """The files of a DiT4SR whose settings have these values; of SD 3.5 the transformer's sizes and the VAE.

    text: the file of text embeddings, if any.
    """
    if repository_of(transformer) is None and not Path(transformer).is_dir():
        weights = single_file(transformer, "transformer_path")
    else:
        weights = model_part(transformer, "*.safetensors", "transformer_path", (DIT4SR,))
    return (
        model_part(base, "transformer/config.json", "model_name_or_path", (SD3,)),
        model_part(base, "vae/*", "model_name_or_path", (SD3,), size=168_000_000),
        weights,
        *(() if text is None else (single_file(text, "text_embeddings"),)),
    )
