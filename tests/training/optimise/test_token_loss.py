"""The chunked loss is the plain one, and the logits are never whole."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from model.config import PROJECT_ROOT
from training.optimise import token_loss
from training.optimise.token_loss import are_right, token_losses

MEASURE = """
import sys, torch
from pathlib import Path
from training.optimise.token_loss import are_right, token_losses
num, width, vocabulary = 4096, 64, 32768
hidden = torch.randn(num, width, requires_grad=True)
head = torch.randn(vocabulary, width, requires_grad=True)
targets = torch.randint(vocabulary, (num,))

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = kilobytes("VmRSS")
if sys.argv[1] == "chunked":
    losses = token_losses(hidden, head, targets)
    are_right(hidden, head, targets)
else:
    losses = torch.nn.functional.cross_entropy((hidden @ head.T).float(), targets, reduction="none")
losses.sum().backward()
grown = (kilobytes("VmHWM") - before) * 1024
print(grown / (num * vocabulary))
"""


@pytest.mark.parametrize("chunk", [1, 2**10, 2**24])
def test_losses_and_gradients_are_those_of_whole_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK", chunk)
    torch.manual_seed(1)
    hidden = torch.randn(50, 16, requires_grad=True)
    head = torch.randn(99, 16, requires_grad=True)
    targets, weights = torch.randint(99, (50,)), torch.rand(50)
    logits = linear(hidden, head)
    wanted = cross_entropy(logits, targets, reduction="none")
    gradients = torch.autograd.grad((wanted * weights).sum(), (hidden, head))
    losses = token_losses(hidden, head, targets)
    torch.testing.assert_close(losses, wanted)
    for made, one in zip(
        torch.autograd.grad((losses * weights).sum(), (hidden, head)), gradients, strict=True
    ):
        torch.testing.assert_close(made, one)
    assert torch.equal(are_right(hidden, head, targets), logits.argmax(-1) == targets)


def bytes_per_logit(kind: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, kind], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_the_peak_has_at_most_four_bytes_for_each_logit() -> None:
    assert bytes_per_logit("whole") > 10
    assert bytes_per_logit("chunked") < 4
