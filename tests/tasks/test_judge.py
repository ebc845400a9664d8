"""The judge, against a real HTTP server that speaks as much of OpenAI's API as is needed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from saif_fast.tasks import Score, get_task
from saif_fast.tasks.judge import Judge, JudgeError
from saif_fast.tasks.scorers import score_all

YES, NO = Score(True, True), Score(False, False)


class Server(ThreadingHTTPServer):
    """A model that says what its last word but one of the reply is, after ``delay`` seconds."""

    daemon_threads = True
    delay = 0.0
    status = 200
    body: bytes | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.running = self.most_running = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(request)
            server.keys.append(self.headers["Authorization"])
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        time.sleep(server.delay)
        reply = request["messages"][0]["content"].split("|")[-1]
        message = {"role": "assistant", "content": reply}
        body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        with server.lock:
            server.running -= 1
        self.send_response(server.status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode() if server.body is None else server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def judge(server: Server, **options: Any) -> Judge:
    return Judge(
        base_url=f"http://127.0.0.1:{server.server_port}/v1",
        model="wise",
        question="{instruction}|{content}|{reply}",
        **options,
    )


def test_yes_and_no_are_scores_in_the_order_of_the_replies(server: Server) -> None:
    scorer = judge(server).scorer(["Be kind.", "Be nice."])
    replies = ["yes", "No.", " YES!\n", "no"]
    assert score_all(scorer, [("Hello?", reply) for reply in replies]) == [YES, NO, YES, NO]
    questions = {request["messages"][0]["content"] for request in server.asked}
    assert questions == {f"Be kind.|Hello?|{reply}" for reply in replies}
    assert {(request["model"], request["temperature"]) for request in server.asked} == {("wise", 0)}


def test_questions_are_asked_several_at_a_time(server: Server) -> None:
    server.delay = 0.2
    scorer = judge(server, threads=4).scorer(["Be kind."])
    assert score_all(scorer, [("", "yes")] * 8) == [YES] * 8
    assert server.most_running == 4


def test_an_empty_reply_is_not_asked_about(server: Server) -> None:
    assert judge(server).scorer(["Be kind."])("Hello?", " \n") == NO
    assert server.asked == []


def test_the_key_comes_from_the_environment(server: Server, monkeypatch) -> None:
    scorer = judge(server, api_key_env="JUDGE_KEY").scorer(["Be kind."])
    with pytest.raises(JudgeError, match="an API key in the variable JUDGE_KEY, got none"):
        scorer("", "yes")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    assert scorer("", "yes") == YES
    assert server.keys == ["Bearer secret"]


def test_neither_yes_nor_no_is_an_error_and_loses_no_verdict(server: Server) -> None:
    scorer = judge(server, threads=1).scorer(["Be kind."])
    answers = [("", "yes"), ("", ""), ("", "yes, I think"), ("", "no")]
    with pytest.raises(JudgeError, match="expected yes or no of 'wise', got 'yes, I think'") as e:
        score_all(scorer, answers)
    assert e.value.scores == [YES, NO, None, None]
    assert len(server.asked) == 2  # nothing is asked after a failure


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [(401, b"{}", "AuthenticationError"), (200, b"{}", "TypeError"), (200, b"<html>", "Error")],
)
def test_a_server_that_fails_is_one_sentence(
    server: Server, status: int, body: bytes, says: str
) -> None:
    server.status, server.body = status, body
    with pytest.raises(JudgeError, match="expected an answer of 'wise' at http") as error:
        judge(server).scorer(["Be kind."])("", "yes")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_judge_that_does_not_answer_is_given_up(server: Server, monkeypatch) -> None:
    server.delay = 1.0
    started = time.monotonic()
    with pytest.raises(JudgeError, match="APITimeoutError"):
        judge(server, timeout_s=0.1).scorer(["Be kind."])("", "yes")
    assert time.monotonic() - started < 10


def test_nobody_there_is_one_sentence() -> None:
    away = Judge(base_url="http://127.0.0.1:9/v1", model="wise")
    with pytest.raises(JudgeError, match="APIConnectionError"):
        away.scorer(["Be kind."])("", "yes")


@pytest.mark.parametrize("question", ["Well?", "{reply} {secret}", "{reply", "{reply} {}"])
def test_a_question_needs_the_reply_and_no_unknown_field(question: str) -> None:
    with pytest.raises(ValueError, match="question: expected"):
        Judge(base_url="http://localhost/v1", model="wise", question=question)


def test_a_file_names_its_judge(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "kind.yaml"
    path.write_text(
        "wordings: {en: [Be kind.]}\n"
        f"verifier: {{kind: judge, base_url: 'http://127.0.0.1:{server.server_port}/v1', "
        "model: wise, question: '{content}|{reply}'}\n"
    )
    task = get_task(str(path))
    assert score_all(task.scorer, [("Hello?", "yes"), ("Hello?", "no")]) == [YES, NO]
