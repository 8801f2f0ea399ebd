"""A few entries of each data set, in its own layout, for the tests of the readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.data.bad_row import BadRowCounter
from training.data.readers.registry import Reader
from training.data.training_row import TrainingRow

EGO4D_V1: dict[str, Any] = {
    "001e3e4e-2743-47fc-8564-d5efd11f9e90": {
        "narration_pass_1": {
            "narrations": [
                {
                    "timestamp_sec": 3.3445,
                    "timestamp_frame": 100,
                    "narration_text": "#C C picks a bag of clothes from the floor",
                    "annotation_uid": "9b4f0a6c-0f0f-4d3f-8a1a-2f1c1e1c1e1c",
                },
                {
                    "timestamp_sec": 6.5,
                    "timestamp_frame": 195,
                    "narration_text": "#O Man X walks past C with #unsure",
                    "annotation_uid": "9b4f0a6c-0f0f-4d3f-8a1a-2f1c1e1c1e1c",
                },
                {
                    "timestamp_sec": 40.0,
                    "timestamp_frame": 1200,
                    "narration_text": "#C C drops the bag",
                    "annotation_uid": "9b4f0a6c-0f0f-4d3f-8a1a-2f1c1e1c1e1c",
                },
            ],
            "summaries": [{"start_sec": 0, "end_sec": 128.0, "summary_text": "#Summary C does the laundry"}],
        },
        "narration_pass_2": {
            "narrations": [
                {
                    "timestamp_sec": 3.0,
                    "timestamp_frame": 90,
                    "narration_text": "#C C lifts a bag",
                    "annotation_uid": "7c1e0a6c-0f0f-4d3f-8a1a-2f1c1e1c1e1c",
                }
            ],
            "summaries": [],
        },
        "status": "complete",
    },
    "00277df9-e3c7-4f9a-8b5e-1c2d3e4f5a6b": {"status": "redacted"},
}
EGO4D_V2: dict[str, Any] = {
    "version": "2",
    "videos": {
        "0a0a": {
            "narrations": [
                {
                    "time": 2.5,
                    "text": "#C C holds knitting sticks by hand.",
                    "is_summary": False,
                    "_clip_time_start": 0,
                    "_clip_time_end": 0,
                    "annotator": "4130600123644721",
                    "_annotation_uid": "385dff3f-de20-4a80-9de9-5cc25bde2abe",
                }
            ],
            "summaries": [{"start_time": 0.0, "end_time": 300.0, "text": "#Summary C knits"}],
        }
    },
}
ACTIVITYNET: dict[str, Any] = {
    "v_QOlSCBRmfWY": {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17.37, 60.81], [56.26, 79.42]],
        "sentences": [
            "A young woman is seen standing in a room and leads into her dancing.",
            " The girl dances around the room while the camera captures her movements.",
            " She continues dancing around the room and ends by laying on the floor.",
        ],
    }
}
COIN: dict[str, Any] = {
    "database": {
        "LtRSn-ntcLY": {
            "duration": 131.0309,
            "class": "ReplaceCDDriveWithSSD",
            "video_url": "https://www.youtube.com/embed/LtRSn-ntcLY",
            "start": 56.640895694775196,
            "annotation": [
                {"id": "212", "segment": [60.0, 69.0], "label": "take out the laptop CD drive"},
                {
                    "id": "216",
                    "segment": [71.0, 82.0],
                    "label": "insert the hard disk tray into the position of the CD drive",
                },
            ],
            "subset": "training",
            "end": 85.714362947023,
            "recipe_type": 131,
        }
    }
}
YOUCOOK2: dict[str, Any] = {
    "database": {
        "GLd3aX16zBg": {
            "duration": 241.62,
            "subset": "training",
            "recipe_type": "113",
            "annotations": [
                {"segment": [90, 102], "id": 0, "sentence": "spread margarine on two slices of white bread"},
                {"segment": [114, 127], "id": 1, "sentence": "place a slice of cheese on the bread"},
            ],
            "video_url": "https://www.youtube.com/watch?v=GLd3aX16zBg",
        }
    }
}
VRIPT: dict[str, Any] = {
    "meta": {
        "video_id": "0J7UPHL08fU",
        "video_title": "WHAT'S IN MY BAG",
        "num_clips": 2,
        "integrity": True,
    },
    "data": {
        f"0J7UPHL08fU-Scene-{number:03d}": {
            "video_id": "0J7UPHL08fU",
            "clip_id": f"0J7UPHL08fU-Scene-{number:03d}",
            "video_title": "WHAT'S IN MY BAG",
            "caption": {
                "shot_type": "Medium shot.",
                "camera_movement": "Static.",
                "content": content,
                "scene_title": "Bag",
            },
            "voiceover": ["Hey guys, what's going on?"],
        }
        for number, content in (
            (1, "A presenter in a teal hoodie speaks."),
            (2, "He lifts a white suitcase."),
        )
    },
}
VRIPT_CUTS: dict[str, Any] = {
    "video_id": "0J7UPHL08fU",
    "clips": [
        {
            "clip_id": "0J7UPHL08fU-Scene-001.mp4",
            "start": "00:00:00.000",
            "end": "00:00:07.500",
            "duration": 7.5,
        },
        {
            "clip_id": "0J7UPHL08fU-Scene-002.mp4",
            "start": "00:00:07.500",
            "end": "00:01:02.000",
            "duration": 54.5,
        },
    ],
}
LIVE_WORLD: dict[str, Any] = {
    "0000.mp4": {
        "captions": [{"start_s": 0.0, "end_s": 5.0, "caption": "A red dog is at top-left."}],
        "world": {"duration_s": 20.0},
    }
}


def written(folder: Path, value: object, name: str = "set.json") -> Path:
    """The value as a JSON file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def rows_of(read: Reader, path: Path, bad: BadRowCounter | None = None) -> list[TrainingRow]:
    """All rows that a reader makes of a file."""
    return list(read(path, "set", bad or BadRowCounter(max_share=1.0)))


def captions_of(row: TrainingRow) -> list[tuple[float, float, str]]:
    """(start_s, end_s, text) of each turn."""
    return [(turn.start_s, turn.end_s, turn.answer) for turn in row.turns]
