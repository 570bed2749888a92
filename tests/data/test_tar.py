"""Damage inside a tar costs only the members around it, is reported, and pairs nothing wrongly."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from samples import png, write_tar

from clipx.data.tar_index import ShardIndex, build_index
from clipx.types import UserError

BLOCK = 512


def names(index: ShardIndex) -> list[tuple[str, str]]:
    return [(index.key(i), member[0]) for i in range(len(index)) for member in index.members(i)]


def members_of(count: int) -> dict[str, bytes]:
    """k0.png, k0.txt, k1.png ..."""
    members: dict[str, bytes] = {}
    for n in range(count):
        members |= {f"k{n}.png": png(n), f"k{n}.txt": b"caption %d" % n}
    return members


ALL = [(f"k{n}", kind) for n in range(4) for kind in ("png", "txt")]


def header_of(path: Path, number: int) -> int:
    with tarfile.open(path) as tar:
        return tar.getmembers()[number].offset_data - BLOCK


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "0.tar", members_of(4))


def change(path: Path, at: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(data)


@pytest.mark.parametrize("field", [0, 100, 124, 136, 156])  # name, mode, size, time, kind
@pytest.mark.parametrize("number", [0, 2, 5, 7])
def test_a_damaged_header_costs_its_member_only(shard: Path, number: int, field: int) -> None:
    """Without its checksum, a damaged name would pair the image with another caption."""
    change(shard, header_of(shard, number) + field, b"zz")
    index = build_index(shard)
    rest = [member for n, member in enumerate(ALL) if n != number]
    assert names(index) == rest
    if number < 7:
        assert "a damaged header at byte" in index.head.damage
    else:
        assert index.head.truncated


def test_lost_bytes_cost_only_their_members(shard: Path) -> None:
    """From the middle of k0.txt to the middle of the image of k2."""
    first, last = header_of(shard, 1) + BLOCK + 3, header_of(shard, 4) + BLOCK + 9
    change(shard, first, bytes(last - first))
    index = build_index(shard)
    assert names(index) == [*ALL[:2], *ALL[5:]]  # the header of the caption is intact
    assert "zeros from byte" in index.head.damage


def test_missing_bytes_cost_only_the_members_around_them(shard: Path) -> None:
    """Everything after them is no longer at a multiple of 512."""
    at = header_of(shard, 2) + 100
    data = shard.read_bytes()
    shard.write_bytes(data[:at] + data[at + 700 :])
    index = build_index(shard)
    assert names(index)[-4:] == ALL[4:]
    assert index.head.damage


def test_joined_tars_are_read_to_the_end(shard: Path, tmp_path: Path) -> None:
    other = write_tar(tmp_path / "1.tar", {"x.png": png(9), "x.txt": b"of the second"})
    shard.write_bytes(shard.read_bytes() + other.read_bytes())
    index = build_index(shard)
    assert names(index) == [*ALL, ("x", "png"), ("x", "txt")]
    assert "as where two tars are joined" in index.head.damage
    ((_, offset, size),) = index.members(4)[1:]
    assert shard.read_bytes()[offset : offset + size] == b"of the second"


@pytest.mark.parametrize(
    ("padding", "damage"),
    [
        (b"", ""),
        (bytes(9_000), ""),
        (bytes(30_000), "zeros at its end"),
        (bytes(600) + b"more", "4 bytes behind its end"),
    ],
)
def test_bytes_after_the_end_are_reported(tmp_path: Path, padding: bytes, damage: str) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.png": png(1)})
    end = header_of(path, 0) + BLOCK + -(-len(png(1)) // BLOCK) * BLOCK
    path.write_bytes(path.read_bytes()[:end] + bytes(2 * BLOCK) + padding)
    head = build_index(path).head
    assert (damage in head.damage) if damage else not head.damage
    assert (head.samples, head.truncated) == (1, False)


def test_a_half_written_file_is_reported(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", members_of(40))
    data = path.read_bytes()
    half = header_of(path, 40)
    path.write_bytes(data[:half] + bytes(len(data) - half))
    head = build_index(path).head
    assert head.samples == 20
    assert "zeros at its end" in head.damage


@pytest.mark.parametrize("kind", ["negative", "huge", "pax negative", "pax huge"])
def test_impossible_sizes_cost_only_their_member(shard: Path, kind: str) -> None:
    """A negative size would send the walk back, and it would never end."""
    info = tarfile.TarInfo("bad.png")
    size = -BLOCK if "negative" in kind else 2**55
    if kind.startswith("pax"):
        info.pax_headers = {"size": str(size)}
        block = info.tobuf(tarfile.PAX_FORMAT)
    else:
        info.size = size
        block = info.tobuf(tarfile.GNU_FORMAT)
    data = shard.read_bytes()
    at = header_of(shard, 4)
    shard.write_bytes(data[:at] + block + data[at:])
    index = build_index(shard)
    if kind.endswith("huge"):  # as in a tar that is cut
        assert names(index) == ALL[:4]
        assert index.head.truncated
    else:
        assert [member for member in names(index) if member[0] != "bad"] == ALL
        assert index.head.damage


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_sparse_member_is_left_out_by_name(tmp_path: Path, format: str) -> None:
    """Its bytes are stored without the holes: a plain read would give another content."""
    path = tmp_path / "0.tar"
    content = png(1)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "hole.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if name == "hole.png" and format == "pax":
                info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9999"}
            if name == "hole.png" and format == "gnu":
                info.type = tarfile.GNUTYPE_SPARSE
            tar.addfile(info)
            assert tar.fileobj is not None
            tar.fileobj.write(content + bytes(-len(content) % BLOCK))
            tar.offset = tar.fileobj.tell()
    index = build_index(path)
    assert names(index) == [("a", "png"), ("b", "png")]
    assert "sparse member 'hole.png'" in index.head.damage


@pytest.mark.parametrize("content", [bytes(100_000), b"<html>" * 500, b"ustar" * 500])
def test_a_file_without_members_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a tar file or is cut"):
        build_index(path)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("size", [10, 3000, 9000])
def test_a_digest_covers_the_ends_of_each_member(tmp_path: Path, size: int, place: str) -> None:
    """It covers small files whole, and large ones except for their middle."""
    content = bytearray(range(256)) * (size // 256 + 1)
    del content[size:]
    path = tmp_path / "0.tar"
    old = build_index(write_tar(path, {"a.jpg": bytes(content), "b.txt": b"b"})).head.digest
    content[{"first": 0, "middle": size // 2, "last": -1}[place]] ^= 1
    new = build_index(write_tar(path, {"a.jpg": bytes(content), "b.txt": b"b"})).head.digest
    assert old.partition(":")[0] == new.partition(":")[0]
    assert (old == new) == (size == 9000 and place == "middle")


def test_a_digest_is_the_same_for_a_copy_that_was_packed_later(tmp_path: Path) -> None:
    members = members_of(3)
    first = write_tar(tmp_path / "0.tar", members)
    second = tmp_path / "1.tar"
    with tarfile.open(second, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            file = tmp_path / name
            file.write_bytes(content)
            tar.add(file, arcname=name)  # with owner and time
    assert build_index(first).head.digest == build_index(second).head.digest
