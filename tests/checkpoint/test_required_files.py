"""What a config needs, whether it is there, and how it is said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import torch
from safetensors.torch import save as tensors_to_bytes

from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from lucidnft.backbones.tiny import TinyBackboneConfig
from lucidnft.checkpoint.places import find_folder, repository_of
from lucidnft.checkpoint.required_files import (
    RequiredFile,
    check_files,
    describe_required,
    format_size,
    missing_files,
    required_files,
    state_of,
)
from lucidnft.config import load_config
from lucidnft.rewards.clip import ClipSimilarityConfig, ClipTextConfig
from lucidnft.rewards.consistency import LucidConsistencyConfig
from lucidnft.rewards.full_reference import FullReferenceConfig
from lucidnft.rewards.iqa import IQAConfig
from lucidnft.rewards.vision_towers import HfVisionEmbedderConfig, OpenClipEmbedderConfig
from lucidnft.schema import ConfigModel
from tests.small_dit4sr import save_small_dit4sr, small_dit4sr
from tests.small_hub import SmallHub, files_in

CONFIGS = Path(__file__).parents[2] / "configs"
TENSORS = tensors_to_bytes({"a": torch.arange(6.0)})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallHub:
    monkeypatch.chdir(tmp_path)
    return SmallHub(tmp_path, monkeypatch)


def sources(config: ConfigModel) -> list[tuple[str, str, str]]:
    return [(f.source, f.file, f.setting) for f in required_files(config)]


def test_lucidflux_needs_flux_without_its_text_encoders(hub: SmallHub) -> None:
    config = LucidFluxBackboneConfig()
    flux, siglip = "black-forest-labs/FLUX.1-dev", "google/siglip2-so400m-patch16-512"
    assert sources(config) == [
        (flux, "transformer/*", "model_name_or_path"),
        (flux, "vae/*", "model_name_or_path"),
        (siglip, "*", "siglip_name_or_path"),
        ("W2GenAI/LucidFlux", "lucidflux.pth", "lucidflux_weights"),
        ("lxq007/DiffBIR", "general_swinir_v1.ckpt", "swinir_weights"),
        ("W2GenAI/LucidFlux", "prompt_embeddings.pt", "prompt_embeddings"),
    ]
    files = required_files(config)
    places = [file.place for file in files]
    assert places[0] == "Hugging Face cache" and places[3] == "weights/lucidflux/lucidflux.pth"
    assert (
        "non-commercial" in files[0].licence.lower() and f"https://huggingface.co/{flux}" in files[0].accept
    )
    assert [file.size for file in files][-1] is None  # not confirmed, so not said
    assert missing_files(config) == files


def test_sizes_that_are_said_follow_from_the_numbers_of_parameters() -> None:
    from lucidnft.backbones.lucidflux_architecture import LucidFluxArchitecture
    from lucidnft.backbones.lucidflux_weights import build_encoders, build_network

    architecture = LucidFluxArchitecture()
    with torch.device("meta"):
        network, encoders = build_network(architecture), build_encoders(architecture)

    def numbers(module: Any) -> int:
        return sum(value.numel() for value in module.state_dict().values())

    sizes = {file.file: file.size for file in required_files(LucidFluxBackboneConfig())}
    conditioner = 2 * numbers(network.conditioner) + 4 * numbers(encoders.connector)
    assert sizes["transformer/*"] == pytest.approx(2 * numbers(network.transformer), rel=0.001)
    assert sizes["vae/*"] == pytest.approx(2 * numbers(encoders.vae), rel=0.01)
    assert sizes["lucidflux.pth"] == pytest.approx(conditioner, rel=0.001)
    assert sizes["general_swinir_v1.ckpt"] == pytest.approx(4 * numbers(encoders.swinir), rel=0.01)


def test_dit4sr_needs_the_sizes_and_the_vae_of_sd3(hub: SmallHub) -> None:
    sd3 = "stabilityai/stable-diffusion-3.5-medium"
    released = DiT4SRBackboneConfig(
        model_name_or_path=sd3, transformer_path="acceptee/DiT4SR/dit4sr_q/transformer", lr_key="noise"
    )
    assert sources(released) == [
        (sd3, "transformer/config.json", "model_name_or_path"),
        (sd3, "vae/*", "model_name_or_path"),
        ("acceptee/DiT4SR", "dit4sr_q/transformer/*.safetensors", "transformer_path"),
    ]
    own = released.model_copy(
        update={"transformer_path": "mine/q.safetensors", "text_embeddings": "text.safetensors"}
    )
    assert sources(own)[2:] == [
        ("your own file", "q.safetensors", "transformer_path"),
        ("your own file", "text.safetensors", "text_embeddings"),
    ]


def test_random_weights_and_what_ships_need_nothing() -> None:
    nothing = [
        LucidFluxBackboneConfig(model_name_or_path=None),
        DiT4SRBackboneConfig(model_name_or_path=None, lr_key="lr"),
        TinyBackboneConfig(),
        LucidConsistencyConfig(),
        IQAConfig(metric="psnr"),
    ]
    assert [required_files(config) for config in nothing] == [()] * len(nothing)
    assert describe_required(()) == "no files beside those of this package"


def test_files_and_folders_of_one_s_own_are_never_fetched(hub: SmallHub) -> None:
    config = LucidFluxBackboneConfig(
        model_name_or_path="./flux", lucidflux_weights="weights/lucidflux/lucidflux.safetensors"
    )
    files = {file.place: file for file in required_files(config)}
    for place in ("flux/transformer/*", "flux/vae/*", "weights/lucidflux/lucidflux.safetensors"):
        assert not files[place].fetched and files[place].source == "your own file"
    with pytest.raises(FileNotFoundError) as error:
        check_files(config, "run.yaml", "run.yaml", "a=1 2")
    assert "run.yaml needs files of which 6 are not here or not whole:\n" in str(error.value)
    assert "fetch them with: lucidnft-download run.yaml 'a=1 2'\n" in str(error.value)
    assert "nothing fetches flux/vae/*: put it there, or change model_name_or_path" in str(error.value)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (IQAConfig(metric="musiq"), [("chaofengc/IQA-PyTorch-Weights", "musiq_koniq_ckpt-e95806b9.pth")]),
        (
            IQAConfig(metric="clipiqa+"),
            [
                ("chaofengc/IQA-PyTorch-Weights", "CLIP-IQA%2B_learned_prompts-603f3273.pth"),
                ("openaipublic.azureedge.net", "RN50.pt"),
            ],
        ),
        (FullReferenceConfig(metric="psnr"), []),
        (
            LucidConsistencyConfig(embedder={"type": "qwen3_vl"}, head="heads/proj_head.pt"),
            [("W2GenAI/LucidNFT", "proj_head.pt"), ("Qwen/Qwen3-VL-Embedding-8B", "*")],
        ),
        (
            LucidConsistencyConfig(embedder={"type": "qwen3_vl"}, head="mine.safetensors"),
            [("your own file", "mine.safetensors"), ("Qwen/Qwen3-VL-Embedding-8B", "*")],
        ),
        (HfVisionEmbedderConfig(), [("facebook/dinov2-base", "*")]),
        (
            ClipSimilarityConfig(),
            [("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors")],
        ),
        (ClipTextConfig(pretrained="./clip.bin"), [("your own file", "clip.bin")]),
    ],
)
def test_rewards_name_their_weights(
    hub: SmallHub, config: ConfigModel, wanted: list[tuple[str, str]]
) -> None:
    assert [source[:2] for source in sources(config)] == wanted
    assert len(missing_files(config)) == len(wanted)


@pytest.mark.parametrize("config", [IQAConfig(metric="lpips"), OpenClipEmbedderConfig(pretrained="openai")])
def test_what_a_library_fetches_itself_is_said_but_stops_no_run(hub: SmallHub, config: ConfigModel) -> None:
    assert "itself when the reward is built" in describe_required(required_files(config))
    assert missing_files(config) == ()


def test_where_pyiqa_looks_is_where_its_weights_are_expected(hub: SmallHub) -> None:
    pyiqa = pytest.importorskip("pyiqa")
    from pyiqa.archs import clip_model, clipiqa_arch, musiq_arch
    from pyiqa.utils.download_util import DEFAULT_CACHE_DIR

    assert pyiqa.list_models()
    musiq, prompts, clip = (
        *required_files(IQAConfig(metric="musiq")), *required_files(IQAConfig(metric="clipiqa+"))
    )  # fmt: skip
    assert str(musiq.folder) == str(prompts.folder) == DEFAULT_CACHE_DIR
    assert musiq_arch.default_model_urls["koniq10k"].endswith(f"{musiq.repository}/resolve/main/{musiq.file}")
    assert clipiqa_arch.default_model_urls["clipiqa+"].endswith(f"/{prompts.file}")
    assert (prompts.file, prompts.released_as) == (quote(prompts.released_as), unquote(prompts.file))
    assert clip_model._MODELS["RN50"] == clip.url


def test_a_run_file_lists_all_sections_by_their_settings(hub: SmallHub, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "{task: nft, model: {type: lucidflux}, data: {type: lr_folder}, rewards: {lc: {type: lucid_consistency, "
        "embedder: {type: qwen3_vl}, head: proj_head.pt}, iq: {type: iqa, metric: musiq}, more: {type: iqa, "
        "metric: musiq}}}"
    )
    settings = [file.setting for file in required_files(load_config(path))]
    assert settings[0] == "model.model_name_or_path" and len(settings) == 9  # musiq's file once
    assert settings[-3:] == ["rewards.lc.head", "rewards.lc.embedder.model_name_or_path", "rewards.iq.metric"]


RUN_FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "eval")


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_config_says_what_it_needs(hub: SmallHub, path: Path) -> None:
    files = required_files(load_config(path))
    assert bool(files) == (path.parent.name != "tiny")


def test_embeddings_that_may_be_cached_stop_no_run(hub: SmallHub) -> None:
    config = load_config(CONFIGS / "lucidflux" / "consistency.yaml")
    (embedder,) = required_files(config)
    assert (embedder.file, embedder.setting) == ("*", "data.embedder.model_name_or_path")
    assert missing_files(config) == ()
    asked = load_config(CONFIGS / "lucidflux" / "consistency.yaml", ["data.dimension=null"])
    assert [file.setting for file in missing_files(asked)] == ["data.embedder.model_name_or_path"]


def cut(content: bytes) -> bytes:
    return content[:-1]


def zipped() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    return buffer.getvalue()


INDEX = b'{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}'
CONFIG = b"{}"


@pytest.mark.parametrize(
    ("file", "there", "state"),
    [
        ("x.pth", {}, "missing"),
        ("x.pth", {"x.pth": zipped()}, "present"),
        ("x.pth", {"x.pth": cut(zipped())}, "incomplete"),
        ("x.pth", {"x.pth": b""}, "incomplete"),
        ("x.safetensors", {"x.safetensors": cut(TENSORS)}, "incomplete"),
        ("x.safetensors", {"x.bin": b"1"}, "present"),
        ("vae/*", {"vae/config.json": CONFIG}, "missing"),
        ("vae/*", {"vae/m.safetensors": TENSORS}, "missing"),
        ("vae/*", {"vae/config.json": CONFIG, "vae/m.safetensors": TENSORS}, "present"),
        ("vae/*", {"vae/config.json": cut(CONFIG), "vae/m.safetensors": TENSORS}, "incomplete"),
        ("vae/*.safetensors", {"vae/m.safetensors": TENSORS}, "present"),
        ("vae/*.safetensors", {"m.safetensors": TENSORS}, "missing"),
        ("*", {"config.json": CONFIG, "pytorch_model.bin": zipped()}, "present"),
        ("*.safetensors", {"m.safetensors.index.json": INDEX, "m-1.safetensors": TENSORS}, "missing"),
        (
            "*.safetensors",
            {"m.safetensors.index.json": INDEX, "m-1.safetensors": TENSORS, "m-2.safetensors": TENSORS},
            "present",
        ),
        (
            "*.safetensors",
            {"m.safetensors.index.json": INDEX, "m-1.safetensors": TENSORS, "m-2.safetensors": cut(TENSORS)},
            "incomplete",
        ),
        ("*.safetensors", {"m.safetensors.index.json": b"{}", "m-1.safetensors": TENSORS}, "incomplete"),
    ],
)
def test_what_is_not_whole_does_not_count_as_there(
    hub: SmallHub, tmp_path: Path, file: str, there: dict[str, bytes], state: str
) -> None:
    for root in (tmp_path / "own", hub.snapshot("some/model")):
        for name, content in there.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    also = ("x.bin",) if file == "x.safetensors" else ()
    own = RequiredFile(file, tmp_path / "own", "s", also=also)
    cached = RequiredFile(file, None, "s", "some/model", also=also)
    assert (state_of(own), state_of(cached)) == (state, state)


def test_the_table_has_a_line_for_each_file_and_says_what_to_accept_once(hub: SmallHub) -> None:
    lines = describe_required(required_files(LucidFluxBackboneConfig())).splitlines()
    assert len(lines) == 1 + 6 + 1
    assert lines[0].split() == ["from", "file", "about", "licence", "state", "expected", "in"]
    assert "transformer/*" in lines[1] and "23.80 GB" in lines[1] and "missing" in lines[1]
    assert "unknown" in lines[6] and "prompt_embeddings.pt" in lines[6]
    assert lines[7].strip().startswith("black-forest-labs/FLUX.1-dev: gated: accept")
    assert [format_size(n) for n in (None, 7, 63_000_000, 2500)] == ["unknown", "7 B", "63 MB", "2 kB"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("owner/name", ("owner/name", "")),
        ("owner/name/q/transformer", ("owner/name", "q/transformer")),
        ("weights/dit4sr", None),
        ("./owner/name", None),
        ("/owner/name", None),
        ("~/owner/name", None),
        ("owner/name.safetensors", None),
        ("owner", None),
        ("owner//name", None),
        ("owner/a..b", None),
        ("there/too", None),
    ],
)
def test_names_are_local_paths_or_repositories(
    hub: SmallHub, tmp_path: Path, name: str, place: tuple[str, str] | None
) -> None:
    (tmp_path / "there" / "too").mkdir(parents=True)
    assert repository_of(name) == place


@pytest.mark.usefixtures("one_thread")
def test_dit4sr_is_built_from_the_cache_by_the_names_of_repositories(hub: SmallHub, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    settings = save_small_dit4sr(tmp_path / "saved")
    named = {"model_name_or_path": "some/sd3", "transformer_path": "some/dit4sr/q/transformer"}
    with pytest.raises(FileNotFoundError, match="no repository some/sd3 in the Hugging Face cache"):
        DiT4SRBackboneConfig(**{**settings, **named}).build()
    for part, repository, under in (("sd3", "some/sd3", ""), ("dit4sr", "some/dit4sr", "q/transformer/")):
        for name, content in files_in(tmp_path / "saved" / part, under).items():
            file = hub.snapshot(repository) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    built = DiT4SRBackboneConfig(**{**settings, **named})
    assert missing_files(built) == ()
    assert built.build().fingerprint == small_dit4sr("noise", negative=True).fingerprint
    assert find_folder("some/sd3", "s") == hub.snapshot("some/sd3")
