"""The comparison pages as a browser reads them: every file is there, every name is text, pictures fit each other."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image, ImageCms

from lucidnft.sample import compare, previews
from lucidnft.sample.compare import ComparedPair, write_comparison

NAMES = ("plain", "a.b", "a#b", 'quo"ted <i>&amp;', "new\nline", "\u65e5\u672c/\u00fc%20#?", "x" * 180)
VOID = ("meta", "img", "br", "input")


class Page(HTMLParser):
    """What a page refers to and says; a tag that is closed wrongly fails."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.open, self.cards = path, [], []
        self.ids, self.links, self.sources, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "img":
            self.sources.append(values)
        if tag == "a":
            self.links.append(values["href"])
        if tag == "article":
            self.cards.append(values)
        assert not any(name.startswith("on") for name in values)
        assert tag not in ("link", "iframe") and not (tag == "script" and "src" in values)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def file(self, url: str) -> Path:
        assert "://" not in url and not url.startswith("/")
        return self.path.parent / os.fsdecode(unquote_to_bytes(url.partition("#")[0]))


def colours(width, height, seed=0, channels=3):
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, channels), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def make_pair(folder, name, *, size=(8, 6), upscale=4, **arguments):
    pair = ComparedPair(name, folder / "in" / f"{name}.png", folder / "out" / f"{name}.png")
    for path, factor in ((pair.source, 1), (pair.output, upscale)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours(int(size[0] * factor), int(size[1] * factor))).save(path, **arguments)
    return pair


def write(folder, pairs, **arguments):
    return Page(write_comparison(pairs, folder / "out", progress=False, **arguments))


def test_everything_a_page_refers_to_is_there_and_names_are_text(tmp_path):
    pairs = [make_pair(tmp_path, name) for name in NAMES]
    pairs[0] = ComparedPair("plain", pairs[0].source, pairs[0].output, {"sample <u>": "of <i> & 4"})
    page = write(tmp_path, pairs, title="A <b>title</b>")
    assert len(page.sources) == 2 * len(NAMES) and len(page.cards) == len(NAMES)
    assert len(set(page.ids)) == len(page.ids)
    files = [page.file(image["src"]) for image in page.sources]
    assert all(file.is_file() and file.name.isascii() and len(file.name) < 100 for file in files)
    assert len(set(files)) == len(files)
    linked = {page.file(url) for url in page.links if not url.startswith("#")}
    assert linked == {pair.output for pair in pairs}
    assert all(url[1:] in page.ids for url in page.links if url.startswith("#"))
    for text in (
        'quo"ted <i>&amp;',
        "new\\nline",
        "\u65e5\u672c/\u00fc%20#?",
        "sample <u>",
        "of <i> & 4",
        "A <b>",
    ):
        assert text in page.text
    assert all(image["loading"] == "lazy" for image in page.sources)


def test_both_sides_have_the_size_of_the_output_and_lr_is_enlarged_by_bicubic(tmp_path):
    page = write(tmp_path, [make_pair(tmp_path, "a", upscale=3.5)])
    sizes = []
    for image in page.sources:
        with Image.open(page.file(image["src"])) as opened:
            sizes.append(opened.size)
            shown = np.asarray(opened).astype(int)
        assert (int(image["width"]), int(image["height"])) == opened.size
        if ".lr." in image["src"]:
            bicubic = Image.fromarray(colours(8, 6)).resize(opened.size, Image.Resampling.BICUBIC)
            assert np.abs(shown - np.asarray(bicubic).astype(int)).mean() < 2
    assert sizes == [(28, 21), (28, 21)]
    assert "8x6 px" in page.text and "28x21 px" in page.text


def test_large_outputs_are_shown_smaller_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "LONGEST_SIDE", 20)
    page = write(tmp_path, [make_pair(tmp_path, "a", size=(10, 1))])
    assert [(i["width"], i["height"]) for i in page.sources] == [("20", "2")] * 2
    assert "40x4 px, shown at 50 %" in page.text


def test_alpha_depth_grey_and_profile_survive(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pair = make_pair(tmp_path, "a", icc_profile=profile)
    array = colours(8, 6, channels=4).copy()
    array[:, :4, 3] = 0
    Image.fromarray(array).save(pair.source, icc_profile=profile)
    grey = make_pair(tmp_path, "g")
    Image.fromarray(np.full((6, 8), 40 * 257, np.uint16)).save(grey.source)
    wide = make_pair(tmp_path, "w", icc_profile=profile)
    page = write(tmp_path, [pair, grey, wide])
    opened = [Image.open(page.file(image["src"])) for image in page.sources]
    assert [image.format for image in opened] == ["PNG"] * 2 + ["JPEG"] * 4
    assert opened[0].mode == "RGBA" and opened[0].getpixel((2, 2))[3] == 0
    assert [bool(image.info.get("icc_profile")) for image in opened] == [True, True, False, False, True, True]
    assert opened[2].mode == "L" and abs(opened[2].getpixel((5, 5)) - 40) <= 1


def test_files_that_cannot_be_shown_are_named_and_the_page_stays_whole(tmp_path):
    pairs = [make_pair(tmp_path, name) for name in ("lr", "sr", "both", "fine")]
    pairs[0].source.write_bytes(b"no picture")
    pairs[1].output.unlink()
    pairs[2].source.unlink()
    pairs[2].output.write_bytes(pairs[3].output.read_bytes()[:60])
    page = write(tmp_path, pairs)
    assert len(page.sources) == 4 and len(page.cards) == 4
    assert page.text.count("the LR image cannot be shown") == 2
    assert page.text.count("the restored image cannot be shown") == 2
    assert "3 could not be shown whole" in page.text and {"#image-1", "#image-3"} <= set(page.links)
    make_pair(tmp_path, "sr")
    assert len(write(tmp_path, pairs).sources) == 5


def test_many_images_are_on_several_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "IMAGES_PER_PAGE", 2)
    pairs = [make_pair(tmp_path, f"n{i}") for i in range(5)]
    pairs[4].source.unlink()
    first = write(tmp_path, pairs)
    pages = [first, *(Page(tmp_path / "out" / f"compare-{i}.html") for i in (2, 3))]
    assert [len(page.cards) for page in pages] == [2, 2, 1]
    assert len({card["id"] for page in pages for card in page.cards}) == 5
    for page in pages:
        assert {page.file(url) for url in page.links if ".html" in url} >= {p.path for p in pages} - {
            page.path
        }
        (broken,) = {url for url in page.links if url.endswith("#image-5") and page.cards}
        assert page.file(broken) == (pages[2].path if page is not pages[2] else tmp_path / "out")
    write(tmp_path, pairs[:3])
    assert [p.name for p in sorted((tmp_path / "out").glob("*.html"))] == ["compare-2.html", "compare.html"]


@pytest.mark.parametrize(("lower", "order"), [((), "bca d"), (("musiq",), "acb d")])
def test_the_worst_comes_first_and_what_has_no_score_last(tmp_path, lower, order):
    names = order.replace(" ", "")
    pairs = [make_pair(tmp_path, name) for name in "abcd"]
    scores = {
        "a": {"musiq": 70.0, "x<y": 1e-7},
        "b": {"musiq": 30.0},
        "c": {"musiq": 50.0},
        "d": {"x<y": 2.0},
    }
    page = write(tmp_path, pairs, scores=scores, lower_is_better=lower)
    assert [Path(image["src"]).name[0] for image in page.sources[::2]] == list(names)
    first = {name: card for name, card in zip(names, page.cards, strict=True)}
    assert float(first["b"]["data-score-0"]) == 30 and float(first["a"]["data-score-1"]) == 1e-7
    assert "data-score-0" not in first["d"] and float(first["d"]["data-score-1"]) == 2
    assert "the worst by musiq first" in page.text and "x<y" in page.text
    assert (
        "musiq70.00" in page.text and "x<y0.0000" in page.text and "x<y2.000" in page.text
    )  # digits as in tables


def test_previews_of_unchanged_files_are_kept_and_others_are_made_again(tmp_path, monkeypatch):
    pairs = [make_pair(tmp_path, "a"), make_pair(tmp_path, "b")]
    decoded = []
    decode = previews.decode_pixels
    monkeypatch.setattr(previews, "decode_pixels", lambda path: decoded.append(path) or decode(path))
    before = write(tmp_path, pairs)
    decoded.clear()
    again = write(tmp_path, pairs)
    assert not decoded and again.text == before.text and again.sources == before.sources
    older = (
        pairs[0].output.stat().st_mtime_ns - 10**9
    )  # as a copy that keeps its time, of an equally long file
    os.utime(pairs[0].output, ns=(older, older))
    write(tmp_path, pairs)
    assert decoded == [pairs[0].source, pairs[0].output]
    decoded.clear()
    same_time = pairs[0].source.stat().st_mtime_ns
    pairs[0].source.write_bytes(pairs[1].source.read_bytes() + b"longer")
    os.utime(pairs[0].source, ns=(same_time, same_time))
    write(tmp_path, pairs)
    assert decoded == [pairs[0].source, pairs[0].output]
    decoded.clear()
    before.file(before.sources[2]["src"]).unlink()
    write(tmp_path, pairs)
    assert decoded == [pairs[1].source, pairs[1].output]
    assert not list((tmp_path / "out" / "compare").glob(".*"))


def test_a_preview_that_cannot_be_written_stops_and_leaves_nothing_half(tmp_path, monkeypatch):
    pair = make_pair(tmp_path, "a")

    def full(old, new):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lucidnft.atomic_file.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_comparison([pair], tmp_path / "out", progress=False)
    assert not list((tmp_path / "out" / "compare").iterdir())


def test_nothing_and_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no restored image to compare"):
        write_comparison([], tmp_path)
    pair = make_pair(tmp_path, "a")
    with pytest.raises(ValueError, match="two pairs are called 'a'"):
        write_comparison([pair, pair], tmp_path)
