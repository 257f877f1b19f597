"""Every test runs on the CPU, offline and repeatably; what needs more is opted in by a marker."""

from __future__ import annotations

import os
import socket
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[_name] = "1"
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "2")
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import jaxtyping  # noqa: E402  the environment comes before the libraries that read it
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from PIL import Image  # noqa: E402

from lucidnft.rng import numpy_generator_for  # noqa: E402
from tests.run_files import GOOD  # noqa: E402
from tests.small_backbone import small_backbone  # noqa: E402
from tests.train_command import ENVIRONMENT, NFT, run  # noqa: E402

settings.register_profile("offline", deadline=None, derandomize=True, max_examples=50, print_blob=True)
settings.load_profile("offline")


class NetworkUsedError(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(address: object) -> bool:
    """Sockets of this machine stay open: torch.distributed on the CPU talks through them."""
    if not isinstance(address, tuple):
        return True  # a Unix socket's path
    return str(address[0]) in {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::", socket.gethostname()}


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """Connections and look-ups outside this machine raise, in all tests but those marked weights."""
    patched = pytest.MonkeyPatch()
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: object) -> object:
        _refuse(address)
        return connect(self, address)  # type: ignore[arg-type]

    def guarded_connect_ex(self: socket.socket, address: object) -> object:
        _refuse(address)
        return connect_ex(self, address)  # type: ignore[arg-type]

    def guarded_look_up(host: object, *args: object, **options: object) -> object:
        if host is not None:
            _refuse((host,))
        return look_up(host, *args, **options)  # type: ignore[call-overload]

    patched.setattr(socket.socket, "connect", guarded_connect)
    patched.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patched.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
    patched.undo()


def _refuse(address: object) -> None:
    if not _is_local(address):
        raise NetworkUsedError(f"the test suite is offline, but something connects to {address}")


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Two threads, deterministic kernels, and settings that no test can leave changed for the next."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(True)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Shape annotations are not checked: for tests of the messages that users, who do not check them, get."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def tiny_images(tmp_path: Path) -> Path:
    """A folder of six small, different, smooth RGB images of mixed sizes and formats: 000.png ... 005.jpg."""
    folder = tmp_path / "tiny_images"
    folder.mkdir()
    for index in range(6):
        draw = numpy_generator_for(0, "tiny_images", index)
        height, width = (int(side) for side in draw.integers(64, 112, 2))
        y, x = np.mgrid[0:height, 0:width]
        waves = [
            np.sin(x * fx + y * fy + phase)
            for fx, fy, phase in draw.uniform((0.05, 0.05, 0), (0.5, 0.5, 6.3), (3, 3))
        ]
        pixels = np.stack(waves, axis=-1) * 0.45 + 0.5
        suffix = ("png", "jpg", "webp")[index % 3]
        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(folder / f"{index:03d}.{suffix}")
    return folder


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run file, a good one unless told otherwise, and says where."""

    def write(text: str = GOOD) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A base that can be trained: the last layer of an untrained one is zero, and so is every gradient."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    small_backbone().save_pretrained(path)
    os.environ["SMALL_BASE"] = ENVIRONMENT["SMALL_BASE"] = str(path)


@pytest.fixture(scope="session")
def unbroken(small_base: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    run("nft", folder, *NFT, "train.max_train_steps=6")
    return folder
