"""The options of the command that restores files."""

from __future__ import annotations

import argparse
import math
import sys


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def at_least_one(text: str) -> int:
    """A whole number, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def tile_size(text: str) -> int | str | None:
    """Pixels, "auto", or "none" for whole images."""
    return {"auto": "auto", "none": None}[text] if text in ("auto", "none") else at_least_one(text)


def up_to_one(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 .. 1")
    return value


ALIASES = {
    "--input_image": "--input",  # OSEDiff, PiSA-SR
    "--image_path": "--input",  # SeeSR, DiT4SR, DreamClear
    "--input_dir": "--input",  # TSD-SR
    "--control_image": "--input",  # LucidFlux
    "--output": "--output_dir",  # Real-ESRGAN, DiffBIR
    "--save_dir": "--output_dir",  # DreamClear, SUPIR
    "--outscale": "--upscale",  # Real-ESRGAN
    "--num_steps": "--num_inference_steps",  # LucidFlux
    "--steps": "--num_inference_steps",  # DiffBIR
    "--colorfix_type": "--align_method",  # StableSR
    "--color_align": "--align_method",  # DreamClear
}
"""Other tools' spellings that mean the same here."""

OTHER_MEANINGS = {
    "--latent_tiled_size": "counts latent cells; give --tile_size in output pixels",
    "--latent_tiled_overlap": "counts latent cells; give --tile_overlap in output pixels",
    "--vae_encoder_tiled_size": "has no own setting: --tile_size, in output pixels, holds for every stage",
    "--vae_decoder_tiled_size": "counts latent cells; --tile_size, in output pixels, holds for every stage",
    "--tile": "counts input pixels; give --tile_size in output pixels",
    "--tile_pad": "counts input pixels; give --tile_overlap in output pixels",
}
"""Other tools' flags that a user may try, and what they are here."""


def build_parser() -> argparse.ArgumentParser:
    """The options in groups, without aliases."""
    parser = argparse.ArgumentParser(
        description="Restore a photograph or a folder of them: one PNG per input, under the same stem.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("files").add_argument
    add("-i", "--input", required=True, metavar="PATH", help="an image, or a folder of images")
    add("-o", "--output_dir", required=True, metavar="DIR", help="where the PNGs go")
    add("--recursive", action="store_true", help="take sub-folders too, and keep them")
    add("--skip_existing", action="store_true", help="leave outputs that are there already")

    add = parser.add_argument_group("model").add_argument
    add("--checkpoint", default="base", metavar="PATH",
        help="policy.safetensors, base weights, a checkpoint folder, a run folder (its latest), PEFT folders, merged "
        "weights, or 'base' for that of --base_config, else the tiny base that ships (default)")  # fmt: skip
    add("--model_name_or_path", metavar="PATH", help="base weights of the adapter, if they have moved")
    add("--base_config", metavar="FILE",
        help="a run file whose model: section is the base, for a PEFT folder that does not say it")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index> (default auto)")
    add("--seed", type=int, default=0, help="noise depends on it and on the file's stem (default 0)")
    add(
        "--num_inference_steps",
        type=at_least_one,
        metavar="N",
        help="solver steps (default: the model's own)",
    )
    add("--solver", choices=("euler", "heun", "dpm2"), default="euler")

    add = parser.add_argument_group("size").add_argument
    add("-s", "--upscale", type=above_zero, metavar="FACTOR", help="output size over input size (default 4)")
    add("--width", type=at_least_one, metavar="PX", help="output width; the height follows")
    add("--height", type=at_least_one, metavar="PX", help="output height; the width follows")
    add("--fit", choices=("inside", "stretch"),
        help="width and height of another shape: the largest that fits, or distorted (default: refused)")  # fmt: skip
    add("--process_size", type=at_least_one, metavar="PX",
        help="shorter side that the model sees at least, in output pixels; enlarges small images")  # fmt: skip

    add = parser.add_argument_group("look").add_argument
    add("--fidelity", type=up_to_one, default=0.0, metavar="0..1",
        help="0: most detail (default); 1: most faithful, and smoother")  # fmt: skip
    add("--align_method", choices=("wavelet", "adain", "nofix"), default="nofix",
        help="take colours from the input; the tiny base keeps them by itself (default nofix)")  # fmt: skip
    add("--align_to", choices=("lr", "pre_restored"), default="lr",
        help="colours of the input, or of what LucidFlux's pre-restorer made of it (default lr)")  # fmt: skip

    add = parser.add_argument_group("memory").add_argument
    add("--tile_size", type=tile_size, default="auto", metavar="PX",
        help="output pixels a side of the tiles of large images; auto: from free memory (default); none")  # fmt: skip
    add("--tile_overlap", type=int, metavar="PX", help="output pixels that tiles share (default: an eighth)")
    add("--batch_size", type=at_least_one, default=4, metavar="N", help="tiles at a time (default 4)")
    add("--storage", choices=("device", "cpu"), default="device",
        help="where whole images live while their tiles are restored (default device)")  # fmt: skip
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; argparse ends the process with status 2 on a mistake."""
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        flag, equals, value = word.partition("=")
        words.append(ALIASES.get(flag, flag) + equals + value)
    parser = build_parser()
    args, unknown = parser.parse_known_args(words)
    for word in unknown:
        hint = OTHER_MEANINGS.get(word.partition("=")[0])
        parser.error(f"{word} {hint}" if hint else f"unrecognized arguments: {' '.join(unknown)}")
    by_sides = args.width is not None or args.height is not None
    if by_sides and args.upscale is not None:
        parser.error("--upscale and --width or --height both set the size; give one of them")
    if args.fit is not None and (args.width is None or args.height is None):
        parser.error("--fit decides between --width and --height; give both")
    if not by_sides:
        args.upscale = args.upscale or 4.0
    return args
