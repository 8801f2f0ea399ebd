"""`python -m helm.boards` writes the dashboards that the chart ships: `helm/streamchat/dashboards/*.json`."""

from __future__ import annotations

from pathlib import Path

from helm.boards import engine, latency, live, pipeline, training
from helm.boards.panels import built

FOLDER = Path(__file__).parent.parent / "streamchat" / "dashboards"


def documents() -> dict[str, str]:
    """The JSON of every dashboard, by its name."""
    return {
        name: built(f"streamchat-{name}", f"StreamChat: {title}", about, rows)
        for name, title, about, rows in (
            ("live", "live", "Cameras, dialogs, and the age of the frames behind the words.", live.rows()),
            (
                "latency",
                "latency and throughput",
                "Latency, throughput and errors of the API.",
                latency.rows(),
            ),
            ("pipeline", "pipeline", "From Kafka to Redis, and what is lost on the way.", pipeline.rows()),
            ("engine", "engine", "The decoders' steps, caches and memory.", engine.rows()),
            ("training", "training", "Training runs on Ray.", training.rows()),
        )
    }


def main() -> None:
    """Write them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (FOLDER / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
