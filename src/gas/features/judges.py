"""Judges: scores of samples by a function, a classifier, CLIP or a server, without a gradient."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from gas.arguments import number
from gas.display import brief, error_text
from gas.errors import UserError
from gas.features.transformer import ClipScore, ImageClassifier
from gas.io import read_json
from gas.models.protocol import Model, classifier_of, images_of, prompts_of

# (samples (B, *), labels (B,) or None) -> scores (B,), higher is better.
Judge = Callable[[Tensor, Tensor | None], Tensor]

# Bytes of a server's answer beside its numbers, and of a number: the longest float64 in JSON has 24 characters.
_ANSWER_BYTES, _SCORE_BYTES = 4096, 32


class JudgeError(UserError):
    """A judge that failed, or whose answer is no finite score of each sample."""


@dataclass(frozen=True, eq=False)
class ClassifierJudge:
    """The log-probability of the class that a sample was to have, by a classifier.

    Args:
        model: whose samples are judged, decoded where it has a decoder.
        classifier: images ``(B, C, H, W)`` in [-1, 1] -> logits ``(B, classes)``, in the order of the model's labels.
    """

    model: Model
    classifier: nn.Module

    @torch.no_grad()
    def __call__(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        """Return ``log p(label | sample)`` ``(B,)``."""
        if labels is None:
            raise UserError(f"a classifier judges the wanted class, and {self.model.name} has no classes")
        logits = self.classifier(images_of(self.model, samples))
        if logits.shape[1] <= int(labels.max()):
            raise JudgeError(f"the classifier has {logits.shape[1]} classes, a label is {int(labels.max())}")
        chosen: Tensor = logits.log_softmax(1).gather(1, labels.to(logits.device)[:, None])[:, 0]
        return chosen


@dataclass(frozen=True, eq=False)
class ClipJudge:
    """The CLIP score (:class:`gas.features.ClipScore`) of a sample and its prompt."""

    model: Model
    score: ClipScore

    @torch.no_grad()
    def __call__(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        """Return the scores ``(B,)``."""
        prompts = prompts_of(self.model)
        if not prompts or labels is None:
            raise UserError(f"CLIP judges images by their prompts, and model {self.model.name} has none")
        return self.score(images_of(self.model, samples), [prompts[int(label)] for label in labels])


@dataclass(frozen=True)
class HTTPJudge:
    """A server that answers a POST of samples with their scores.

    The body is a safetensors file: ``samples`` ``(B, *)`` float32, decoded images in [-1, 1] where the model has a
    decoder, and ``labels`` ``(B,)`` int64 where it has classes or prompts. The answer is status 200 and JSON, a list
    of B numbers or ``{"scores": [...]}``. Redirects are not followed, proxies not used, and no more than 4,096 bytes
    and 32 a score are read.

    Args:
        url: ``http://`` or ``https://`` address.
        model: whose samples are judged; by default they are sent as they are.
        timeout: seconds that a whole exchange may take.

    Raises:
        UserError: for another address or timeout. JudgeError: from a call, for anything but scores in time.
    """

    url: str
    model: Model | None = None
    timeout: float = 60.0

    def fingerprint(self) -> dict[str, object]:
        """Return what decides the scores; a training may go on with another timeout."""
        return {"url": self.url, "model": None if self.model is None else dict(self.model.fingerprint())}

    def __post_init__(self) -> None:
        number("timeout", self.timeout, "(0, inf)")
        try:
            parts = urlsplit(self.url)
            # A name and password would not be sent, and be written to the solver file.
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
            valid = valid and parts.port != 0
        except ValueError:
            valid = False
        if not valid or not self.url.isascii() or not self.url.isprintable() or " " in self.url:
            raise UserError(
                f"a judge's address must be like http://localhost:8000/score, got {self.url[:80]!r}"
            )

    def __call__(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        """Return the scores ``(B,)``, float64."""
        from safetensors.torch import save

        images = samples if self.model is None else images_of(self.model, samples)
        tensors = {"samples": images.float().cpu().contiguous()}
        if labels is not None:
            tensors["labels"] = labels.cpu().contiguous()
        answer = self._post(save(tensors), _ANSWER_BYTES + _SCORE_BYTES * len(samples))
        try:
            content = json.loads(answer)
            scores = content["scores"] if isinstance(content, dict) else content
            if not isinstance(scores, list) or any(type(score) not in (int, float) for score in scores):
                raise ValueError("no list of numbers")
            return torch.tensor(scores, dtype=torch.float64)
        except (KeyError, ValueError, OverflowError, RecursionError) as error:
            raise JudgeError(
                f"judge {self.url[:80]} must answer JSON, a list of {len(samples)} scores, got {brief(answer, 60)}"
            ) from error

    def _post(self, body: bytes, most: int) -> bytes:
        """Send a body and return the answer's."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        outcome: list[bytes | Exception] = []
        given_up = threading.Event()

        def exchange() -> None:
            try:
                connection.connect()
                if given_up.is_set():
                    return
                connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
                with connection.getresponse() as response:
                    if response.status != 200:
                        redirected = 300 <= response.status < 400
                        redirect = ", a redirect, which is not followed" if redirected else ""
                        raise JudgeError(f"judge {self.url[:80]} answered status {response.status}{redirect}")
                    outcome.append(response.read(most + 1))
            except Exception as error:
                outcome.append(error)

        # In a thread, since the look-up of a name has no timeout, and that of a socket starts afresh with every byte.
        thread = threading.Thread(target=exchange, daemon=True)
        thread.start()
        thread.join(self.timeout)
        given_up.set()
        answer = outcome[0] if outcome else TimeoutError()
        with contextlib.suppress(OSError, AttributeError):  # ends the thread; there may be no socket yet
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        if isinstance(answer, TimeoutError):
            raise JudgeError(f"judge {self.url[:80]} did not answer in {self.timeout:g} s") from answer
        if isinstance(answer, (OSError, http.client.HTTPException)):
            raise JudgeError(f"judge {self.url[:80]} failed: {error_text(answer)[:120]}") from answer
        if isinstance(answer, Exception):
            raise answer
        if len(answer) > most:
            raise JudgeError(
                f"judge {self.url[:80]} answered more than {most:,} bytes: scores alone are wanted"
            )
        return answer


def judge_by_name(name: str, model: Model) -> Judge:
    """Return the judge that a text names.

    Args:
        name: ``"classifier"``, the model's own; an ``http://`` or ``https://`` address (:class:`HTTPJudge`); or a
            folder as transformers saves it, of a CLIP with its tokenizer or of an image classifier.
        model: whose samples are judged.

    Raises:
        FileNotFoundError: for a folder without weights.
        UserError: for another name, a folder of another network, or a model that has no classifier.
    """
    if name.startswith(("http://", "https://")):
        return HTTPJudge(name, model)
    if name == "classifier":
        classifier = classifier_of(model)
        if classifier is None:
            raise UserError(f"model {model.name} has no classifier: name a folder or an address as the judge")
        return ClassifierJudge(model, classifier)
    if not name or not Path(name).is_dir():
        raise UserError(
            f"judge must be classifier, an http:// address or a folder of a network, got {name[:80]!r}"
        )
    config = Path(name) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{name} has no config.json: give a folder as transformers saves it")
    content = read_json(config)
    if isinstance(content, dict) and content.get("model_type") == "clip":
        return ClipJudge(model, ClipScore(name, model.device))
    return ClassifierJudge(model, ImageClassifier(name).to(model.device))


def scores_of(judge: Judge, samples: Tensor, labels: Tensor | None) -> Tensor:
    """Return a judge's scores ``(B,)``, float64 on the CPU.

    Raises:
        JudgeError: when the judge raises, or does not return one finite score a sample.
    """
    try:
        given = None if labels is None else labels.clone()
        scores = torch.as_tensor(judge(samples.clone(), given)).detach()
        if scores.is_complex():
            raise JudgeError(f"a judge must return real scores, got {scores.dtype}")
        scores = scores.to("cpu", torch.float64)
    except JudgeError:
        raise
    except UserError as error:
        raise JudgeError(error_text(error, 280)) from error
    except Exception as error:  # a user's function raises anything
        raise JudgeError(f"the judge failed: {type(error).__name__}: {error_text(error)[:160]}") from error
    if scores.shape != samples.shape[:1]:
        raise JudgeError(
            f"a judge must return one score a sample, ({len(samples)},), got {tuple(scores.shape)}"
        )
    if bad := int((~scores.isfinite()).sum()):
        raise JudgeError(f"a judge must return finite scores, got {bad} of {len(scores)} that are not")
    return scores
