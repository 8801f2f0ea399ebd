"""A camera without StreamChat's code: it writes the log's format with another Kafka client (confluent-kafka)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from services.messages.video import VideoPacket
from services.processes.polling import wait_until
from tests.services.h264 import camera_packets, encoded

FPS = 15
SILENT = {"log_level": 0}  # librdkafka prints on standard error

Change = Callable[[VideoPacket], VideoPacket]


class KafkaCamera:
    """Sends the same 30 frames again and again in real time, in a thread, until the block ends."""

    def __init__(
        self, kafka: str, camera: str, *, topic: str = "cameras", change: Change = lambda packet: packet
    ) -> None:
        self.camera, self.topic = camera, topic
        self._change = change
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0, **SILENT})
        self._kafka = kafka
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {camera}", daemon=True)

    def __enter__(self) -> KafkaCamera:
        create_topic(self._kafka, self.topic)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._ended.set()
        self._thread.join()
        self._producer.flush(5.0)

    def _run(self) -> None:
        units = encoded(2 * FPS, fps=FPS, gop=FPS)
        began_s = time.time()
        seq = 0
        while not self._ended.is_set():
            first_s = began_s + seq / FPS
            for packet in camera_packets(units, camera=self.camera, start_s=first_s, first_seq=seq):
                if self._ended.wait(max(0.0, packet.captured_s - time.time())):
                    return
                send(self._producer, self.topic, self._change(packet))
            seq += len(units)


def send(producer: Producer, topic: str, packet: VideoPacket, **headers: bytes) -> None:
    """One access unit in the format of the log; `headers` replace its own."""
    own = {
        "codec": packet.codec.encode(),
        "keyframe": b"1" if packet.keyframe else b"0",
        "pts": str(packet.pts).encode(),
        "time_base": f"{packet.time_base[0]}/{packet.time_base[1]}".encode(),
        "seq": str(packet.seq).encode(),
    }
    producer.produce(
        topic,
        key=packet.camera.encode(),
        value=packet.data,
        headers=list((own | headers).items()),
        timestamp=round(packet.captured_s * 1000),
    )
    producer.poll(0)


def create_topic(kafka: str, topic: str) -> None:
    """Make the topic if it is missing."""
    admin = AdminClient({"bootstrap.servers": kafka, **SILENT})
    for made in admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)]).values():
        problem = made.exception(timeout=20)
        known = KafkaError.TOPIC_ALREADY_EXISTS
        assert problem is None or getattr(problem, "args")[0].code() == known, problem  # noqa: B009


class DeadLetters:
    """Reads `cameras.dead-letter` from its beginning."""

    def __init__(self, kafka: str) -> None:
        topic = "cameras.dead-letter"
        create_topic(kafka, topic)
        options = {
            "bootstrap.servers": kafka,
            "group.id": "dead-letter-reader",
            "enable.auto.commit": False,
            **SILENT,
        }
        self._consumer = Consumer(options)
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        self.reasons: dict[str, list[str]] = {}  # by camera

    def reason(self, camera: str, timeout_s: float) -> str:
        """The reason in the camera's first dead letter."""
        assert wait_until(lambda: self._read() or camera in self.reasons, timeout_s), (
            f"no dead letter of {camera}"
        )
        return self.reasons[camera][0]

    def _read(self) -> bool:
        for message in self._consumer.consume(100, timeout=0.1):
            if message.error() is None:
                headers = dict(message.headers() or ())
                camera, reason = message.key() or b"", headers["reason"]
                assert isinstance(camera, bytes)
                assert isinstance(reason, bytes)
                self.reasons.setdefault(camera.decode(errors="replace"), []).append(reason.decode())
        return False

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def new_packets(camera: str, num_frames: int = 1) -> Sequence[VideoPacket]:
    """The first packets of a camera, captured now."""
    return camera_packets(encoded(num_frames, fps=FPS, gop=FPS), camera=camera, start_s=time.time())
