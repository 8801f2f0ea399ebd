"""Each captioned set, in a small file of its own layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.bad_row import BadRow, BadRowCounter
from training.data.readers.caption_sets import (
    activitynet,
    captioned_rows,
    coin,
    ego4d,
    live_world,
    vript,
    youcook2,
)
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
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def rows_of(entries: Any, bad: BadRowCounter | None = None) -> list[TrainingRow]:
    return list(captioned_rows("set", entries, bad or BadRowCounter(max_share=1.0)))


def told(row: TrainingRow) -> list[tuple[float, float, str]]:
    return [(turn.start_s, turn.end_s, turn.answer) for turn in row.turns]


def test_ego4d_narrations(tmp_path: Path) -> None:
    bad = BadRowCounter(max_share=1.0)
    rows = rows_of(ego4d(written(tmp_path, EGO4D_V1)), bad)
    assert [row.video for row in rows] == ["001e3e4e-2743-47fc-8564-d5efd11f9e90.mp4"] * 2
    assert told(rows[0]) == [
        (3.3445, 6.5, "The camera wearer picks a bag of clothes from the floor"),
        (6.5, 16.5, "Man X walks past the camera wearer with something"),
        (40.0, 41.0, "The camera wearer drops the bag"),
    ]
    assert told(rows[1]) == [(3.0, 4.0, "The camera wearer lifts a bag")]
    assert bad.reasons == {"no captions": 1}  # the redacted one


def test_a_bad_narration_is_counted_and_its_video_is_kept(tmp_path: Path) -> None:
    narrations = EGO4D_V2["videos"]["0a0a"]["narrations"]
    more = [{"time": "2.5", "text": "#C C sits"}, 7, {"time": 3.0, "text": None}, {"time": 4.0, "text": "#C"}]
    bad = BadRowCounter(max_share=1.0)
    (row,) = rows_of(ego4d(written(tmp_path, {"videos": {"0a0a": {"narrations": narrations + more}}})), bad)
    assert len(row.turns) == 1
    assert bad.reasons == {"wrong type": 3, "empty answer": 1}


def test_ego4d_narrations_of_the_second_version(tmp_path: Path) -> None:
    (row,) = rows_of(ego4d(written(tmp_path, EGO4D_V2)))
    assert row.video == "0a0a.mp4"
    assert told(row) == [(2.5, 3.5, "The camera wearer holds knitting sticks by hand.")]


def test_activitynet(tmp_path: Path) -> None:
    (row,) = rows_of(activitynet(written(tmp_path, ACTIVITYNET)))
    assert (row.video, row.time_range, row.kind) == ("v_QOlSCBRmfWY.mp4", (0.0, 82.73), "dense")
    assert told(row)[1] == (
        17.37,
        60.81,
        "The girl dances around the room while the camera captures her movements.",
    )


def test_coin(tmp_path: Path) -> None:
    (row,) = rows_of(coin(written(tmp_path, COIN)))
    assert (row.video, row.time_range) == ("LtRSn-ntcLY.mp4", (0.0, 131.0309))
    assert told(row)[0] == (60.0, 69.0, "take out the laptop CD drive")


def test_youcook2(tmp_path: Path) -> None:
    (row,) = rows_of(youcook2(written(tmp_path, YOUCOOK2)))
    assert (row.video, row.time_range) == ("GLd3aX16zBg.mp4", (0.0, 241.62))
    assert told(row)[1] == (114.0, 127.0, "place a slice of cheese on the bread")


def test_vript_as_unpacked(tmp_path: Path) -> None:
    written(tmp_path, VRIPT, "vript_captions/vript_long_videos_captions/0J7UPHL08fU_caption.json")
    written(tmp_path, VRIPT_CUTS, "vript_long_videos_clips/0J7UPHL08fU/0J7UPHL08fU_cut_meta.json")
    (row,) = rows_of(vript(tmp_path))
    assert row.video == "0J7UPHL08fU.mp4"
    assert told(row) == [
        (0.0, 7.5, "A presenter in a teal hoodie speaks."),
        (7.5, 62.0, "He lifts a white suitcase."),
    ]


def test_vript_scenes_without_times_and_damaged_files(tmp_path: Path) -> None:
    written(tmp_path, VRIPT, "captions/0J7UPHL08fU_caption.json")
    written(tmp_path, {"clips": VRIPT_CUTS["clips"][:1]}, "clips/0J7UPHL08fU_cut_meta.json")
    written(tmp_path, VRIPT, "captions/other_caption.json")
    (tmp_path / "captions" / "broken_caption.json").write_text('{"meta": ')
    written(tmp_path, VRIPT_CUTS, "clips/broken_cut_meta.json")
    bad = BadRowCounter(max_share=1.0)
    (row,) = rows_of(vript(tmp_path), bad)
    assert len(row.turns) == 1
    assert bad.reasons == {"wrong type": 1, "no times": 1, "no JSON": 1}


def test_the_live_worlds_captions(tmp_path: Path) -> None:
    (row,) = rows_of(live_world(written(tmp_path, LIVE_WORLD)))
    assert (row.video, row.time_range) == ("0000.mp4", (0.0, 20.0))
    assert told(row) == [(0.0, 5.0, "A red dog is at top-left.")]


BAD_CAPTIONS: list[tuple[Any, str]] = [
    ([[19.86, 0.83], "A woman stands."], "reversed interval"),
    ([[70.0, 99.0], "A woman stands."], "outside the clip"),
    ([[-4.0, 2.0], "A woman stands."], "impossible time"),
    ([[0.83, 19.86], "  "], "empty answer"),
    ([[0.83, 19.86], None], "wrong type"),
    ([["a", 19.86], "A woman stands."], "wrong type"),
    ([[True, 19.86], "A woman stands."], "wrong type"),
]


@pytest.mark.parametrize(("caption", "reason"), BAD_CAPTIONS)
def test_a_bad_caption_is_counted_and_its_video_is_kept(tmp_path: Path, caption: Any, reason: str) -> None:
    video = ACTIVITYNET["v_QOlSCBRmfWY"]
    times, sentences = [*video["timestamps"], caption[0]], [*video["sentences"], caption[1]]
    path = written(tmp_path, {"v_a": video | {"timestamps": times, "sentences": sentences}})
    bad = BadRowCounter(max_share=1.0)
    (row,) = rows_of(activitynet(path), bad)
    assert len(row.turns) == 3
    assert (bad.num_good, dict(bad.reasons)) == (3, {reason: 1})
    assert "v_a: caption 3" in bad.first[reason]


BAD_VIDEOS: list[tuple[Any, str]] = [
    (7, "wrong type"),
    ({"duration": 9.0, "timestamps": [[0, 1]], "sentences": []}, "wrong type"),
    ({"duration": 9.0, "timestamps": [[0, 1, 2]], "sentences": ["a"]}, "wrong type"),
    ({"duration": "9", "timestamps": [[0, 1]], "sentences": ["a"]}, "wrong type"),
    ({"duration": 9.0, "timestamps": [], "sentences": []}, "no captions"),
    ({"duration": 9.0, "timestamps": [[0, 1]] * 10_000, "sentences": ["a"] * 10_000}, "too many captions"),
]


@pytest.mark.parametrize(("video", "reason"), BAD_VIDEOS)
def test_a_bad_video_is_counted_and_the_others_are_kept(tmp_path: Path, video: Any, reason: str) -> None:
    bad = BadRowCounter(max_share=1.0)
    rows = rows_of(activitynet(written(tmp_path, {"v_bad": video} | ACTIVITYNET)), bad)
    assert [row.video for row in rows] == ["v_QOlSCBRmfWY.mp4"]
    assert bad.reasons == {reason: 1}


READERS: list[tuple[Any, Any]] = [
    (ego4d, EGO4D_V1),
    (ego4d, EGO4D_V2),
    (activitynet, ACTIVITYNET),
    (coin, COIN),
    (youcook2, YOUCOOK2),
    (live_world, LIVE_WORLD),
]


@pytest.mark.parametrize(("reader", "good"), READERS)
@pytest.mark.parametrize("nonsense", [None, 3, "video", [], {}, [1], {"narrations": 5}, {"captions": [7]}])
def test_no_value_in_place_of_a_video_ends_a_run(
    tmp_path: Path, reader: Any, good: dict[str, Any], nonsense: Any
) -> None:
    inner = next((key for key in ("database", "videos") if key in good), "")
    value = {inner: {"x": nonsense} | good[inner]} if inner else {"x": nonsense} | good
    bad = BadRowCounter(max_share=1.0)
    assert rows_of(reader(written(tmp_path, value)), bad)
    assert bad.num_bad >= 1


def test_the_same_id_twice_counts_once(tmp_path: Path) -> None:
    one = json.dumps(ACTIVITYNET)[1:-1]
    path = tmp_path / "set.json"
    path.write_text(f"{{{one}, {one}}}")
    bad = BadRowCounter(max_share=1.0)
    assert len(rows_of(activitynet(path), bad)) == 1
    assert bad.reasons == {"duplicate id": 1}


def test_a_file_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(ValueError, match=r"set\.json: got no JSON"):
        rows_of(activitynet(tmp_path / "set.json"))
    with pytest.raises(FileNotFoundError):
        rows_of(activitynet(tmp_path / "none.json"))
    with pytest.raises(BadRow, match="wanted an object"):
        rows_of(coin(written(tmp_path, [1])))
    with pytest.raises(FileNotFoundError, match=r"_caption\.json in it"):
        rows_of(vript(tmp_path))
