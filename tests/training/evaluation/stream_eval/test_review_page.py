"""The page of a review, as a browser shows it."""

from __future__ import annotations

import json
import re

from training.data.training_row import Caption, TrainingRow, Turn
from training.evaluation.stream_eval.review_page import review_page


def test_no_text_ends_the_script_and_all_rows_are_in_it() -> None:
    turn = Turn(start_s=3.0, end_s=4.0, instruction="What is </script> this?", answer="A <b>dog</b>.")
    captions = (Caption(start_s=0.0, end_s=9.0, caption="A dog & a cat."),)
    row = TrainingRow(video="a/b.mp4", turns=(turn,), kind="dense", source="vript", captions=captions)
    page = review_page([row, row])
    assert page.count("</script>") == 1
    assert "A dog &amp; a cat." in page
    assert 'src="a/b.mp4#t=0.0"' in page
    found = re.search(r"const rows = (.*);\n", page)
    assert found
    assert [TrainingRow.from_dict(value) for value in json.loads(found[1])] == [row, row]
