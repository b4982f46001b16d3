"""Questions to workers: who answers, who cannot, and what a hung or dying worker leaves the asker with."""

import os
import signal

import pytest

import deadline
from shardnet import answers, control, line, questions

LAB = "[user net0]\n\n[user net1]\nswitch = other\n"


class Carrier:
    def __init__(self, rows):
        self.rows = rows

    def asked(self, what, args):
        if what == "one":
            return {"what": what, **args}
        if what == "none":
            raise LookupError("no such row")
        if what != "rows":
            raise ValueError("unknown question")
        return self.rows


def all_rows(carrier):
    cursor, pages = None, []
    while True:
        said = answers.answer(carrier, "rows", {} if cursor is None else {"cursor": cursor})
        assert len(said["data"]) <= answers.ANSWER_MAX < line.RECORD_MAX
        page = control.unpack(said["data"])
        pages.append(page["rows"])
        if (cursor := page["cursor"]) is None:
            return pages


def test_a_long_list_is_told_in_pages_that_fit_a_record():
    rows = [{"number": number, "text": "x" * 500} for number in range(3000)]
    pages = all_rows(Carrier(rows))
    assert len(pages) > 5 and [row for page in pages for row in page] == rows
    assert all_rows(Carrier([])) == [[]]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("ones", {"error": "ones: unknown question", "code": 2}),
        ("none", {"error": "none: no such row", "code": 3}),
    ],
)
def test_what_a_carrier_refuses_is_the_answer(what, said):
    assert answers.answer(Carrier([]), what, {}) == said


def test_an_answer_that_fits_no_record_is_refused():
    assert answers.answer(Carrier([]), "one", {"text": "x" * 200_000})["code"] == 2
    assert answers.answer(Carrier(["x" * 200_000]), "rows", {})["code"] == 2


def test_a_running_worker_answers(lab):
    running = lab(LAB)
    with running.client() as client:
        assert client.ask("net0", "network")["host"] == "10.0.2.2"
        with pytest.raises(control.Error, match="netwrk: unknown question .did you mean") as wrong:
            client.ask("net0", "netwrk")
        assert wrong.value.code == 2
        with pytest.raises(control.Error, match="no such port") as wrong:
            client.ask("net9", "network")
        assert wrong.value.code == 3


def test_a_question_to_a_worker_that_dies_is_refused_and_the_next_one_answered(lab):
    running = lab(LAB)
    pid = running.workers()["net0"]
    os.kill(pid, signal.SIGSTOP)
    with running.client() as client, running.client() as other:
        # The supervisor finds that it is stopped and kills it; the others go on meanwhile.
        with pytest.raises(control.Error, match="died before it answered|nobody there can answer") as wrong:
            client.ask("net0", "network")
        assert wrong.value.code == 75
        assert other.ask("net1", "network")["host"] == "10.0.2.2"
        running.until_up("net0")
        deadline.until(lambda: running.workers()["net0"] not in (None, pid), "a new worker")
        assert other.ask("net0", "network")["lease"] == "10.0.2.15"


def asked(play, port):
    said = []
    play.crew.ask(port, "one", {}, said.append, lambda text, code: said.append((text, code)))
    return said


def test_an_answer_is_relayed_as_it_is_and_only_once(play):
    worker, (port,) = play.opened("a")
    said = asked(play, port)
    question = worker.sent[-1]
    assert (question["op"], question["what"], question["args"]) == ("ask", "one", {})
    for data in (b"\xff no msgpack", b"again"):
        worker.says("answer", port, number=question["number"], data=data)
    worker.says("answer", port, number="rubbish", data=b"")
    assert said == [b"\xff no msgpack"]


def test_another_worker_cannot_answer(play):
    worker, (port,) = play.opened("a")
    other, (its,) = play.opened("b")
    said = asked(play, port)
    other.says("answer", its, number=worker.sent[-1]["number"], data=b"wrong")
    assert said == []


def test_a_worker_that_is_silent_or_dead_is_an_answer_too(play):
    worker, (port,) = play.opened("a")
    silent = asked(play, port)
    play.turns.pass_time(questions.ANSWER_S)
    assert silent == [("stream a: no answer in 10 s", 75)]
    dead = asked(play, port)
    worker.ended("killed by SIGSEGV")
    assert dead == [("stream a: its worker died before it answered", 75)]
    assert asked(play, port) == [("stream a: restarting, nobody there can answer", 75)]


def test_one_worker_has_so_many_questions_and_no_more(play):
    _, (port,) = play.opened("a")
    said = [asked(play, port) for _ in range(questions.WAITING_MAX + 1)]
    assert [one for one in said if one] == [[("stream a: 64 questions wait for an answer already", 75)]]
