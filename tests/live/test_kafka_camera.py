"""A camera on its own topic, sent with another Kafka client (confluent-kafka)."""

from __future__ import annotations

import pytest

from tests.live.clients.kafka_camera import KafkaCamera
from tests.live.clients.live_stack import (
    MODEL,
    LiveStack,
    camera_part,
    eventually,
    in_order,
    question_about,
    tokens_of,
)

pytestmark = pytest.mark.timeout(400)


@pytest.mark.usefixtures("undisturbed")
def test_a_new_camera_on_a_new_topic_is_found_and_can_be_asked_about(live: LiveStack) -> None:
    assert "porch" not in live.cameras()
    with KafkaCamera(live.kafka, "porch", topic="cameras.second"), live.client() as client:
        live.wait_for_frames("porch")
        answer = client.chat.completions.create(
            model=MODEL,
            messages=question_about(camera_part("porch")),
            max_tokens=20,
            extra_body={"streamchat": {"tokens_per_second": 10}},
        )
        eventually(
            lambda: live.cameras()["porch"]["fps"] == pytest.approx(5, abs=0.5), "not five frames a second"
        )
    ids = [token["frame_id"] for token in tokens_of(answer)]
    assert in_order(ids)
    assert len(set(ids)) >= 4
    assert set(live.cameras()) >= {"door", "yard", "porch"}
