"""The page on which a person reviews the questions of a streaming evaluation. It needs no server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from training.data.training_row import TrainingRow

BEFORE_S = 5.0  # the video starts that long before the question

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Review of {num} questions</title>
<style>
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }}
header {{ position: sticky; top: 0; background: Canvas; padding: .5rem 0; border-bottom: 1px solid GrayText; }}
article {{ display: grid; grid-template-columns: 26rem 1fr; gap: 1rem; padding: 1rem 0; }}
article:has(input:not(:checked)) {{ opacity: .45; }}
video {{ width: 100%; background: #000; }}
ul {{ margin: .5rem 0; padding-left: 1.2rem; }}
.asked {{ font-weight: 600; }}
</style>
<header><button>Save the checked questions</button> <output></output></header>
<main>{questions}</main>
<script>
const rows = {rows};
const boxes = [...document.querySelectorAll("input")];
const count = () => {{
  document.querySelector("output").textContent =
    boxes.filter(box => box.checked).length + " of " + boxes.length + " questions are checked";
}};
document.addEventListener("change", count);
count();
document.querySelector("button").onclick = () => {{
  const lines = rows.filter((row, number) => boxes[number].checked).map(row => JSON.stringify(row) + "\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, {{type: "application/jsonl"}}));
  link.download = "questions.jsonl";
  link.click();
}};
</script></html>
"""

QUESTION = """<article>
<video src="{video}#t={from_s:.1f}" controls preload="none"></video>
<div><label><input type="checkbox" checked> {number}. {source}, {name}</label>
<p class="asked">{ask_s:.1f} s: {instruction}</p><p>{answer}</p><ul>{captions}</ul></div>
</article>
"""


def review_page(rows: Sequence[TrainingRow]) -> str:
    """The page as HTML. It saves the checked questions as the same file `questions.jsonl`."""
    # "</script>" in a text must not end the script.
    values = json.dumps([row.as_dict() for row in rows], ensure_ascii=False).replace("</", "<\\/")
    questions = "".join(_question(number, row) for number, row in enumerate(rows, 1))
    return PAGE.format(num=len(rows), questions=questions, rows=values)


def _question(number: int, row: TrainingRow) -> str:
    (turn,) = row.turns
    captions = "".join(
        f"<li>{c.start_s:.1f} to {c.end_s:.1f}: {escape(c.caption)}</li>" for c in row.captions
    )
    return QUESTION.format(
        video=escape(row.video, quote=True),
        from_s=max(turn.start_s - BEFORE_S, 0.0),
        number=number,
        source=escape(row.source),
        name=escape(row.video.rsplit("/", 1)[-1]),
        ask_s=turn.start_s,
        instruction=escape(turn.instruction),
        answer=escape(turn.answer),
        captions=captions,
    )
