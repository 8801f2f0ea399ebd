"""The `streamchat` command. Each subcommand imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8000"
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns 0, or 2 for a mistake of the user, or 1 for another failure."""
    options = parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed it
        return EXIT_FAILURE
    except (ValueError, OSError) as error:
        print(f"streamchat {options.command}: {error}", file=sys.stderr)
        return EXIT_FAILURE if isinstance(error, ConnectionError) else EXIT_USAGE


def parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    top = argparse.ArgumentParser(
        prog="streamchat",
        description="Talk with live cameras: the answer follows the video while it is made.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_up, _add_publish, _add_chat, _add_cameras, _add_keys, _add_assemble, _add_demo):
        add(commands)
    return top


def _add_up(commands: Any) -> None:
    add = commands.add_parser("up", help="run everything on this machine until Ctrl-C")
    add.add_argument(
        "--port", type=int, default=8000, help="port of the page and the API; 0: a free one (default: 8000)"
    )
    add.add_argument(
        "--model", default="", metavar="FOLDER", help="StreamChat folder to serve (default: streamchat-tiny)"
    )
    add.add_argument(
        "--kafka-port",
        type=int,
        default=0,
        help="port of the broker (default: 9092 if it is free, else a free one)",
    )
    add.add_argument(
        "--keys",
        default="",
        metavar="FILE",
        help="require an API key from this file, made by `streamchat keys` (default: no keys)",
    )
    add.set_defaults(run=_up)


def _up(options: argparse.Namespace) -> int:
    from services.local.up import up
    from services.settings import Settings

    given = {"model": options.model, "keys_file": options.keys}
    settings = Settings.from_environment(**{name: value for name, value in given.items() if value})
    return up(settings, options.port, kafka_port=options.kafka_port)


def _add_publish(commands: Any) -> None:
    add = commands.add_parser(
        "publish", help="send a file, an RTSP camera or a webcam as a camera, in real time"
    )
    add.add_argument("source", help="a video file, an rtsp:// URL or a device such as /dev/video0")
    add.add_argument(
        "--camera",
        default="",
        metavar="ID",
        help="the camera's id in questions: A-Z a-z 0-9 . _ - (default: from NAME)",
    )
    add.add_argument("--name", default="", metavar="NAME", help="what people call the camera: any text")
    add.add_argument("--loop", action="store_true", help="start again when the file ends")
    add.add_argument(
        "--fps",
        type=float,
        metavar="N",
        help="frames per second of a file that stores no times, such as .h264 (default: what the video says, else 25)",
    )
    add.add_argument("--topic", default="cameras", help="Kafka topic (default: cameras)")
    add.add_argument(
        "--kafka",
        default="",
        metavar="HOST:PORT",
        help="address of the broker (default: the setting's, or 127.0.0.1:9092)",
    )
    add.add_argument(
        "--metrics",
        default="",
        metavar="HOST:PORT",
        help="serve Prometheus metrics at this address (default: no)",
    )
    add.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> int:
    from services.adapters.kafka_access import KafkaAccess
    from services.local.embedded_servers import HOST, KAFKA_PORT
    from services.publisher.publish import publish
    from services.settings import Settings

    settings = Settings.from_environment()
    brokers = options.kafka or settings.kafka_bootstrap_servers or f"{HOST}:{KAFKA_PORT}"
    return publish(
        options.source,
        camera=options.camera,
        name=options.name,
        bootstrap_servers=brokers,
        topic=options.topic,
        loop=options.loop,
        fps=options.fps,
        access=KafkaAccess.from_settings(settings),
        metrics=options.metrics,
    )


def _add_chat(commands: Any) -> None:
    add = commands.add_parser(
        "chat", help="ask a question about a camera and see the answer while it is made"
    )
    add.add_argument("question")
    add.add_argument("--camera", required=True, metavar="ID", help="camera to ask about")
    add.add_argument("--url", default=DEFAULT_URL, help=f"address of the service (default: {DEFAULT_URL})")
    add.add_argument(
        "--frozen", action="store_true", help="answer only from frames captured before the question"
    )
    add.add_argument(
        "--tokens-per-second",
        type=float,
        metavar="N",
        help="pace of the answer (default: as fast as possible)",
    )
    add.set_defaults(run=_chat)


def _chat(options: argparse.Namespace) -> int:
    from services.cli.chat import chat
    from services.settings import Settings

    return chat(
        options.url,
        options.camera,
        options.question,
        frozen=options.frozen,
        tokens_per_second=options.tokens_per_second,
        key=Settings.from_environment().api_key.get_secret_value(),
    )


def _add_cameras(commands: Any) -> None:
    add = commands.add_parser("cameras", help="list the cameras")
    add.add_argument("--url", default=DEFAULT_URL, help=f"address of the service (default: {DEFAULT_URL})")
    add.set_defaults(run=_cameras)


def _cameras(options: argparse.Namespace) -> int:
    from services.cli.cameras import list_cameras
    from services.settings import Settings

    return list_cameras(options.url, key=Settings.from_environment().api_key.get_secret_value())


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="make, list, rotate and revoke API keys")
    keys.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="file with the hashes of the keys (default: STREAMCHAT_KEYS_FILE)",
    )
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("make", help="make a key and print it")
    make.add_argument("name", help="name of its owner")
    make.add_argument(
        "--role", choices=("ask", "admin"), default="ask", help="admin may also read /metrics (default: ask)"
    )
    make.add_argument(
        "--camera",
        action="append",
        metavar="PATTERN",
        help="cameras that it may ask about, such as 'door-*'; may be repeated (default: all)",
    )
    make.add_argument(
        "--no-camera", action="store_true", help="no cameras; for a key that only reads the metrics"
    )
    make.add_argument("--days", type=float, metavar="N", help="days until it expires (default: never)")
    make.add_argument(
        "--requests-per-minute", type=int, default=0, metavar="N", help="limit (default: the setting's)"
    )
    make.add_argument(
        "--requests-at-once", type=int, default=0, metavar="N", help="limit (default: the setting's)"
    )
    actions.add_parser("list", help="list the keys")
    rotate = actions.add_parser("rotate", help="make a new key with the same rights; the old one expires")
    rotate.add_argument("key", help="id or name of the key")
    rotate.add_argument(
        "--grace-days",
        type=float,
        default=1.0,
        metavar="N",
        help="days for which both are valid (default: 1)",
    )
    revoke = actions.add_parser("revoke", help="remove a key now")
    revoke.add_argument("key", help="id or name of the key")
    keys.set_defaults(run=_keys)


def _keys(options: argparse.Namespace) -> int:
    from services.cli import keys
    from services.settings import Settings

    path = options.file or Path(Settings.from_environment().keys_file)
    if path == Path():
        raise ValueError("no file of keys; give --file FILE, or set STREAMCHAT_KEYS_FILE")
    match options.action:
        case "make":
            return keys.make(
                path,
                options.name,
                role=options.role,
                cameras=() if options.no_camera else tuple(options.camera or ("*",)),
                ends_s=keys.ends_after(options.days),
                requests_per_minute=options.requests_per_minute,
                requests_at_once=options.requests_at_once,
            )
        case "rotate":
            return keys.rotate(path, options.key, old_lasts_s=max(0.0, options.grace_days) * keys.DAY_S)
        case "revoke":
            return keys.revoke(path, options.key)
        case _:
            return keys.list_keys(path)


def _add_assemble(commands: Any) -> None:
    add = commands.add_parser("assemble", help="make a StreamChat folder from a SigLIP and a language model")
    add.add_argument(
        "--vision", type=Path, required=True, metavar="DIR", help="Hugging Face folder of a SigLIP model"
    )
    add.add_argument(
        "--language",
        type=Path,
        required=True,
        metavar="DIR",
        help="Hugging Face folder of a Qwen2.5 or Llama model",
    )
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add.set_defaults(run=_assemble)


def _assemble(options: argparse.Namespace) -> int:
    from model.checkpoint.assemble import assemble

    config = assemble(options.vision, options.language, options.out)
    print(f"wrote {config.name} to {options.out}; serve it with `streamchat up --model {options.out}`")
    return 0


def _add_demo(commands: Any) -> None:
    add = commands.add_parser("demo", help="run three cameras, ask two questions, and open the page")
    add.add_argument("--once", action="store_true", help="stop after the answers and print a line of JSON")
    add.add_argument(
        "--port",
        type=int,
        default=8000,
        help="port of the page (default: 8000 if it is free, else a free one)",
    )
    add.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from services.local.demo import demo

    return demo(once=options.once, port=options.port)


if __name__ == "__main__":
    sys.exit(main())
