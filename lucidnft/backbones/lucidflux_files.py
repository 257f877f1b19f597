"""What LucidFlux is made of, and where its parts were released.

Names and licences are those of the repositories' pages and of the release's own download script; sizes follow from
the numbers of parameters: FLUX and its autoencoder in bfloat16, SigLIP and SwinIR in float32, of lucidflux.pth
the connector in float32 and the rest in bfloat16.
"""

from __future__ import annotations

from lucidnft.checkpoint.required_files import Release, RequiredFile, model_part, single_file

_FLUX_LICENCE = "FLUX.1 [dev] Non-Commercial"
FLUX = Release(
    "black-forest-labs/FLUX.1-dev",
    _FLUX_LICENCE,
    "gated: accept its licence on https://huggingface.co/black-forest-labs/FLUX.1-dev and log in with `hf auth login`",
)
LUCIDFLUX = Release("W2GenAI/LucidFlux", _FLUX_LICENCE)
DIFFBIR = Release("lxq007/DiffBIR", "Apache-2.0")
SIGLIP = Release("google/siglip2-so400m-patch16-512", "Apache-2.0")

DEFAULT_WEIGHTS = "weights/lucidflux/lucidflux.pth"
DEFAULT_SWINIR = "weights/lucidflux/general_swinir_v1.ckpt"
DEFAULT_PROMPT = "weights/lucidflux/prompt_embeddings.pt"


def lucidflux_files(
    flux: str, siglip: str, *, lucidflux_weights: str, swinir_weights: str, prompt_embeddings: str
) -> tuple[RequiredFile, ...]:
    """The files of a LucidFlux whose settings have these values; of FLUX.1-dev the text encoders are not needed."""
    return (
        model_part(flux, "transformer/*", "model_name_or_path", (FLUX,), size=23_803_000_000),
        model_part(flux, "vae/*", "model_name_or_path", (FLUX,), size=168_000_000),
        model_part(siglip, "*", "siglip_name_or_path", (SIGLIP,), size=4_546_000_000),
        single_file(
            lucidflux_weights, "lucidflux_weights", LUCIDFLUX, name="lucidflux.pth", size=3_391_000_000
        ),
        single_file(
            swinir_weights, "swinir_weights", DIFFBIR, name="general_swinir_v1.ckpt", size=63_000_000
        ),
        single_file(prompt_embeddings, "prompt_embeddings", LUCIDFLUX, name="prompt_embeddings.pt"),
    )
