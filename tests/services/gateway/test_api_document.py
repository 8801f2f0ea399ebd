"""The API does what its own description says: schemathesis makes requests from it, good and bad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS

from services.access.api_keys import edit_keys, make_key
from services.settings import Settings
from tests.services.served_gateway import gateway

pytestmark = pytest.mark.slow

CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
STREAMS = "pictures|/stream$"  # they never end
NUM_OPERATIONS = 8


@pytest.fixture(scope="module")
def key_and_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    text, key = make_key("me", role="admin", cameras=("*",), requests_per_minute=10**6)
    with edit_keys(path) as keys:
        keys[key.id] = key
    with gateway(Settings(keys_file=str(path))) as served:
        yield text, served.url


@pytest.mark.parametrize("with_key", [True, False])
def test_the_api_does_what_it_says(key_and_url: tuple[str, str], with_key: bool) -> None:
    text, url = key_and_url
    headers = {"Authorization": f"Bearer {text}"}
    document: Any = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
    operations = [found.ok() for found in document.exclude(path_regex=STREAMS).get_all_operations()]
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=20, deadline=None, database=None, suppress_health_check=[*HealthCheck])  # pyright: ignore
        def holds(case: Any) -> None:
            checks = CHECKS.get_by_names(CHECKED)
            case.call_and_validate(headers=headers if with_key else {}, checks=checks)

        holds()
    assert len(operations) >= NUM_OPERATIONS
