"""A client of an OpenAI-compatible server: of a server that is evaluated, or of a judge."""

from __future__ import annotations

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

TIMEOUT_S = 120.0


class EndpointError(RuntimeError):
    """A server that cannot be asked, or did not answer. The message says why."""


def open_client(url: str, key: str = "none") -> AsyncOpenAI:
    """Make a client; `url` may end with /v1. It retries 429, 5xx and lost connections with growing delays."""
    base = url.rstrip("/")
    return AsyncOpenAI(
        base_url=base if base.endswith("/v1") else f"{base}/v1",
        api_key=key,
        max_retries=5,
        timeout=TIMEOUT_S,
        http_client=DefaultAsyncHttpxClient(trust_env=False),
    )


async def first_model(client: AsyncOpenAI) -> str:
    """Id of the first model that the server lists; EndpointError when it lists none."""
    try:
        listed = (await client.with_options(max_retries=1).models.list()).data
    except OpenAIError as error:
        raise EndpointError(f"{client.base_url}models: {error}") from error
    if not listed:
        raise EndpointError(f"{client.base_url}models: the server lists no model")
    return listed[0].id
