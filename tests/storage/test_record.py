"""Records: every byte counts, and zeros are none."""

from __future__ import annotations

from raft.core.types import HardState
from raft.storage import Identity, MemoryDisk
from raft.storage.record import (
    FRAME_BYTES,
    RECORD_PAYLOAD_BYTES_MAX,
    RecordReader,
    RecordType,
    SegmentHeader,
    decode_hard_state,
    decode_segment_header,
    encode_hard_state,
    encode_record,
    encode_segment_header,
    identity_seed,
)

SEED = identity_seed(Identity(1, 2, 3))


def make_reader(content: bytes, seed: int = SEED, window_bytes: int = 4096) -> RecordReader:
    disk = MemoryDisk()
    disk.replace_content("/file", content)
    return RecordReader(disk.open("/file"), seed, window_bytes)


def make_record(
    payload: bytes, batch: int = 1, generation: int = 1, previous: int = 0, end: bool = True
) -> bytes:
    return encode_record(RecordType.ENTRIES, payload, batch, generation, previous, end, SEED)[0] + payload


def test_there_and_back():
    content = make_record(b"payload", batch=1 << 40, generation=1 << 31, previous=0xFFFF_FFFF)
    record = make_reader(content).record_at(0)
    assert record is not None
    assert bytes(record.payload) == b"payload"
    assert (record.batch, record.generation, record.previous) == (1 << 40, 1 << 31, 0xFFFF_FFFF)
    assert (record.type, record.is_batch_end, record.end) == (RecordType.ENTRIES, True, len(content))
    open_end = make_reader(make_record(b"", end=False)).record_at(0)
    assert open_end is not None and not open_end.is_batch_end


def test_every_bit_counts():
    content = make_record(b"some payload")
    for offset in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[offset] ^= 1 << bit
            assert make_reader(bytes(flipped)).record_at(0) is None


def test_every_cut_counts():
    content = make_record(b"some payload")
    for size in range(len(content)):
        assert make_reader(content[:size]).record_at(0) is None
        if any(content[size:]):
            assert make_reader(content[:size].ljust(len(content), b"\0")).record_at(0) is None


def test_zeros_are_never_a_record():
    reader = make_reader(bytes(8192))
    assert all(reader.record_at(offset) is None for offset in range(0, 8192, 7))
    assert reader.find_later(0, 0, 0) is None
    assert reader.last_written(0) == 0


def test_a_record_of_another_log_is_not_ours():
    content = make_record(b"payload")
    assert make_reader(content, identity_seed(Identity(1, 2, 4))).record_at(0) is None


def test_a_length_beyond_the_limit_is_not_believed():
    payload = bytes(10)
    frame = bytearray(encode_record(RecordType.ENTRIES, payload, 1, 1, 0, True, SEED)[0])
    frame[8:12] = (RECORD_PAYLOAD_BYTES_MAX + 1).to_bytes(4, "little")
    assert make_reader(bytes(frame) + payload).record_at(0) is None


def test_a_window_smaller_than_a_record():
    records = [make_record(bytes([n]) * size, batch=n) for n, size in enumerate((0, 100, 5000, 1, 4063), 1)]
    content = b"".join(records) + bytes(100)
    for window_bytes in (1, 33, 64, 4096, 1 << 20):
        reader = make_reader(content, window_bytes=window_bytes)
        offset = 0
        for number, raw in enumerate(records, 1):
            record = reader.record_at(offset)
            assert record is not None and record.batch == number
            offset += len(raw)
            assert record.end == offset
        assert reader.record_at(offset) is None


def test_finding_a_later_record_at_any_offset():
    """Over the borders of windows too, and not fooled by what only looks like a record."""
    wanted = make_record(b"later", batch=9, generation=3)
    decoys = [
        make_record(b"of a former life", batch=9, generation=2),
        make_record(b"of the batch being written", batch=8, generation=3),
        wanted[:-1] + b"?",
        wanted[:4] * 3,
    ]
    for shift in range(70):
        content = bytes(shift) + b"".join(decoys) + b"junk"
        for window_bytes in (5, 64, 4096):
            reader = make_reader(content + wanted + bytes(50), window_bytes=window_bytes)
            assert reader.find_later(0, 3, 8) == len(content)
            assert reader.find_later(len(content) + 1, 3, 8) is None
            assert make_reader(content, window_bytes=window_bytes).find_later(0, 3, 8) is None


def test_the_last_byte_written():
    for window_bytes in (1, 7, 4096):
        for position in (0, 6, 7, 99):
            content = bytearray(100)
            content[position] = 1
            reader = make_reader(bytes(content), window_bytes=window_bytes)
            assert reader.last_written(0) == position + 1
            assert reader.last_written(position + 1) == position + 1


def test_payloads_there_and_back():
    header = SegmentHeader(1, Identity(1 << 63, 2, 3), 4, 5, 6)
    assert decode_segment_header(memoryview(encode_segment_header(header))) == header
    state = HardState((1 << 64) - 1, 1 << 63, 12)
    assert decode_hard_state(encode_hard_state(state)) == state
    assert FRAME_BYTES == 32
