"""The dashboard *live*: cameras, dialogs and frame age."""

from __future__ import annotations

from helm.boards.panels import Panel, Query, Rows, quantiles, rate

AGE = "streamchat_frame_age_at_decode_seconds"


def rows() -> Rows:
    """Rows of panels."""
    age = Panel(
        title="Frame age at decode",
        about="Time from the capture of the newest frame that a word could see to the moment the word was made.",
        unit="s",
        queries=quantiles(AGE),
        warn=0.5,
        bad=2,
    )
    numbers = [
        Panel(
            title="Frame age now (p95)",
            about="19 of 20 words of the last 2 minutes were made from a frame younger than this.",
            unit="s",
            queries=quantiles(AGE)[1:2],
            warn=0.5,
            bad=2,
            kind="number",
        ),
        Panel(
            title="Cameras up",
            about="Cameras that send packets.",
            unit="short",
            queries=[Query("sum(max by (namespace, camera) (streamchat_camera_up{$ns}))", "cameras")],
            warn=1,
            bad=0,
            falling=True,
            kind="number",
        ),
        Panel(
            title="Answers now",
            about="Answers being generated, as a share of the capacity of all decoders.",
            unit="percentunit",
            queries=[
                Query(
                    "sum(streamchat_dialogs_running{$ns}) / sum(streamchat_dialog_places{$ns})", "of capacity"
                )
            ],
            warn=0.7,
            bad=0.95,
            kind="number",
        ),
    ]
    return [
        ("Now", [*numbers]),
        (
            "Live",
            [
                age,
                Panel(
                    title="Frame age by camera (p95)",
                    about="Which camera is late. Only one: its network or clock. All: the encoder or the decoder.",
                    unit="s",
                    queries=quantiles(AGE, "camera")[1:2],
                    warn=0.5,
                    bad=2,
                ),
                Panel(
                    title="Words",
                    about="Tokens a second, over all answers. A word is one to two tokens.",
                    unit="suffix: tokens/s",
                    queries=[Query(rate("streamchat_generation_tokens_total"), "tokens")],
                    warn=1,
                    bad=0.1,
                    falling=True,
                ),
                Panel(
                    title="Dialogs by camera",
                    about="Dialogs that are generating now, by camera.",
                    unit="short",
                    queries=[Query("sum by (camera) (streamchat_dialogs_running{$ns})", "{{camera}}")],
                    warn=32,
                    bad=64,
                    kind="bars",
                ),
                Panel(
                    title="Cameras",
                    about="1 while the camera sends packets, 0 when it is silent.",
                    unit="short",
                    queries=[Query("max by (camera) (streamchat_camera_up{$ns})", "{{camera}}")],
                    warn=1,
                    bad=0.5,
                    falling=True,
                ),
                Panel(
                    title="People",
                    about="Open picture streams and realtime sessions.",
                    unit="short",
                    queries=[
                        Query("sum(streamchat_picture_viewers{$ns})", "picture streams"),
                        Query("sum(streamchat_websocket_connections{$ns})", "realtime sessions"),
                    ],
                    warn=200,
                    bad=500,
                ),
            ],
        ),
    ]
