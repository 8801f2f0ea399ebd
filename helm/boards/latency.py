"""The dashboard *latency*: latency, throughput and errors of the API."""

from __future__ import annotations

from helm.boards.panels import Panel, Query, Rows, quantiles, rate


def rows() -> Rows:
    """Rows of panels."""
    faults = 'streamchat_request_errors_total{$ns, status=~"5..", code!="not_ready"}'
    return [
        (
            "Latency",
            [
                Panel(
                    title="Time to first token",
                    about="From the question's arrival at the gateway to its first token.",
                    unit="s",
                    queries=quantiles("streamchat_time_to_first_token_seconds"),
                    warn=0.5,
                    bad=2,
                ),
                Panel(
                    title="Time between tokens",
                    about="As the engine made them. An answer with a set pace waits on purpose.",
                    unit="s",
                    queries=quantiles("streamchat_inter_token_latency_seconds"),
                    warn=0.3,
                    bad=1,
                ),
                Panel(
                    title="End to end",
                    about="From the question's arrival to the answer's end. Long answers take long.",
                    unit="s",
                    queries=quantiles("streamchat_e2e_request_latency_seconds"),
                    warn=60,
                    bad=300,
                ),
            ],
        ),
        (
            "Throughput",
            [
                Panel(
                    title="Tokens",
                    about="Tokens a second, of questions and of answers.",
                    unit="suffix: tokens/s",
                    queries=[
                        Query(rate("streamchat_prompt_tokens_total"), "of questions"),
                        Query(rate("streamchat_generation_tokens_total"), "of answers"),
                    ],
                    warn=8_000,
                    bad=20_000,
                ),
                Panel(
                    title="Questions",
                    about="Questions handed to a decoder, a second.",
                    unit="reqps",
                    queries=[Query(rate("streamchat_requests_total"), "questions")],
                    warn=100,
                    bad=1_000,
                ),
                Panel(
                    title="Open answers",
                    about="Running: being generated. Waiting: not taken by a decoder yet; should be about 0.",
                    unit="short",
                    queries=[
                        Query("sum(streamchat_requests_running{$ns})", "running"),
                        Query("sum(streamchat_requests_waiting{$ns})", "waiting"),
                    ],
                    warn=64,
                    bad=256,
                ),
            ],
        ),
        (
            "Errors",
            [
                Panel(
                    title="Server errors per question",
                    about="Requests that failed with a status of 500 or more, per question.",
                    unit="percentunit",
                    queries=[
                        Query(
                            f"sum(rate({faults}[5m])) / {rate('streamchat_requests_total', window='5m')}",
                            "faults",
                        )
                    ],
                    warn=0.01,
                    bad=0.05,
                ),
                Panel(
                    title="Failed requests by code",
                    about="The API's error codes. 4xx are errors of the caller; 429 means that all capacity is in use.",
                    unit="reqps",
                    queries=[
                        Query(rate("streamchat_request_errors_total", "code, status"), "{{status}} {{code}}")
                    ],
                    warn=1,
                    bad=10,
                ),
                Panel(
                    title="Answers continued by another decoder",
                    about="A decoder was lost during an answer, and another one continued it unnoticed.",
                    unit="ops",
                    queries=[Query(rate("streamchat_redispatches_total"), "continued")],
                    warn=0.01,
                    bad=1,
                ),
                Panel(
                    title="Callers refused",
                    about="Requests without a key, with a wrong one, or for what the key may not see.",
                    unit="reqps",
                    queries=[Query(rate("streamchat_auth_failures_total", "reason"), "{{reason}}")],
                    warn=0.1,
                    bad=5,
                ),
                Panel(
                    title="Rate limits without Redis",
                    about="Requests whose rate limit one gateway counted alone: Redis could not be reached.",
                    unit="reqps",
                    queries=[Query(rate("streamchat_rate_limit_fallbacks_total"), "requests")],
                    warn=0.1,
                    bad=10,
                ),
            ],
        ),
    ]
