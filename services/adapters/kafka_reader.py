"""Reads video from Kafka (kafka-python 3). The client has no asyncio; a reader belongs to one thread."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import Any

from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from services.adapters.kafka_access import OPEN, KafkaAccess, check_reachable
from services.adapters.kafka_batches import FetchGuard, SkippedBatches
from services.adapters.kafka_consumer import (
    RebalanceListener,
    as_offsets,
    as_partitions,
    close_consumer,
    make_consumer,
)
from services.adapters.kafka_writer import RETRY_S, LateVideoWriter
from services.messages.video_record import (
    Partition,
    RawRecord,
    VideoRecord,
    check_record,
    dead_letter_record,
)
from services.ports.reading_progress import REBUILD_AFTER_S, ReadingProgress
from services.ports.video_log import ReaderStatus

log = logging.getLogger(__name__)
COMMIT_EVERY_S = 1.0
ASK_EVERY_S = 2.0  # where the partitions end
# What the client raises while a broker is away or has lost its data; KeyError: it does not know a partition any more.
CLIENT_ERRORS = (KafkaError, OSError, ValueError, AssertionError, KeyError)
LOOKUP_MS = 1000  # for an answer about offsets
REMADE_FRESH_S = 60.0  # how old records may be that are read after a topic was made again: a long GOP
MAX_SINGLE_LOOKUPS = 2  # in a row, of partitions that do not answer together
MAX_BATCH_PACKETS = 8  # of the largest size: what a compressed batch may decompress to
JOIN_S = 3.5  # the embedded broker takes 3 s to admit a member


class KafkaVideoReader:
    """A VideoReader. It finds new topics and cameras by itself, and waits for a broker that is away."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        topic_pattern: str,
        group: str,
        dead_letter_topic: str = "cameras.dead-letter",
        max_packet_bytes: int = 4 * 2**20,
        fresh_s: float = 10.0,
        metadata_max_age_s: float = 2.0,
        alone: bool = False,
        access: KafkaAccess = OPEN,
    ) -> None:
        """`alone`: the only reader of its group. It reads all partitions without joining, and never waits for that."""
        self._access = access
        self._bootstrap = bootstrap_servers
        # The client matches a pattern at the start of a name. This one matches whole names but the dead letters.
        self._pattern = rf"(?!{re.escape(dead_letter_topic)}$)(?:{topic_pattern})$"
        self._group = group
        self._max_packet_bytes = max_packet_bytes
        self._fresh_s = fresh_s
        self._metadata_max_age_s = metadata_max_age_s
        self._alone = alone
        self._consumer: Any = None
        self._guard: FetchGuard | None = None
        self._skipped = SkippedBatches()
        self._dead_letters = LateVideoWriter(bootstrap_servers, dead_letter_topic, access=access)
        self._next_offsets: dict[Partition, int] = {}
        self._unpositioned: set[Partition] = set()  # not yet sought to the first offset to read
        self._revoked: set[Partition] = set()
        self._lost: set[Partition] = set()
        self._commits: dict[Partition, int] = {}
        self._committed_at = 0.0
        self._joining = not alone
        self._topics_at = float("-inf")  # monotonic: when the topics were last listed
        self._absent: set[Partition] = set()  # partitions that were missing from the last list of topics
        self._reachable = True  # whether a new connection can be made
        self._away_since: float | None = None
        self._away_error = ""
        self._progress = ReadingProgress()
        self._ends: dict[Partition, int] = {}
        self._ends_at = 0.0
        self._stuck_at: dict[Partition, int] = {}  # offset at which a connection was given up
        self._give_up: set[Partition] = set()  # stuck again at that offset: to be read on from their ends
        self._num_rebuilds = 0
        self._status = ReaderStatus()

    def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
        """Next records, in order per partition; empty after `timeout_s` or while the broker is away."""
        try:
            consumer, guard = self._connected()
            self._reachable = True
        except CLIENT_ERRORS as error:
            self._reachable = False
            return self._wait(error, timeout_s)
        try:
            self._follow_topics(consumer)
            # kafka-python 3.0.12 starts a join again that ends between two polls: while joining, poll for long enough.
            wait_s = max(timeout_s, JOIN_S) if self._joining else timeout_s
            batches = consumer.poll(timeout_ms=round(wait_s * 1000), max_records=max_records)
        except Exception as error:  # whatever the client raises; it is given up if that goes on
            return self._wait(error, timeout_s)
        moved = self._seek_unpositioned(consumer, guard)
        self._write_commits(consumer)
        records: list[VideoRecord] = []
        for partition, batch in batches.items():
            if (partition.topic, partition.partition) not in moved:
                records += [self._check(record) for record in batch]
        if records:
            self._report_back()
        guard.resume()
        self._observe(consumer)
        return records

    def _wait(self, error: Exception, timeout_s: float) -> list[VideoRecord]:
        self._report_away(error)
        self._observe(None)
        time.sleep(min(timeout_s, RETRY_S))
        return []

    def _connected(self) -> tuple[Any, FetchGuard]:
        if self._consumer is None or self._guard is None:
            check_reachable(self._bootstrap)
            consumer = make_consumer(
                self._bootstrap, self._group, self._access, self._max_packet_bytes, self._metadata_max_age_s
            )
            self._guard = FetchGuard(
                consumer,
                max_batch_bytes=MAX_BATCH_PACKETS * self._max_packet_bytes,
                skipped=self._skipped,
            )
            if not self._alone:
                consumer.subscribe(pattern=self._pattern, listener=RebalanceListener(self))
            self._consumer = consumer
            self._topics_at = float("-inf")
        return self._consumer, self._guard

    def _report_away(self, error: BaseException) -> None:
        self._away_error = f"{type(error).__name__}: {error}"
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("cannot read from Kafka at %s, trying again: %s", self._bootstrap, self._away_error)

    def _report_back(self) -> None:
        if self._away_since is not None:
            self._away_since = None
            log.warning("reading from Kafka at %s again", self._bootstrap)

    def _follow_topics(self, consumer: Any) -> None:
        """Without a group: assign all partitions of all topics that match, and look for new ones now and then."""
        now = time.monotonic()
        if not self._alone or now - self._topics_at < self._metadata_max_age_s:
            return
        topics = [topic for topic in consumer.topics() if re.match(self._pattern, topic)]
        self._topics_at = now
        found = {(t, p) for t in topics for p in consumer.partitions_for_topic(t) or ()}
        before = as_partitions(consumer.assignment())
        # A topic that is deleted and made again may be missing for a moment.
        absent, self._absent = self._absent, before - found
        gone = self._absent & absent
        if found - before or gone:
            consumer.assign([TopicPartition(*one) for one in (before | found) - gone])
            self._drop(gone)
            self._lost |= gone
            self._unpositioned |= found - before

    def _check(self, record: Any) -> VideoRecord:
        self._next_offsets[record.topic, record.partition] = record.offset + 1
        return check_record(
            RawRecord(
                key=record.key,
                value=record.value,
                headers=tuple((name, value or b"") for name, value in record.headers),
                timestamp_ms=record.timestamp,
            ),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            max_packet_bytes=self._max_packet_bytes,
        )

    # -- partitions come and go --

    def on_assigned(self, partitions: set[Partition]) -> None:
        """Called by the client within a rebalance: no network calls here."""
        self._joining = False
        self._unpositioned |= partitions
        self._lost |= self._revoked - partitions
        self._revoked.clear()

    def on_revoked(self, partitions: set[Partition]) -> None:
        """Called by the client before partitions are given up: the last chance to commit."""
        self._joining = True
        if self._consumer is None:
            return
        # kafka-python 3.0.12 forgets a join that a new topic started and that takes longer than one poll: it would
        # never read again. After this request the next poll continues the join.
        self._consumer._coordinator.request_rejoin()
        commits = {one: offset for one, offset in self._commits.items() if one in partitions}
        if commits:
            self._consumer.commit_async(as_offsets(commits))
        self._drop(partitions)
        self._revoked |= partitions

    def on_lost(self, partitions: set[Partition]) -> None:
        """Called by the client when other members already have these partitions: too late to commit."""
        self._joining = True
        self._drop(partitions)
        self._lost |= partitions

    def _drop(self, partitions: set[Partition]) -> None:
        self._unpositioned -= partitions
        for partition in partitions:
            self._commits.pop(partition, None)
            self._ends.pop(partition, None)
        if self._guard is not None:
            self._guard.forget(partitions)

    def _seek_unpositioned(self, consumer: Any, guard: FetchGuard) -> set[Partition]:
        """Seek partitions to their first offset to read. Records already fetched of them are void.

        Those that the broker says nothing about stay unpositioned, and cost the others nothing.
        """
        self._unpositioned |= guard.out_of_range
        void = self._unpositioned & as_partitions(consumer.assignment())
        if not void:
            return set()
        for partitions in ([*void], *([one] for one in list(void)[:MAX_SINGLE_LOOKUPS])):
            waiting = [TopicPartition(*one) for one in partitions if one in self._unpositioned]
            if not waiting:
                break
            try:
                starts = self._first_offsets(consumer, waiting, guard.out_of_range)
            except CLIENT_ERRORS as error:
                log.warning("no offsets of %d partitions, asking again: %s", len(waiting), error)
                continue
            for tp, start in starts.items():
                consumer.seek(tp, start)
                self._next_offsets[tp.topic, tp.partition] = start
                self._ends.pop((tp.topic, tp.partition), None)
                guard.ends.pop((tp.topic, tp.partition), None)
                self._unpositioned.discard((tp.topic, tp.partition))
                guard.out_of_range.discard((tp.topic, tp.partition))
        guard.resume(0.0)
        return void

    def _first_offsets(
        self, consumer: Any, partitions: list[TopicPartition], out_of_range: set[Partition]
    ) -> dict[TopicPartition, int]:
        """At the group's commit, but not before the oldest fresh record; if a partition stayed ours, where we were."""
        now = time.time()
        ages_s = [REMADE_FRESH_S if one in out_of_range else self._fresh_s for one in map(tuple, partitions)]
        oldest_ms = {tp: round((now - age_s) * 1000) for tp, age_s in zip(partitions, ages_s, strict=True)}
        fresh = consumer.offsets_for_times(oldest_ms, timeout_ms=LOOKUP_MS)
        ends = consumer.end_offsets(partitions, timeout_ms=LOOKUP_MS)
        starts: dict[TopicPartition, int] = {}
        for tp in partitions:
            partition, end = (tp.topic, tp.partition), ends[tp]
            was = None if partition in self._lost else self._next_offsets.get(partition)
            start = fresh[tp].offset if fresh.get(tp) is not None else end
            if start > end:  # the embedded broker may still know records of a topic that was made again
                start = 0
            if partition in self._give_up:
                self._give_up.discard(partition)
                start = end
                self._skipped.add(
                    partition, was or 0, end - 1, "unreadable", "reading stood still here twice"
                )
            elif partition in out_of_range:
                # Retention has overtaken us; or the topic was made again, or the broker has lost its data.
                reason = "overtaken" if (was or 0) <= start else "remade"
                self._skipped.add(partition, was or 0, start - 1, reason, f"it goes on at offset {start}")
                self._commits.pop(partition, None)
            else:
                start = max(start, consumer.committed(tp, timeout_ms=LOOKUP_MS) or 0, was or 0)
            starts[tp] = start
        return starts

    # -- commits, dead letters, progress --

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Set where a restart continues. Written within about a second, and before a partition is revoked."""
        self._commits.update(offsets)

    def _write_commits(self, consumer: Any) -> None:
        now = time.monotonic()
        if self._commits and now - self._committed_at >= COMMIT_EVERY_S:
            self._committed_at = now
            try:
                consumer.commit_async(as_offsets(self._commits))
                self._commits.clear()
            except (KafkaError, OSError, AssertionError) as error:
                log.warning("a commit was not written, trying again: %s", error)

    def take_lost(self) -> set[Partition]:
        """Partitions that were lost to another member since the last call."""
        lost, self._lost = self._lost, set()
        for partition in lost:
            self._next_offsets.pop(partition, None)
        return lost

    def dead_letter(self, record: VideoRecord, reason: str) -> None:
        """Copy a record to the dead-letter topic. While the broker is away, it is lost."""
        self._dead_letters.send_record(dead_letter_record(record, reason))

    def _observe(self, consumer: Any) -> None:
        """Note the progress; connect anew when there is none although records wait."""
        now = time.monotonic()
        if consumer is not None and self._guard is not None:
            self._raise_ends(self._guard.ends)
            failing = set(self._guard.problems)
            partitions = as_partitions(consumer.assignment()) - self._unpositioned - failing
            self._ask_for_ends(consumer, partitions, now)
            self._progress.update(partitions, self._next_offsets, self._ends, now)
        standstill_s, stuck = self._progress.standstill(now)
        problem = ""
        if self._away_since is not None:
            standstill_s = max(standstill_s, now - self._away_since)
            problem = f"no answer from Kafka at {self._bootstrap}: {self._away_error}"
        elif stuck is not None and standstill_s > REBUILD_AFTER_S:
            problem = (
                f"topic {stuck[0]}, partition {stuck[1]}: {self._progress.lag()[stuck]} records wait at offset "
                f"{self._next_offsets.get(stuck)}, and none was read for {standstill_s:.0f} s"
            )
        if self._consumer is not None and standstill_s > REBUILD_AFTER_S and self._progress.may_rebuild(now):
            self._rebuild(stuck, problem)
        self._status = ReaderStatus(
            standstill_s=standstill_s,
            problem=problem,
            away=not self._reachable,
            lag=self._progress.lag(),
            num_failing=len(self._guard.problems) if self._guard is not None else 0,
            num_skipped=dict(self._skipped.counts),
            num_rebuilds=self._num_rebuilds,
        )

    def _raise_ends(self, ends: Mapping[Partition, int]) -> None:
        """They only grow until a partition is sought anew: the embedded broker's answers may be too low."""
        for partition, end in ends.items():
            self._ends[partition] = max(end, self._ends.get(partition, 0))

    def _ask_for_ends(self, consumer: Any, partitions: set[Partition], now: float) -> None:
        """A client that fetches nothing does not know either that records wait: ask now and then."""
        if not partitions or now - self._ends_at < ASK_EVERY_S:
            return
        self._ends_at = now
        try:
            ends = consumer.end_offsets([TopicPartition(*one) for one in partitions], timeout_ms=LOOKUP_MS)
        except CLIENT_ERRORS as error:
            self._report_away(error)
        else:
            self._raise_ends({(tp.topic, tp.partition): end for tp, end in ends.items()})
            self._report_back()

    def _rebuild(self, stuck: Partition | None, problem: str) -> None:
        """Read on with a new connection, at the same offsets; at the end of a partition that is stuck again."""
        log.warning("%s; connecting to Kafka anew", problem)
        self._num_rebuilds += 1
        if stuck is not None:
            offset = self._next_offsets.get(stuck, 0)
            if self._stuck_at.get(stuck) == offset:
                self._give_up.add(stuck)
            self._stuck_at = {stuck: offset}
        consumer, self._consumer, self._guard = self._consumer, None, None
        self._unpositioned |= as_partitions(consumer.assignment()) if self._alone else set()
        self._joining = not self._alone
        threading.Thread(target=close_consumer, args=(consumer,), name="close-consumer", daemon=True).start()

    def lag(self) -> int:
        return sum(self._status.lag.values())

    def status(self) -> ReaderStatus:
        return self._status

    def close(self) -> None:
        """Write the last commit and leave the group; two seconds at most each."""
        try:
            if self._consumer is not None:
                if self._commits:
                    self._consumer.commit(as_offsets(self._commits), timeout_ms=2000)
                    self._commits.clear()
                self._consumer.close(autocommit=False, timeout_ms=2000)
        except KafkaError as error:
            log.warning("the last commit was not written: %s", error)
        finally:
            self._consumer = None
            self._dead_letters.close()
