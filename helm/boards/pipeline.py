"""The dashboard *pipeline*: from Kafka to Redis, and what is lost on the way."""

from __future__ import annotations

from helm.boards.panels import Panel, Query, Rows, quantiles, rate


def rows() -> Rows:
    """Rows of panels."""
    dropped, ingested = "streamchat_frames_dropped_total", "streamchat_frames_ingested_total"
    lag = "sum(streamchat_kafka_consumer_lag_messages{$ns})"
    return [
        (
            "In",
            [
                Panel(
                    title="Packets read by camera",
                    about="Encoded access units a second: the camera's own frame rate.",
                    unit="pps",
                    queries=[Query(rate("streamchat_packets_read_total", "camera"), "{{camera}}")],
                    warn=65,
                    bad=130,
                ),
                Panel(
                    title="Frames in by camera",
                    about="Frames encoded and put into the FIFO a second. The model uses 5.",
                    unit="suffix: frames/s",
                    queries=[Query(rate(ingested, "camera"), "{{camera}}")],
                    warn=1,
                    bad=0.2,
                    falling=True,
                ),
                Panel(
                    title="Frame age in the FIFO",
                    about="Age of a frame when it was put into the FIFO: camera, Kafka, decoding, encoding.",
                    unit="s",
                    queries=quantiles("streamchat_frame_age_at_store_seconds"),
                    warn=0.4,
                    bad=1.5,
                ),
                Panel(
                    title="Behind Kafka",
                    about="How long the reader needs for all unread records, at its current rate.",
                    unit="s",
                    queries=[Query(f"{lag} / {rate('streamchat_packets_read_total')}", "behind")],
                    warn=1,
                    bad=5,
                ),
                Panel(
                    title="Lag",
                    about="Records in Kafka that were not read yet.",
                    unit="short",
                    queries=[Query(lag, "records")],
                    warn=100,
                    bad=1000,
                ),
                Panel(
                    title="Reader without progress",
                    about="For how long records have waited in Kafka although none was read, or Kafka did not answer.",
                    unit="s",
                    queries=[Query("max(streamchat_reader_seconds_since_progress{$ns})", "standstill")],
                    warn=2,
                    bad=5,
                ),
                Panel(
                    title="Unread records by partition",
                    about="Records of each partition in Kafka that were not read yet.",
                    unit="short",
                    queries=[
                        Query(
                            "max by (topic, partition) (streamchat_reader_lag_messages{$ns})",
                            "{{topic}}/{{partition}}",
                        )
                    ],
                    warn=100,
                    bad=1000,
                ),
                Panel(
                    title="Unreadable partitions",
                    about="Partitions that Kafka does not let the reader read, and new connections a second.",
                    unit="short",
                    queries=[
                        Query("sum(streamchat_reader_failing_partitions{$ns})", "failing partitions"),
                        Query(rate("streamchat_reader_rebuilds_total"), "new connections"),
                    ],
                    warn=1,
                    bad=2,
                ),
                Panel(
                    title="Batches skipped by reason",
                    about="Record batches that could not be read, and places where reading continued elsewhere.",
                    unit="cps",
                    queries=[Query(rate("streamchat_reader_batches_skipped_total", "reason"), "{{reason}}")],
                    warn=0.01,
                    bad=1,
                    stacked=True,
                ),
                Panel(
                    title="Clocks",
                    about="Capture time of the newest packet less our clock when it was read: above 0 the camera's "
                    "clock is ahead of ours; far below 0 it is behind, or the reader is.",
                    unit="s",
                    queries=[
                        Query(
                            "max by (camera) (abs(streamchat_camera_capture_skew_seconds{$ns}))", "{{camera}}"
                        )
                    ],
                    warn=1,
                    bad=2,
                ),
                Panel(
                    title="Clocks that were set",
                    about="How often a camera's clock was set back or forward. Its frames keep the time from before.",
                    unit="cps",
                    queries=[Query(rate("streamchat_camera_time_jumps_total", "camera"), "{{camera}}")],
                    warn=0.01,
                    bad=1,
                ),
            ],
        ),
        (
            "Lost",
            [
                Panel(
                    title="Frames dropped by reason",
                    about="overtaken: replaced by newer frames while the encoder was busy; replayed: sent before.",
                    unit="cps",
                    queries=[Query(rate(dropped, "stage, reason"), "{{stage}}: {{reason}}")],
                    warn=0.1,
                    bad=1,
                    stacked=True,
                ),
                Panel(
                    title="Share of frames dropped by camera",
                    about="Of the frames that were sampled.",
                    unit="percentunit",
                    queries=[
                        Query(
                            f"{rate(dropped, 'camera')} / ({rate(dropped, 'camera')} + {rate(ingested, 'camera')})",
                            "{{camera}}",
                        )
                    ],
                    warn=0.01,
                    bad=0.05,
                ),
                Panel(
                    title="Packets skipped by reason",
                    about="late: the reader skipped the rest of a GOP to catch up; no_keyframe: started inside a GOP.",
                    unit="pps",
                    queries=[Query(rate("streamchat_packets_skipped_total", "reason"), "{{reason}}")],
                    warn=1,
                    bad=10,
                    stacked=True,
                ),
                Panel(
                    title="Dead letters by reason",
                    about="Records that could not be used. The dead-letter topic has each one with its reason.",
                    unit="cps",
                    queries=[Query(rate("streamchat_dead_letter_total", "reason"), "{{reason}}")],
                    warn=0.01,
                    bad=1,
                    stacked=True,
                ),
                Panel(
                    title="Sent by publishers",
                    about="Access units sent by `streamchat publish`, if its --metrics endpoint is scraped.",
                    unit="pps",
                    queries=[Query(rate("streamchat_publish_frames_total", "camera"), "{{camera}}")],
                    warn=5,
                    bad=1,
                    falling=True,
                ),
                Panel(
                    title="Lost by publishers",
                    about="refused: too large for readers; dropped: Kafka did not accept them in time.",
                    unit="pps",
                    queries=[
                        Query(
                            rate("streamchat_publish_dropped_total", "camera, reason"),
                            "{{camera}}: {{reason}}",
                        )
                    ],
                    warn=0.1,
                    bad=1,
                ),
            ],
        ),
        (
            "Encoder and store",
            [
                Panel(
                    title="Pictures encoded together",
                    about="Batch size of the vision encoder. It grows with the load.",
                    unit="short",
                    queries=quantiles("streamchat_encoder_batch_size"),
                    warn=12,
                    bad=16,
                ),
                Panel(
                    title="Encoder pass",
                    about="Time of one pass over a batch of pictures.",
                    unit="s",
                    queries=quantiles("streamchat_frame_encode_seconds"),
                    warn=0.1,
                    bad=0.5,
                ),
                Panel(
                    title="Encoder busy",
                    about="Share of the time that an encoder replica computes. Near 1: add replicas.",
                    unit="percentunit",
                    queries=[
                        Query("max(rate(streamchat_encoder_busy_seconds_total{$ns}[1m]))", "busiest replica")
                    ],
                    warn=0.7,
                    bad=0.9,
                ),
                Panel(
                    title="FIFO fill by camera",
                    about="Frames in the FIFO, as a share of its capacity. Full a few seconds after the camera starts.",
                    unit="percentunit",
                    queries=[
                        Query(
                            "max by (camera) (streamchat_fifo_entries{$ns})"
                            " / on () group_left () max(streamchat_fifo_capacity{$ns})",
                            "{{camera}}",
                        )
                    ],
                    warn=0.5,
                    bad=0.1,
                    falling=True,
                ),
                Panel(
                    title="Redis memory",
                    about="Memory of all FIFOs, as a share of what Redis may use. A full Redis refuses frames.",
                    unit="percentunit",
                    queries=[
                        Query(
                            "max(streamchat_fifo_bytes{$ns}) / (max(streamchat_fifo_limit_bytes{$ns}) > 0)",
                            "used",
                        )
                    ],
                    warn=0.7,
                    bad=0.9,
                ),
                Panel(
                    title="Age of the newest frame by camera",
                    about="Seconds since the newest frame in the FIFO was captured, as of the last scrape.",
                    unit="s",
                    queries=[
                        Query(
                            "time() - max by (camera) (streamchat_camera_newest_frame_timestamp_seconds{$ns})",
                            "{{camera}}",
                        )
                    ],
                    warn=20,
                    bad=30,
                ),
            ],
        ),
    ]
