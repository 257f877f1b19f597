"""The guards of the suite can fail, and what they promise holds."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path

import jaxtyping
import pytest
import torch
from PIL import Image

from lucidnft.flow.conversions import interpolate


@pytest.mark.parametrize("address", [("93.184.215.14", 80), ("pypi.org", 443)])
def test_connections_out_are_refused(address):
    with pytest.raises(RuntimeError, match="the test suite is offline"):
        socket.create_connection(address, timeout=2)
    with socket.socket() as sock, pytest.raises(RuntimeError, match="the test suite is offline"):
        sock.connect(address)
    with socket.socket() as sock, pytest.raises(RuntimeError, match="the test suite is offline"):
        sock.connect_ex(address)


def test_downloads_are_refused():
    with pytest.raises(RuntimeError, match="the test suite is offline"):
        urllib.request.urlopen("https://huggingface.co", timeout=2)


def test_connections_within_this_machine_work():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            assert client.getpeername() == server.getsockname()


def test_the_hub_libraries_are_told_to_stay_offline():
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE


def test_torch_is_deterministic_with_two_threads():
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2


def test_shape_annotations_are_checked_at_every_call(pytestconfig):
    if not pytestconfig.getoption("--jaxtyping-packages"):
        pytest.skip("shapes are checked in `make test`, which passes --jaxtyping-packages")
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'noise'"):
        interpolate(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(2))


@pytest.mark.usefixtures("unchecked_shapes")
def test_checks_of_shapes_can_be_switched_off_for_one_test():
    assert interpolate(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(2)).shape == (2, 3, 4, 4)


def test_tiny_images_are_six_different_readable_pictures(tiny_images: Path):
    files = sorted(tiny_images.iterdir())
    assert [f.name for f in files] == ["000.png", "001.jpg", "002.webp", "003.png", "004.jpg", "005.webp"]
    pictures = [Image.open(f).convert("RGB") for f in files]
    assert len({p.tobytes() for p in pictures}) == 6
    assert all(min(p.size) >= 64 for p in pictures)


@pytest.mark.parametrize("attempt", [1, 2])
def test_no_test_sees_what_another_did_to_the_global_state(attempt):
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.manual_seed(99)
