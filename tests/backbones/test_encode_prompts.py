"""Prompts are encoded into the very files that the settings read, by tiny random text encoders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from lucidnft.backbones import encode_prompts as module
from lucidnft.backbones.dit4sr_text import TextEmbeddings
from lucidnft.backbones.lucidflux_weights import read_prompt_embeddings
from lucidnft.checkpoint import load_header
from lucidnft.checkpoint.released_files import load_released

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP = CLIPTextConfig(
    vocab_size=99, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    projection_dim=8, eos_token_id=2, bos_token_id=1, pad_token_id=0,
)  # fmt: skip
T5 = T5Config(vocab_size=99, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)


class Letters:
    """A tokenizer of letters."""

    model_max_length = 77

    def __call__(self, texts: Any, **options: Any) -> SimpleNamespace:
        texts = [texts] if isinstance(texts, str) else texts
        length = options.get("max_length", 77) if options.get("padding") == "max_length" else 9
        rows = [[3 + ord(c) % 90 for c in text][: length - 1] + [2] for text in texts]
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return SimpleNamespace(input_ids=ids)

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    added_tokens_encoder: dict[str, int] = {}

    def batch_decode(self, ids: Any) -> list[str]:
        return [""]


def built(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


# without transformer and VAE, as `from_pretrained(..., transformer=None, vae=None)` makes them
def sd3() -> StableDiffusion3Pipeline:
    clip = built(CLIPTextModelWithProjection, CLIP)
    return StableDiffusion3Pipeline(
        transformer=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=clip, text_encoder_2=clip, text_encoder_3=built(T5EncoderModel, T5),
        tokenizer=Letters(), tokenizer_2=Letters(), tokenizer_3=Letters(),
    )  # fmt: skip


def flux() -> FluxPipeline:
    return FluxPipeline(
        transformer=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=built(CLIPTextModel, CLIP), text_encoder_2=built(T5EncoderModel, T5),
        tokenizer=Letters(), tokenizer_2=Letters(),
    )  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, pipeline: Any, target: Path, *arguments: str) -> int:
    asked = {}

    def load(model: str, **options: Any) -> Any:
        asked.update(options, model=model)
        return pipeline

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)
    status = module.main(["some/model", str(target), *arguments])
    assert not asked or (asked["transformer"], asked["vae"], asked["model"]) == (None, None, "some/model")
    return status


def test_dit4sr_reads_what_sd3_s_encoders_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "text.safetensors"
    assert run(monkeypatch, sd3(), target, "--prompt", "sharp", "--negative_prompt", "blur") == 0
    text = TextEmbeddings.from_file(target, 16, 16)
    assert text.has_negative and text.prompt_embeds.shape == (154, 16)
    want = sd3().encode_prompt("sharp", "sharp", "sharp", negative_prompt="blur", max_sequence_length=77)
    torch.testing.assert_close(text.prompt_embeds, want[0][0])
    torch.testing.assert_close(text.negative_prompt_embeds, want[1][0])
    torch.testing.assert_close(text.pooled_prompt_embeds, want[2][0])
    assert load_header(target)["prompt"] == "sharp"
    assert run(monkeypatch, sd3(), tmp_path / "one.safetensors", "--prompt", "sharp") == 0
    assert not TextEmbeddings.from_file(tmp_path / "one.safetensors", 16, 16).has_negative


def test_lucidflux_reads_what_flux_s_encoders_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "prompt.safetensors"
    assert run(monkeypatch, flux(), target, "--prompt", "restore") == 0
    assert sorted(load_released(target)) == ["txt", "vec"]
    prompt = read_prompt_embeddings(target, 16, 8)
    want = flux().encode_prompt("restore", max_sequence_length=512)
    torch.testing.assert_close(prompt.text, want[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(prompt.pooled, want[1])


def test_mistakes_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "text.safetensors"
    assert run(monkeypatch, flux(), target, "--prompt", "a", "--negative_prompt", "b") == 1
    assert run(monkeypatch, object(), target, "--prompt", "a") == 1
    assert run(monkeypatch, sd3(), tmp_path / "text.pt", "--prompt", "a") == 1
    target.write_bytes(b"mine")
    assert run(monkeypatch, sd3(), target, "--prompt", "a") == 1
    lines = capsys.readouterr().err.splitlines()
    said = (
        "leave --negative_prompt out",
        "is a object, expected",
        "must be a new file",
        "must be a new file",
    )
    assert len(lines) == 4 and all(s in line for s, line in zip(said, lines, strict=True))
    assert target.read_bytes() == b"mine"
