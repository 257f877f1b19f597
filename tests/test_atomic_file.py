"""A file appears whole or not at all."""

import pytest

from lucidnft.atomic_file import atomic_file


def test_the_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert all(found == path or found.name.startswith(".") for found in tmp_path.iterdir())
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_failing_block_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("n" * 255)
    with atomic_file(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"
    with pytest.raises(OSError), atomic_file(tmp_path / ("n" * 256)):
        pass
    assert list(tmp_path.iterdir()) == [path]
