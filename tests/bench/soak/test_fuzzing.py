"""The fuzzer's own parts: what it changes, and what it counts as a broken promise."""

from __future__ import annotations

import copy
import json
from random import Random

import pytest

from tests.bench.soak.findings import Findings
from tests.bench.soak.fuzz_realtime import EVENTS
from tests.bench.soak.fuzz_requests import questions
from tests.bench.soak.mutate import EDGES, mutated, to_json

REFUSAL = {"error": {"message": "no", "type": "invalid_request_error", "code": "x", "param": None}}


def test_every_change_can_be_sent_and_leaves_the_good_request_alone() -> None:
    good = [*questions(), *EVENTS]
    before, edges = copy.deepcopy(good), repr(EDGES)
    sent = {to_json(mutated(good[n % len(good)], Random(n), num_changes=n % 4)) for n in range(1000)}
    assert good == before
    assert repr(EDGES) == edges
    assert len(sent) > 200
    for body in sent:
        json.loads(body.replace(b"9" * 5000, b"9"))


@pytest.mark.parametrize(
    ("status", "method", "body", "num_broken"),
    [
        (200, "POST", b"", 0),
        (400, "POST", json.dumps(REFUSAL).encode(), 0),
        (503, "POST", json.dumps(REFUSAL).encode(), 0),
        (404, "HEAD", b"", 0),
        (500, "POST", json.dumps(REFUSAL).encode(), 1),
        (400, "POST", b"Bad Request", 1),
        (422, "POST", b'{"detail": []}', 1),
        (400, "POST", b'{"error": {"message": "", "type": "x", "code": null, "param": null}}', 1),
    ],
)
def test_a_reply_breaks_a_promise(status: int, method: str, body: bytes, num_broken: int) -> None:
    findings = Findings()
    findings.check_reply("request", b"", status, method, body)
    assert findings.num_broken == num_broken == len(findings.broken)
