"""An answer in the terminal."""

from __future__ import annotations

import io

import pytest

from services.cli.chat import PrintedAnswer, chat, print_answer
from services.cli.chat_client import Token
from tests.services.served_gateway import gateway


def tokens(*texts: str) -> list[Token]:
    return [
        Token(text=text, time_s=n / 5, frame_id=f"{n}-0", frame_age_ms=100.0 + n, stale=text == " late")
        for n, text in enumerate(texts)
    ]


def test_each_word_has_the_age_of_its_last_token() -> None:
    out = io.StringIO()
    answer = print_answer(
        tokens("A", " red", " b", "us", ".", " It", " late"), out, show_ages=True, colour=False
    )
    words = "A (100 ms) red (101 ms) bus. (104 ms) It (105 ms) late (106 ms, stale)\n"
    assert out.getvalue() == words
    assert (answer.text, answer.num_words, answer.num_stale) == ("A red bus. It late", 5, 1)
    assert "5 words" in answer.summary()
    assert "p50 103 ms, p95 106 ms, 1 stale" in answer.summary()


def test_ages_are_dim_in_a_terminal_and_left_out_elsewhere() -> None:
    out = io.StringIO()
    print_answer(tokens("A", " bus"), out, show_ages=True, colour=True)
    assert out.getvalue() == "A\x1b[2m (100 ms)\x1b[0m bus\x1b[2m (101 ms)\x1b[0m\n"
    out = io.StringIO()
    print_answer(tokens(" A", " bus", "."), out, show_ages=False, colour=False)
    assert out.getvalue() == "A bus.\n"


def test_an_empty_token_is_no_word() -> None:
    out = io.StringIO()
    print_answer(tokens("", "A", "", " bus", ""), out, show_ages=True, colour=False)
    assert out.getvalue() == "A (101 ms) bus (103 ms)\n"


def test_no_answer() -> None:
    out = io.StringIO()
    assert print_answer([], out, show_ages=True, colour=True).summary() == "no answer"
    assert PrintedAnswer().tokens_per_s == 0.0


def test_the_command_against_a_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    with gateway() as served:
        assert chat(served.url, "front-door", "What happens?", frozen=False, tokens_per_second=None) == 0
        printed = capsys.readouterr()
        assert printed.out == "A red bus drives past the tree.\n"
        assert printed.err.startswith("7 words in ")
