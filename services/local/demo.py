"""`streamchat demo`: three cameras, a question to two of them, the answers word by word, and the page.

The cameras world-1 and world-2 show the live world, which is all that streamchat-tiny knows; `film` is a real film.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from model.config import PROJECT_ROOT
from services.cli.chat import PrintedAnswer, print_answer
from services.cli.chat_client import ChatClient, ChatLost
from services.local.background_command import BackgroundCommand, CommandEnded
from services.local.embedded_servers import HOST, free_port, port_is_free
from services.messages.percentile import percentile
from services.processes.polling import wait_until
from services.settings import Settings

FILM = PROJECT_ROOT / "services" / "media" / "film.mp4"
LIVE_WORLD = PROJECT_ROOT / "training" / "live_world" / "write_clips.py"
SEED = 1_000_007  # not in the training data
QUESTION = "Tell me what happens from now on."
TOKENS_PER_SECOND = 5.0
MAX_TOKENS = 40
CAMERAS_TIMEOUT_S = 90.0
MIN_FRAMES = 3  # of a camera, before it is asked

NOTE = """
These words come from streamchat-tiny. It has a few million parameters and knows only the live world: coloured things
that appear, move, change and leave. It cannot describe the film; the film shows that real video takes the same way.
A model that knows the real world is assembled from a SigLIP and a Qwen2.5, and then trained:
    streamchat assemble --vision SIGLIP_FOLDER --language QWEN_FOLDER --out streamchat-7b
    streamchat up --model streamchat-7b
"""


class DemoFailed(RuntimeError):
    """The demo cannot continue; the message says why."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM."""


def demo(*, once: bool, port: int) -> int:
    """Run the demo until Ctrl-C, or `once` to its end with a last line of JSON. Returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise_interrupted)
    with ExitStack() as cleanup:
        try:
            _run(cleanup, once=once, port=port if port_is_free(port) else free_port())
        except Interrupted:
            return 130 if once else 0
        except (DemoFailed, CommandEnded, ValueError, OSError) as error:
            print(f"streamchat demo: {error}", file=sys.stderr)
            return 1
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):  # do not interrupt the clean-up
                signal.signal(number, signal.SIG_IGN)
    return 0


def _run(cleanup: ExitStack, *, once: bool, port: int) -> None:
    started = time.monotonic()
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="streamchat-demo-")))
    kafka_port = free_port()
    print("Starting everything on this machine, and drawing two clips of the live world.", flush=True)
    up = BackgroundCommand("up", "--port", str(port), "--kafka-port", str(kafka_port), show_progress=True)
    cleanup.callback(up.end)
    clips = make_clips(folder)
    up.wait_for_line(f"ready http://{HOST}:{port}")
    startup_s = time.monotonic() - started
    url = f"http://{HOST}:{port}"
    print(f"Ready after {startup_s:.0f} s. Starting three cameras.", flush=True)

    sources = {"world-1": clips[0], "world-2": clips[1], "film": FILM}
    publishers: list[BackgroundCommand] = []
    for camera, source in sources.items():
        options = ("--camera", camera, "--loop", "--kafka", f"{HOST}:{kafka_port}")
        publishers.append(BackgroundCommand("publish", str(source), *options))
        cleanup.callback(publishers[-1].end)
    with ChatClient(url, Settings.from_environment().api_key.get_secret_value()) as client:
        wait_for_cameras(client, set(sources), [up, *publishers])
        answers = [ask(client, camera) for camera in sources if camera.startswith("world")]
    print(NOTE, flush=True)
    if once:
        print(json.dumps(report(answers, num_cameras=len(sources), startup_s=startup_s)), flush=True)
        return
    print(f"The page with all cameras and a chat: {url}\nCtrl-C stops everything.", flush=True)
    while True:
        for process in (up, *publishers):
            process.check()
        time.sleep(0.5)


def make_clips(folder: Path) -> list[Path]:
    """Write two clips of the live world. DemoFailed when that fails."""
    command = [sys.executable, str(LIVE_WORLD), "--seed", str(SEED), "--num", "2", "--out", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    clips = sorted(folder.glob("**/*.mp4"))
    if result.returncode != 0 or len(clips) != 2:
        raise DemoFailed(f"the clips of the live world could not be made: {result.stderr[-800:]}")
    return clips


def wait_for_cameras(client: ChatClient, wanted: set[str], processes: list[BackgroundCommand]) -> None:
    """Wait until all of them are live and have some frames. DemoFailed when that takes too long."""

    def all_live() -> bool:
        for process in processes:
            process.check()
        try:
            cameras = client.cameras()
        except ChatLost:
            return False
        return wanted <= {one.id for one in cameras if one.state == "live" and one.num_frames >= MIN_FRAMES}

    if not wait_until(all_live, CAMERAS_TIMEOUT_S, every_s=0.2):
        seen = {one.id: one.state for one in client.cameras()}
        raise DemoFailed(
            f"the cameras {sorted(wanted)} are not all live after {CAMERAS_TIMEOUT_S:.0f} s: {seen}"
        )


def ask(client: ChatClient, camera: str) -> PrintedAnswer:
    """Ask one question and print the answer while it is made."""
    print(f"\n{camera} <- {QUESTION}\n{camera} -> ", end="", flush=True)
    tokens = client.ask(camera, QUESTION, tokens_per_second=TOKENS_PER_SECOND, max_tokens=MAX_TOKENS)
    answer = print_answer(tokens, sys.stdout, show_ages=True, colour=sys.stdout.isatty())
    print(f"   {answer.summary()}", flush=True)
    if not answer.num_words:
        raise DemoFailed(f"the answer about {camera} has no words")
    return answer


def report(answers: list[PrintedAnswer], *, num_cameras: int, startup_s: float) -> dict[str, float]:
    """The figures of the last line of `--once`."""
    ages_ms = [age_ms for answer in answers for age_ms in answer.ages_ms]
    return {
        "cameras": num_cameras,
        "answers": len(answers),
        "words": sum(answer.num_words for answer in answers),
        "frame_age_p50_ms": round(percentile(ages_ms, 0.5), 1),
        "frame_age_p95_ms": round(percentile(ages_ms, 0.95), 1),
        "tokens_per_s": round(len(ages_ms) / sum(answer.duration_s for answer in answers), 2),
        "startup_s": round(startup_s, 1),
    }


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted
