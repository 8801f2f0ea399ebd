"""Reads the record batches of Kafka's answers, so that a batch that cannot be read costs that batch alone.

kafka-python raises out of `poll` for such a batch, again at every poll, and then no partition is read any more. Here
the batch is skipped, counted by reason and named in the log. Decompression is bounded.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import cramjam
import kafka.errors
import lz4.frame
import zstandard
from kafka.consumer.fetcher import Fetcher
from kafka.record.util import decode_varint

from services.messages.video_record import Partition

log = logging.getLogger(__name__)
errors: Any = kafka.errors  # type checkers carry the stubs of version 2

MAX_HEADERS = 64  # of a record; each costs a hundred times its bytes in memory
MAX_BATCH_OFFSETS = 100_000  # a header that claims more is not believed
PAUSE_S = 1.0  # of a partition that cannot be read
LOG_EVERY_S = 10.0  # for each partition and reason
XERIAL_MAGIC = b"\x82SNAPPY\x00"  # snappy in blocks, as the Java clients write it
XERIAL_HEADER_BYTES = 16

OnSkip = Callable[[Partition, int, int, str, str], None]


class UnreadableBatch(ValueError):
    """A batch that cannot be read. `reason` is short and countable."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class SkippedBatches:
    """Counts the batches that were skipped, and names them in the log without flooding it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._log_at: dict[tuple[Partition, str], float] = {}
        self._unlogged: Counter[tuple[Partition, str]] = Counter()

    def add(self, partition: Partition, first: int, last: int, reason: str, text: str) -> None:
        """A batch of these offsets was skipped."""
        self.counts[reason] += 1
        key, now = (partition, reason), time.monotonic()
        if now < self._log_at.get(key, 0.0):
            self._unlogged[key] += 1
            return
        self._log_at[key] = now + LOG_EVERY_S
        more = self._unlogged.pop(key, 0)
        log.warning(
            "topic %s, partition %d, offsets %d to %d: skipped, %s: %s%s",
            *(*partition, first, last, reason, text),
            f" (and {more} before for this reason)" if more else "",
        )


ClientRecords: Any = Fetcher.PartitionRecords  # type checkers carry the stubs of version 2


class ReadableRecords(ClientRecords):
    """The records of one partition's answer. Replaces the client's class; reading it never raises."""

    def __init__(self, *args: Any, max_batch_bytes: int, on_skip: OnSkip, **options: Any) -> None:
        self._max_batch_bytes = max_batch_bytes
        self._on_skip = on_skip
        super().__init__(*args, **options)

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        """Called by the client: yields records, and sets `next_fetch_offset` as it goes."""
        while True:
            first = self.next_fetch_offset
            try:
                batch = records.next_batch()
            except (
                Exception
            ) as error:  # the frame around the batches is damaged: nothing after it can be found
                self._skip(tp, first, "damaged", f"{type(error).__name__}: {error}")
                break
            if batch is None:
                break
            try:
                yield from self._records(tp, batch)
                if first <= batch.last_offset:  # a batch may end with offsets that compaction has removed
                    self.next_fetch_offset = max(self.next_fetch_offset, following(batch, first))
            except UnreadableBatch as error:
                self._skip(tp, following(batch, first) - 1, error.reason, str(error))
            except Exception as error:  # whatever damaged bytes bring about
                self._skip(tp, following(batch, first) - 1, "damaged", f"{type(error).__name__}: {error}")
        self.drain()

    def _skip(self, tp: Any, last: int, reason: str, text: str) -> None:
        first = self.next_fetch_offset
        self.next_fetch_offset = max(last, first) + 1
        self._on_skip((tp.topic, tp.partition), first, self.next_fetch_offset - 1, reason, text)

    def _records(self, tp: Any, batch: Any) -> Iterator[Any]:
        if batch.magic < 2:
            raise UnreadableBatch("old_format", f"format version {batch.magic}, wanted 2 (it has headers)")
        if not batch.validate_crc():
            raise UnreadableBatch("checksum", "its checksum is wrong")
        if self._is_left_out(batch):
            return
        decompress_batch(batch, self._max_batch_bytes)
        while True:
            check_headers(batch)
            try:
                record = next(batch)
            except StopIteration:
                return
            self.next_fetch_offset = record.offset + 1
            yield KafkaRecord(tp, record)

    def _is_left_out(self, batch: Any) -> bool:
        """Whether it holds no records for readers: of an aborted transaction, or the mark of a transaction's end."""
        if batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


class KafkaRecord:
    """One record, as the reader uses it."""

    __slots__ = ("headers", "key", "offset", "partition", "timestamp", "topic", "value")

    def __init__(self, tp: Any, record: Any) -> None:
        self.topic: str = tp.topic
        self.partition: int = tp.partition
        self.offset: int = record.offset
        self.timestamp: int = record.timestamp
        self.key: bytes | None = record.key
        self.value: bytes | None = record.value
        self.headers: list[tuple[str, bytes | None]] = record.headers


def following(batch: Any, position: int) -> int:
    """The offset after a batch that was read at `position`; the next one if its header makes no sense."""
    last = batch.last_offset if batch.magic >= 2 else batch.base_offset
    return last + 1 if position <= last < position + MAX_BATCH_OFFSETS else position + 1


def check_headers(batch: Any) -> None:
    """UnreadableBatch if the next record has too many headers: the client would make objects of all of them."""
    buffer, pos = batch._buffer, batch._pos
    try:
        for _ in range(4):  # length, attributes, time and offset
            _, pos = decode_varint(buffer, pos)
        for _ in range(2):  # key and value
            num_bytes, pos = decode_varint(buffer, pos)
            pos += max(0, num_bytes)
        num_headers, _ = decode_varint(buffer, pos)
    except (IndexError, ValueError):
        return  # the batch's end; or damaged, as the client will find
    if num_headers > MAX_HEADERS:
        raise UnreadableBatch("damaged", f"a record with {num_headers} headers, wanted at most {MAX_HEADERS}")


def decompress_batch(batch: Any, max_bytes: int) -> None:
    """Decompress a batch in place. UnreadableBatch for an unknown codec, damaged bytes or more than `max_bytes`."""
    codec = batch.compression_type
    if codec == 0:
        return
    if codec not in CODECS:
        raise UnreadableBatch("codec", f"compression codec {codec}, wanted 0 to {max(CODECS)}")
    name, decompress = CODECS[codec]
    data = bytes(batch._buffer[batch._pos :])
    try:
        found = decompress(data, max_bytes + 1)
    except UnreadableBatch:
        raise
    except Exception as error:  # each library has its own
        raise UnreadableBatch("damaged", f"{name}: {error}") from error
    if len(found) > max_bytes:
        raise UnreadableBatch("too_large", f"{name}: decompresses to more than {max_bytes} bytes")
    batch._buffer, batch._pos, batch._decompressed = bytearray(found), 0, True


def gunzip(data: bytes, max_bytes: int) -> bytes:
    """At most `max_bytes` of a gzip stream of one or several members."""
    found = b""
    while data and len(found) < max_bytes:
        member = zlib.decompressobj(wbits=31)
        found += member.decompress(data, max_bytes - len(found))
        if not member.eof and len(found) < max_bytes:
            raise ValueError("the stream is cut short")
        data = member.unused_data
    return found


def unsnappy(data: bytes, max_bytes: int) -> bytes:
    """Raw snappy, or blocks of it as the Java clients write them. Each block states its size."""
    if not data.startswith(XERIAL_MAGIC):
        return unsnappy_block(data, max_bytes)
    found, pos = [b""], XERIAL_HEADER_BYTES
    while pos < len(data):
        end = pos + 4 + int.from_bytes(data[pos : pos + 4], "big")
        if end > len(data):
            raise ValueError("a block is cut short")
        found.append(unsnappy_block(data[pos + 4 : end], max_bytes))
        max_bytes -= len(found[-1])
        pos = end
    return b"".join(found)


def unsnappy_block(data: bytes, max_bytes: int) -> bytes:
    """One block. UnreadableBatch if it states a size of `max_bytes` or more."""
    size = cramjam.snappy.decompress_raw_len(data)
    if size >= max_bytes:
        raise UnreadableBatch(
            "too_large", f"snappy: decompresses to {size} bytes, wanted fewer than {max_bytes}"
        )
    return bytes(cramjam.snappy.decompress_raw(data))


def unlz4(data: bytes, max_bytes: int) -> bytes:
    """At most `max_bytes` of an LZ4 frame."""
    decompressor = lz4.frame.LZ4FrameDecompressor()
    found = decompressor.decompress(data, max_length=max_bytes)
    if not decompressor.eof and len(found) < max_bytes:
        raise ValueError("the frame is cut short")
    return found


def unzstd(data: bytes, max_bytes: int) -> bytes:
    """At most `max_bytes` of zstd frames. The window bounds the memory that a frame may ask for."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=max(max_bytes, 2**23))
    with decompressor.stream_reader(data, read_across_frames=True) as reader:
        return reader.read(max_bytes)


CODECS: dict[int, tuple[str, Callable[[bytes, int], bytes]]] = {
    1: ("gzip", gunzip),
    2: ("snappy", unsnappy),
    3: ("lz4", unlz4),
    4: ("zstd", unzstd),
}


class FetchGuard:
    """Installed in a consumer: one partition's answer can neither raise out of `poll` nor stop the others.

    Partitions that had no answer for longest are asked for first: a broker may run out of time before the last ones.
    `out_of_range` are the partitions whose next offset the broker does not have: they wait to be sought.
    `ends` are the offsets up to which a reader may read: below open transactions.
    """

    def __init__(self, consumer: Any, *, max_batch_bytes: int, skipped: SkippedBatches) -> None:
        self.out_of_range: set[Partition] = set()
        self.ends: dict[Partition, int] = {}
        self.problems: dict[Partition, str] = {}  # the newest of a partition that cannot be fetched
        self._skipped = skipped
        self._steps: Counter[Partition] = Counter()  # how often an answer in a row could not be parsed at all
        self._paused: dict[Any, float] = {}  # client's partition -> monotonic time
        self._answered: dict[Partition, int] = {}  # the number of each partition's last answer
        self._num_answers = 0
        fetcher = consumer._fetcher
        self._fetchable_partitions = fetcher._fetchable_partitions
        fetcher._fetchable_partitions = self._in_turn
        self._subscription = consumer._subscription
        self._parse_fetched_data = fetcher._parse_fetched_data
        fetcher._parse_fetched_data = self._parse
        fetcher.PartitionRecords = partial(
            ReadableRecords, max_batch_bytes=max_batch_bytes, on_skip=skipped.add
        )

    def _in_turn(self) -> list[Any]:
        """Called by the client: which partitions to ask for, in this order."""
        found: list[Any] = self._fetchable_partitions()
        return sorted(found, key=lambda tp: self._answered.get((tp.topic, tp.partition), 0))

    def _parse(self, answer: Any) -> Any:
        """Called by the client with the answer about one partition."""
        tp, data = answer.topic_partition, answer.partition_data
        partition = tp.topic, tp.partition
        if data.records or data.high_watermark <= answer.fetched_offset:  # else there was no time for it
            self._num_answers += 1
            self._answered[partition] = self._num_answers
        state = self._subscription.assignment.get(tp)
        if state is None or state.position is None or state.position.offset != answer.fetched_offset:
            return None  # it was sought, or taken away, in the meantime
        error = errors.for_code(data.error_code)
        # The embedded broker answers without an error when the offset is past the end.
        gone = error is errors.OffsetOutOfRangeError or 0 <= data.high_watermark < answer.fetched_offset
        if gone and state.clear_preferred_read_replica() is None:
            self.out_of_range.add(partition)
            self._pause(tp)
            return None
        try:
            records = self._parse_fetched_data(answer)
        except Exception as problem:
            self._isolate(tp, answer.fetched_offset, data, problem)
            return None
        if error is errors.NoError:
            self._steps.pop(partition, None)
            self.problems.pop(partition, None)
            stable = getattr(data, "last_stable_offset", -1)
            self.ends[partition] = min(data.high_watermark, stable) if stable >= 0 else data.high_watermark
        else:
            self.problems[partition] = error.__name__
        return records

    def _isolate(self, tp: Any, offset: int, data: Any, problem: Exception) -> None:
        partition, text = (tp.topic, tp.partition), f"{type(problem).__name__}: {problem}"
        if data.error_code:  # such as a topic that we may not read
            if self.problems.get(partition) != text:
                log.warning("topic %s, partition %d cannot be read: %s", *partition, text)
            self.problems[partition] = text
            return self._pause(tp)
        # Bytes without one whole batch: nothing says where the next one starts. Look further each time.
        step = 2 ** min(self._steps[partition], 20)
        self._steps[partition] += 1
        following = max(offset + 1, min(offset + step, data.high_watermark))
        self._subscription.seek(tp, following)
        self._skipped.add(partition, offset, following - 1, "damaged", text)
        return None

    def _pause(self, tp: Any) -> None:
        self._subscription.pause(tp)
        self._paused[tp] = time.monotonic()

    def resume(self, every_s: float = PAUSE_S) -> None:
        """Try partitions again that could not be read."""
        now = time.monotonic()
        for tp in [tp for tp, at in self._paused.items() if now - at >= every_s]:
            del self._paused[tp]
            if self._subscription.is_assigned(tp):
                self._subscription.resume(tp)

    def forget(self, partitions: Collection[Partition]) -> None:
        """These partitions are no longer read."""
        self.out_of_range -= set(partitions)
        for partition in partitions:
            self.ends.pop(partition, None)
            self.problems.pop(partition, None)
            self._answered.pop(partition, None)
