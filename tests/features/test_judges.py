"""Judges: their scores are what they say, and whatever else they answer is one line."""

import contextlib
import http.server
import json
import threading
import time

import pytest
import torch
from safetensors.torch import load

import gas
from gas.errors import UserError
from gas.features.judges import ClipJudge, HTTPJudge, JudgeError, judge_by_name, scores_of

X, LABELS = torch.randn(3, 1, 8, 8), torch.tensor([0, 7, 9])


@pytest.fixture(scope="module")
def server():
    """An HTTP server whose paths are ways to answer; ``received`` is the last body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        received = b""

        def log_message(self, *args):
            pass

        def do_POST(self):
            Handler.received = self.rfile.read(int(self.headers["Content-Length"]))
            way = self.path.strip("/")
            if way == "redirect":
                self.send_response(302)
                self.send_header("Location", "/scores")
                self.end_headers()
                return
            if way == "slow":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(20):  # a byte at a time, so that no single read times out
                        self.wfile.write(b" ")
                        time.sleep(0.1)
                return
            samples = load(Handler.received)["samples"]
            scores = samples.flatten(1).double().sum(1).tolist()
            body = {
                "scores": json.dumps(scores),
                "named": json.dumps({"scores": scores}),
                "nan": "[NaN, 1, 2]",
                "few": "[1, 2]",
                "text": '["1", "2", "3"]',
                "flags": "[true, false, true]",
                "huge": json.dumps([int("9" * 400), 1, 2]),
                "page": "<html>",
                "deep": "[" * 3000,
                "large": " " * (4 << 20),
                "error": "no",
            }[way].encode()
            self.send_response(500 if way == "error" else 200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has read enough
                self.wfile.write(body)

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", Handler
    running.shutdown()
    running.server_close()


def test_the_classifier_answers_the_log_probability_of_the_wanted_class():
    model = gas.zoo.load("digits")
    scores = scores_of(judge_by_name("classifier", model), X, LABELS)
    logits = model.classifier(X)
    expected = [float(logits[i].log_softmax(0)[label]) for i, label in enumerate(LABELS)]
    assert scores.tolist() == pytest.approx(expected)
    with pytest.raises(UserError, match="has no classes"):
        scores_of(judge_by_name("classifier", model), X, None)


@pytest.mark.parametrize("way", ["scores", "named"])
def test_a_server_gets_samples_and_labels_and_answers_scores(server, way):
    address, handler = server
    scores = scores_of(HTTPJudge(f"{address}/{way}"), X, LABELS)
    torch.testing.assert_close(scores, X.flatten(1).double().sum(1))
    sent = load(handler.received)
    assert torch.equal(sent["samples"], X) and torch.equal(sent["labels"], LABELS)
    scores_of(HTTPJudge(f"{address}/{way}"), X, None)
    assert set(load(handler.received)) == {"samples"}


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("redirect", "status 302, a redirect, which is not followed"),
        ("error", "status 500"),
        ("nan", "finite scores, got 1 of 3"),
        ("few", r"one score a sample, \(3,\), got \(2,\)"),
        ("text", "must answer JSON"),
        ("flags", "must answer JSON"),
        ("huge", "must answer JSON"),
        ("page", "must answer JSON"),
        ("deep", "must answer JSON"),
        ("large", "answered more than 4,192 bytes"),
        ("slow", "did not answer in 0.5 s"),
    ],
)
def test_any_other_answer_is_one_line(server, way, message):
    began = time.monotonic()
    with pytest.raises(JudgeError, match=message) as error:
        scores_of(HTTPJudge(f"{server[0]}/{way}", timeout=0.5), X, LABELS)
    assert time.monotonic() - began < 1.5
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_name_that_is_never_looked_up_ends_in_time(monkeypatch):
    """The look-up of a name has no timeout of its own."""
    released = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: released.wait(10) and [])
    began = time.monotonic()
    with pytest.raises(JudgeError, match=r"did not answer in 0\.2 s"):
        HTTPJudge("http://judge.example/score", timeout=0.2)(X, LABELS)
    assert time.monotonic() - began < 1.2
    released.set()


def test_a_server_that_is_not_there_is_one_line():
    with pytest.raises(JudgeError, match=r"failed: .*refused"):
        HTTPJudge("http://127.0.0.1:9")(X, LABELS)


@pytest.mark.parametrize(
    "address", ["ftp://a/b", "http://", "http://a:x/", "http://a/\r\nX: y", "http://a/b c", "http://a:99999/"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="must be like http://localhost:8000/score"):
        HTTPJudge(address)


def raises(samples, labels):
    raise KeyError("no such prompt")


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (raises, "the judge failed: KeyError: 'no such prompt'"),
        (lambda x, y: x.sum(), r"one score a sample, \(3,\), got \(\)"),
        (lambda x, y: x.flatten(1), r"got \(3, 64\)"),
        (lambda x, y: x.flatten(1).sum(1) / 0, "got 3 of 3 that are not"),
        (lambda x, y: "good", "the judge failed: "),
        (lambda x, y: None, "the judge failed: "),
    ],
)
def test_a_function_that_returns_no_scores_is_one_line(judge, message):
    with pytest.raises(JudgeError, match=message):
        scores_of(judge, X, LABELS)


def test_a_judge_cannot_change_the_samples_that_it_scores():
    before = X.clone()
    scores_of(lambda x, y: x.zero_().flatten(1).sum(1), X, LABELS)
    assert torch.equal(X, before)


@pytest.mark.parametrize("name", ["classifer", "nowhere", ""])
def test_an_unknown_judge_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="must be classifier"):
        judge_by_name(name, gas.zoo.load("digits"))


def test_a_folder_of_a_network_judges(tmp_path):
    """An image classifier's folder gives log-probabilities, a CLIP without prompts says what it lacks."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
        patch_size=8, num_labels=10,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config)
    network.save_pretrained(tmp_path / "vit", safe_serialization=True)
    model = gas.zoo.load("digits")
    scores = scores_of(judge_by_name(str(tmp_path / "vit"), model), X, LABELS)
    assert scores.shape == (3,) and bool((scores < 0).all())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        judge_by_name(str(tmp_path / "empty"), model)
    with pytest.raises(UserError, match="CLIP judges images by their prompts"):
        ClipJudge(model, None)(X, LABELS)
