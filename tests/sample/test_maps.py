"""--save_map: red where an output is at fault and nowhere else, on one scale for all images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lucidnft.data.bundled import photograph_paths
from lucidnft.images import read_image, save_image
from lucidnft.rewards import Reward, RewardCard, build_reward
from lucidnft.rewards.base import Reference
from lucidnft.sample import maps as module
from lucidnft.sample.maps import build_map_rewards, map_scale, save_maps


class Brightness(Reward):
    """The darker a place of 4 x 4 pixels, the worse."""

    def __init__(self, **card: object) -> None:
        self.card = RewardCard(**{"name": "brightness", "value_range": (0.0, 1.0), **card})  # type: ignore[arg-type]
        self.calls: list[str] = []
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def wake(self) -> None:
        self.calls.append("wake")

    def rest(self) -> None:
        self.calls.append("rest")

    def reference(self, lr, hr, prompts, sr_size) -> Reference:
        self.lr_size = tuple(lr.shape[2:])
        return {}

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        return self.score_map(sr, reference).mean(dim=(1, 2))

    def score_map(self, sr: Tensor, reference: Reference) -> Tensor:
        self.seen.append((self.lr_size, tuple(sr.shape[2:])))
        return torch.nn.functional.avg_pool2d(sr.mean(dim=1, keepdim=True), 4)[:, 0]


def redness(path, height, width):
    """(height, width) in [0, 1]: how much red exceeds green in the picture, without its legend."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(float)[:height, :width] / 255
    assert np.abs(pixels[..., 1] - pixels[..., 2]).max() == 0  # grey but for the red
    return pixels[..., 0] - pixels[..., 1]


@pytest.fixture
def photograph(tmp_path):
    """An input, a faithful output and one with a patch from elsewhere, of 96 x 128 pixels."""
    sr = read_image(photograph_paths(["chelsea.png"])[0]).rgb[:, 60:156, 100:228]
    damaged = sr.clone()
    damaged[:, 48:80, 80:112] = 1 - sr[:, 0:32, 0:32]
    lr = torch.nn.functional.avg_pool2d(sr, 4)
    for name, image in (("lr", lr), ("good", sr), ("damaged", damaged)):
        save_image(tmp_path / f"{name}.png", image)
    return tmp_path


def test_a_damaged_place_is_red_and_a_good_image_is_not(photograph, tmp_path):
    pairs = [
        (f"sub/{name}", photograph / "lr.png", photograph / f"{name}.png") for name in ("good", "damaged")
    ]
    rewards = build_map_rewards(["lucid_consistency", "lr_fidelity"])
    result = save_maps(pairs, rewards, tmp_path / "maps", progress=False)
    assert result.problems == [] and [str(path.relative_to(tmp_path)) for path in result.written] == [
        f"maps/sub/{stem}.{name}.png" for stem in ("good", "damaged") for name in rewards
    ]
    for name in rewards:
        good, damaged = (
            redness(tmp_path / f"maps/sub/{stem}.{name}.png", 96, 128) for stem in ("good", "damaged")
        )
        assert good.mean() < 0.01
        assert damaged[56:72, 88:104].mean() > 0.3
        assert damaged[:, :40].max() < 0.05


def test_the_scale_is_the_same_for_every_image(tmp_path):
    """A slightly bad image is slightly red, whatever the worst one is."""
    levels = {"white": 1.0, "bright": 0.9, "dark": 0.2}
    for name, level in levels.items():
        save_image(tmp_path / f"{name}.png", torch.full((3, 32, 40), level))
    pairs = [(name, tmp_path / "white.png", tmp_path / f"{name}.png") for name in levels]
    save_maps(pairs, {"b": Brightness()}, tmp_path / "maps", progress=False)
    red = {name: float(redness(tmp_path / f"maps/{name}.b.png", 32, 40).mean()) for name in levels}
    assert red["white"] == 0
    # share of red = 0.8 x fault, over grey of the image's level: red - green is that share.
    assert red == pytest.approx({"white": 0, "bright": 0.8 * 0.1, "dark": 0.8 * 0.8}, abs=0.01)


def test_the_legend_says_what_red_means_and_its_range(photograph, tmp_path, monkeypatch):
    said = []
    real = module.ImageDraw.Draw

    def listening(picture):
        draw = real(picture)
        write = draw.text
        draw.text = lambda place, text, **options: (said.append((place, text)), write(place, text, **options))
        return draw

    monkeypatch.setattr(module.ImageDraw, "Draw", listening)
    monkeypatch.setattr(module, "MOST_PIXELS", 96 * 128 // 4)
    pairs = [("good", photograph / "lr.png", photograph / "good.png")]
    (path,) = save_maps(
        pairs, build_map_rewards(["lucid_consistency"]), tmp_path / "maps", progress=False
    ).written
    texts = [text for _, text in said]
    assert texts[:2] == ["0.95 and above", "0.6 and below"]
    assert texts[2] == "lucid_consistency: the redder, the more a place does not show what the input shows"
    assert texts[3].startswith("mean 0.9") and texts[3].endswith("red in 0.0% of it")
    assert texts[4] == "looked at reduced from 128x96 to 64x48 px"
    with Image.open(path) as picture:
        font = module.ImageFont.load_default()
        for (left, top), text in said:  # nothing is cut off
            assert left + font.getlength(text) <= picture.width and top + 12 <= picture.height


def test_pictures_and_what_the_reward_sees_are_bounded(tmp_path, monkeypatch):
    save_image(tmp_path / "sr.png", torch.full((3, 64, 256), 0.5))
    monkeypatch.setattr(module, "MOST_PIXELS", 32 * 128)
    monkeypatch.setattr(module, "LONGEST_SIDE", 100)
    reward = Brightness()
    pairs = [("a", tmp_path / "sr.png", tmp_path / "sr.png")]
    (path,) = save_maps(pairs, {"b": reward}, tmp_path / "maps", progress=False).written
    assert reward.seen == [((32, 128), (32, 128))] and reward.calls == ["wake", "rest"]
    assert redness(path, 25, 100).min() > 0.3 and Image.open(path).getpixel((50, 25 + 2)) == (255, 255, 255)


def test_maps_of_whole_image_embedders_are_by_occlusion(photograph, tmp_path, monkeypatch):
    reward = build_reward("lucid_consistency")
    monkeypatch.setattr(reward.embedder, "cell", None)
    monkeypatch.setattr("lucidnft.rewards.places.WINDOWS_PER_SIDE", 3)
    pairs = [(name, photograph / "lr.png", photograph / f"{name}.png") for name in ("good", "damaged")]
    assert map_scale(reward) == module.OCCLUSION_SCALE
    paths = save_maps(pairs, {"whole": reward}, tmp_path / "maps", progress=False).written
    good, damaged = (redness(path, 96, 128) for path in paths)
    assert good.max() < 0.1 < 0.3 < damaged[56:72, 88:104].mean()


def test_outputs_without_a_map_are_named_and_the_rest_goes_on(photograph, tmp_path):
    save_image(tmp_path / "small.png", torch.rand(3, 20, 20))
    (tmp_path / "broken.png").write_bytes(b"broken")
    pairs = [
        (name, photograph / "lr.png", tmp_path / f"{name}.png")
        for name in ("broken", "small", "gone", "good")
    ]
    rewards = build_map_rewards()
    result = save_maps(pairs, rewards, tmp_path / "maps", progress=False)
    written = {f"good.{name}.png" for name in rewards} | {"small.lucid_consistency.png"}
    assert {path.name for path in result.written} == written
    lines = [problem.line() for problem in result.problems]
    assert len(lines) == 4
    assert "broken.png" in lines[0] and lines[0].startswith("broken: cannot read image")
    assert "No such file" in lines[-1]
    assert any(line.startswith("small [quality_net]: ") and "at least 32 px" in line for line in lines)
    assert any(line.startswith("small [lr_fidelity]: ") and "larger than sr" in line for line in lines)


def test_out_of_memory_is_a_problem_of_that_image_and_other_errors_are_not_hidden(photograph, tmp_path):
    class Failing(Brightness):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def score_map(self, sr: Tensor, reference: Reference) -> Tensor:
            raise self.error

    pairs = [("good", photograph / "lr.png", photograph / "good.png")]
    full = save_maps(pairs, {"f": Failing(torch.OutOfMemoryError("out of memory"))}, tmp_path, progress=False)
    assert [problem.line() for problem in full.problems] == ["good [f]: out of memory"]
    with pytest.raises(RuntimeError, match="a bug"):
        save_maps(pairs, {"f": Failing(RuntimeError("a bug"))}, tmp_path, progress=False)


def test_what_has_no_map_is_refused_before_anything_is_drawn(photograph, tmp_path):
    with pytest.raises(ValueError, match="'piqe' judges an image as a whole"):
        build_map_rewards(["lr_fidelity", "piqe"])
    with pytest.raises(ValueError, match="needs hr, which restoring has not"):
        map_scale(Brightness(needs=frozenset({"hr", "lr"})))
    pairs = [("good", photograph / "lr.png", photograph / "good.png")]
    with pytest.raises(ValueError, match="no value_range"):
        save_maps(pairs, {"b": Brightness(value_range=None)}, tmp_path / "maps", progress=False)
    assert not (tmp_path / "maps").exists()


def test_a_name_that_a_map_cannot_have_does_not_stop_the_others(photograph, tmp_path):
    pairs = [(name, photograph / "lr.png", photograph / "good.png") for name in ("n" * 245, "good")]
    result = save_maps(pairs, {"brightness": Brightness()}, tmp_path / "maps", progress=False)
    assert [path.name for path in result.written] == ["good.brightness.png"]
    assert [problem.reason for problem in result.problems] == ["the name of its map would be too long"]


def test_maps_of_unchanged_files_are_kept_and_others_are_drawn_again(photograph, tmp_path, monkeypatch):
    pairs = [(name, photograph / "lr.png", photograph / f"{name}.png") for name in ("good", "damaged")]

    def drawn(**card) -> list[str]:
        reward = Brightness(**card)
        result = save_maps(pairs, {"b": reward}, tmp_path / "maps", progress=False)
        assert sorted(path.name for path in result.written + result.kept) == ["damaged.b.png", "good.b.png"]
        assert len(reward.seen) == len(result.written)
        return [path.name.partition(".")[0] for path in result.written]

    assert drawn() == ["good", "damaged"] and drawn() == []
    save_image(photograph / "damaged.png", torch.rand(3, 96, 128))
    assert drawn() == ["damaged"]
    save_image(photograph / "lr.png", torch.rand(3, 24, 32))
    assert drawn() == ["good", "damaged"]
    good = tmp_path / "maps" / "good.b.png"
    good.write_bytes(good.read_bytes()[:40])  # what another program cut short
    assert drawn() == ["good"] and drawn() == []
    assert drawn(value_range=(0.0, 0.5)) == ["good", "damaged"] == drawn()
    monkeypatch.setattr(module, "VERSION", 2)
    assert drawn() == ["good", "damaged"] and drawn() == []


def test_maps_of_other_weights_are_drawn_again(photograph, tmp_path):
    pairs = [("good", photograph / "lr.png", photograph / "good.png")]
    rewards = build_map_rewards(["quality_net"])
    assert len(save_maps(pairs, rewards, tmp_path, progress=False).written) == 1
    assert len(save_maps(pairs, rewards, tmp_path, progress=False).kept) == 1
    with torch.no_grad():
        next(rewards["quality_net"].network.parameters()).mul_(1.1)
    assert len(save_maps(pairs, rewards, tmp_path, progress=False).written) == 1
