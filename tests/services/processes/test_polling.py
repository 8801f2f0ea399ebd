"""Waiting has an end."""

from __future__ import annotations

import time

from services.processes.polling import wait_until


def test_waiting_is_bounded() -> None:
    began = time.monotonic()
    assert not wait_until(lambda: False, 0.1)
    assert 0.09 < time.monotonic() - began < 2.0
    assert wait_until(lambda: True, 0.0)
