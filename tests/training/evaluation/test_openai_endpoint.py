"""Clients of OpenAI-compatible servers."""

from __future__ import annotations

import pytest

from tests.training.scripted_endpoint import MODEL, scripted
from training.evaluation.openai_endpoint import EndpointError, first_model, open_client


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_first_model_is_found_with_and_without_v1(suffix: str) -> None:
    with scripted(lambda request: "Yes.") as server:
        async with open_client(server.url + suffix) as client:
            assert await first_model(client) == MODEL


async def test_a_server_that_is_not_there_is_an_error() -> None:
    async with open_client("http://127.0.0.1:1").with_options(max_retries=0) as client:
        with pytest.raises(EndpointError, match=r"127\.0\.0\.1:1/v1/models: "):
            await first_model(client)
