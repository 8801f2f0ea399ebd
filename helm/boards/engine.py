"""The dashboard *engine*: steps, caches, memory."""

from __future__ import annotations

from helm.boards.panels import Panel, Query, Rows, quantiles, rate


def rows() -> Rows:
    """Rows of panels."""
    return [
        (
            "Steps",
            [
                Panel(
                    title="Step",
                    about="One decoding step of all dialogs that are due: one token for each.",
                    unit="s",
                    queries=quantiles("streamchat_step_seconds"),
                    warn=0.1,
                    bad=0.3,
                ),
                Panel(
                    title="Dialogs in a step",
                    about="The engine's batch.",
                    unit="short",
                    queries=quantiles("streamchat_step_dialogs"),
                    warn=48,
                    bad=64,
                ),
                Panel(
                    title="Engine busy",
                    about="Share of the time that a decoder replica spends in steps: roughly its GPU load.",
                    unit="percentunit",
                    queries=[
                        Query("max(rate(streamchat_engine_busy_seconds_total{$ns}[1m]))", "busiest replica"),
                        Query("avg(rate(streamchat_engine_busy_seconds_total{$ns}[1m]))", "mean"),
                    ],
                    warn=0.7,
                    bad=0.95,
                ),
                Panel(
                    title="Dialogs and capacity",
                    about="Dialogs that are generating, and how many the engine has room for.",
                    unit="short",
                    queries=[
                        Query("sum(streamchat_dialogs_running{$ns})", "dialogs"),
                        Query("sum(streamchat_dialog_places{$ns})", "places"),
                    ],
                    warn=64,
                    bad=256,
                ),
                Panel(
                    title="Frames ingested",
                    about="Frames taken into the engine's rings a second.",
                    unit="suffix: frames/s",
                    queries=[Query(rate("streamchat_visual_refresh_total"), "frames")],
                    warn=400,
                    bad=800,
                ),
                Panel(
                    title="NaN or infinity",
                    about="Frames that the engine skipped and dialogs that ended because numbers were not finite.",
                    unit="suffix: /s",
                    queries=[
                        Query(rate("streamchat_engine_frames_skipped_total"), "frames"),
                        Query(rate("streamchat_engine_rows_failed_total"), "dialogs"),
                    ],
                    warn=0.001,
                    bad=1,
                ),
                Panel(
                    title="Decoders",
                    about="Decoder replicas that are up.",
                    unit="short",
                    queries=[Query("count(streamchat_dialog_places{$ns})", "replicas")],
                    warn=1,
                    bad=0,
                    falling=True,
                ),
            ],
        ),
        (
            "Memory",
            [
                Panel(
                    title="Caches",
                    about="Keys and values: of frames (a ring for each camera) and of text (for each dialog).",
                    unit="bytes",
                    queries=[Query("sum by (kind) (streamchat_cache_bytes{$ns})", "{{kind}}")],
                    warn=40e9,
                    bad=70e9,
                    stacked=True,
                ),
                Panel(
                    title="Cache of a camera, of a dialog",
                    about="Memory of one camera's frames, and of the longest dialog's text.",
                    unit="bytes",
                    queries=[Query("max by (kind) (streamchat_cache_each_bytes{$ns})", "{{kind}}")],
                    warn=1e9,
                    bad=4e9,
                ),
                Panel(
                    title="GPU memory",
                    about="Memory in use where a decoder computes, as a share of the GPU's or the machine's memory.",
                    unit="percentunit",
                    queries=[
                        Query(
                            "max by (device, replica) (streamchat_device_memory_bytes{$ns}"
                            " / streamchat_device_memory_limit_bytes{$ns})",
                            "{{device}} {{replica}}",
                        )
                    ],
                    warn=0.85,
                    bad=0.95,
                ),
                Panel(
                    title="Caches, as a share of their limit",
                    about="At 1, a new dialog or camera is refused until another one ends.",
                    unit="percentunit",
                    queries=[
                        Query(
                            "sum(streamchat_cache_bytes{$ns}) / sum(streamchat_cache_limit_bytes{$ns})",
                            "taken",
                        )
                    ],
                    warn=0.8,
                    bad=0.95,
                ),
                Panel(
                    title="Memory in use",
                    about="Bytes, by device.",
                    unit="bytes",
                    queries=[Query("sum by (device) (streamchat_device_memory_bytes{$ns})", "{{device}}")],
                    warn=40e9,
                    bad=70e9,
                ),
            ],
        ),
    ]
