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


def shard(text: str) -> tuple[int, int]:
    """ "2/8" -> (1, 8): the second of eight parts, counted from 0."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not i/n with i from 1 to n, e.g. 2/8")
    return int(number) - 1, int(count)


def image_format(text: str) -> str:
    """A format's name; jpg and tif are understood."""
    name = {"jpg": "jpeg", "tif": "tiff"}.get(text.lower(), text.lower())
    if name not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text} is not one of {', '.join(FORMATS)}")
    return name


def percent(text: str) -> int:
    """A whole number from 1 to 100."""
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not in 1 .. 100")
    return value


def up_to_one(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 .. 1")
    return value


FORMATS = ("png", "jpeg", "webp", "tiff", "bmp", "auto")

SHIPPED_MAPS = "lucid_consistency,quality_net,lr_fidelity"
"""What --save_map draws when it names nothing: those of lucidnft.sample.maps."""

ALIASES = {
    "--input_image": "--input",  # OSEDiff, PiSA-SR
    "--image_path": "--input",  # SeeSR, DiT4SR, DreamClear
    "--input_dir": "--input",  # TSD-SR
    "--control_image": "--input",  # LucidFlux
    "--img_dir": "--input",  # SUPIR
    "--in_path": "--input",  # ResShift, InvSR
    "--init-img": "--input",  # StableSR
    "--output": "--output_dir",  # Real-ESRGAN, DiffBIR
    "--save_dir": "--output_dir",  # DreamClear, SUPIR
    "--out_path": "--output_dir",  # ResShift, InvSR
    "--outdir": "--output_dir",  # StableSR
    "--ext": "--format",  # Real-ESRGAN
    "--outscale": "--upscale",  # Real-ESRGAN
    "--scale": "--upscale",  # ResShift
    "--num_steps": "--num_inference_steps",  # LucidFlux
    "--steps": "--num_inference_steps",  # DiffBIR
    "--sample_times": "--num_samples",  # SeeSR
    "--n_samples": "--num_samples",  # DiffBIR
    "--mixed_precision": "--dtype",  # SeeSR, OSEDiff, PiSA-SR, TSD-SR
    "--precision": "--dtype",  # DiffBIR
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
    "--suffix": "has no place here: outputs keep the names of their inputs; give another --output_dir",
    "--fp32": "is --dtype fp32",
    "--offload": "has no counterpart: --storage cpu, --tile_size and --dtype bound memory",
}
"""Other tools' flags that a user may try, and what they are here."""


def build_parser() -> argparse.ArgumentParser:
    """The options in groups, without aliases."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s -i PATH -o DIR [options]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34),
        description="Restore a photograph or many: one picture per input, under the same stem, of the size asked for.",
        allow_abbrev=False,
    )
    _add_files(parser.add_argument_group("files"))
    _add_model(parser.add_argument_group("model"))
    _add_size(parser.add_argument_group("size"))
    _add_look(parser.add_argument_group("look"))
    _add_checks(parser.add_argument_group("choose and check"))
    _add_speed(parser.add_argument_group("memory and speed"))
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-i", "--input", required=True, metavar="PATH",
        help="image, folder, quoted glob, or .txt file with a path a line")  # fmt: skip
    add("-o", "--output_dir", required=True, metavar="DIR", help="where the results go")
    add("--recursive", action="store_true", help="take sub-folders too, and keep them")
    add(
        "--skip_existing",
        action="store_true",
        help="leave outputs that are there: resumes a run",
    )
    add("--format", type=image_format, default="png", metavar="NAME",
        help="png (default), jpeg, webp, tiff, bmp; auto: the input's")  # fmt: skip
    add("--bit_depth", choices=("auto", "8", "16"), default="auto", help="auto: the input's (default)")
    add("--quality", type=percent, default=95, metavar="1..100", help="of JPEG and WebP (default 95)")
    add("--keep_metadata", action="store_true", help="copy EXIF and XMP (they may say who and where)")
    add("--full_names", action="store_true", help="name outputs a.jpg.png, where stems collide")
    add("--shard", type=shard, metavar="I/N", help="only the I-th of N parts, for batch systems")


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--checkpoint", default="base", metavar="PATH",
        help="policy.safetensors, a run or checkpoint folder, PEFT folders, merged or base weights, or 'base': that of "
        "--base_config, else the tiny base that ships (default)")  # fmt: skip
    add("--model_name_or_path", metavar="PATH", help="base weights of the adapter, if they have moved")
    add("--base_config", metavar="FILE",
        help="a run file whose model: section is the base")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index> (default auto)")
    add("--seed", type=int, default=0, help="noise depends on it and on the file's stem (default 0)")
    add(
        "--num_inference_steps",
        type=at_least_one,
        metavar="N",
        help="solver steps (default: the model's own)",
    )
    add("--solver", choices=("euler", "heun", "dpm2"), default="euler")


def _add_size(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-s", "--upscale", type=above_zero, metavar="FACTOR", help="output size over input size (default 4)")
    add("--width", type=at_least_one, metavar="PX", help="output width; the height follows")
    add("--height", type=at_least_one, metavar="PX", help="output height; the width follows")
    add("--fit", choices=("inside", "stretch"),
        help="for both sides of another shape (default: refused)")  # fmt: skip
    add("--process_size", type=at_least_one, metavar="PX",
        help="enlarge small images for the model: its shorter side")  # fmt: skip


def _add_look(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--fidelity", type=up_to_one, default=0.0, metavar="0..1",
        help="0: most detail (default); 1: most faithful, and smoother")  # fmt: skip
    add("--align_method", choices=("wavelet", "adain", "nofix"), default="nofix",
        help="take colours from the input (default nofix)")  # fmt: skip
    add("--align_to", choices=("lr", "pre_restored"), default="lr",
        help="or from LucidFlux's pre-restored image (default lr)")  # fmt: skip


def _add_checks(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--num_samples",
        type=at_least_one,
        default=1,
        metavar="N",
        help="candidates drawn of each image (default 1)",
    )
    add("--select_by", metavar="REWARDS",
        help="which is kept, e.g. lucid_consistency=2,quality_net")  # fmt: skip
    add("--keep_candidates", action="store_true", help="write the other candidates to DIR/candidates")
    add(
        "--metrics",
        metavar="REWARDS",
        help="rewards or pyiqa metrics to write to DIR/metrics.csv",
    )
    add("--save_map", nargs="?", const=SHIPPED_MAPS, metavar="REWARDS",
        help="draw where outputs are at fault into DIR/maps")  # fmt: skip
    add("--compare", action="store_true", help="write DIR/compare.html: inputs and outputs under a slider")


def _add_speed(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--tile_size", type=tile_size, default="auto", metavar="PX",
        help="side in output pixels; auto: by free memory (default); none")  # fmt: skip
    add("--tile_overlap", type=int, metavar="PX", help="output pixels that tiles share (default: an eighth)")
    add("--batch_size", type=at_least_one, default=4, metavar="N",
        help="images of one size, or tiles, at a time (default 4)")  # fmt: skip
    add("--storage", choices=("device", "cpu"), default="device",
        help="where whole images of tiles live (default device)")  # fmt: skip
    add("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
        help="auto: bf16 for large models on a GPU (default)")  # fmt: skip
    add(
        "--compile",
        action="store_true",
        help="compile the network: slow at first; for long runs",
    )


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
    if args.bit_depth == "16" and args.format in ("jpeg", "webp", "bmp"):
        parser.error(f"--bit_depth 16: {args.format} holds 8 bits; choose --format png or tiff")
    if not by_sides:
        args.upscale = args.upscale or 4.0
    if args.num_samples > 1 and args.select_by is None:
        parser.error("--num_samples draws candidates, --select_by says which to keep; give both")
    if args.num_samples == 1 and (args.select_by is not None or args.keep_candidates):
        parser.error("--select_by and --keep_candidates need --num_samples of 2 or more")
    if args.compare and args.shard is not None:
        parser.error(
            "--compare makes one page of all images: give it without --shard, with --skip_existing, at the end"
        )
    return args
