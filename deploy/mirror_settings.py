"""Write the services' settings (services/settings.py) into the chart: its values and its schema.

    python deploy/mirror_settings.py

Settings that are secrets appear in neither `settings` nor the ConfigMap: they come through `secretSettings`.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from services.settings import ACCESS, KAFKA_PROTOCOLS, Settings

CHART = Path(__file__).parent.parent / "helm" / "streamchat"
TYPES = {"str": "string", "int": "integer", "float": "number"}
CHOICES = {"access": ACCESS, "kafka_security_protocol": KAFKA_PROTOCOLS}


def settings_block() -> str:
    """The `settings:` of values.yaml, a comment over each."""
    lines = ["settings:"]
    for f in fields(Settings):
        if not f.metadata["secret"]:
            about = f.metadata["about"]
            lines += [f"  # {about[0].upper()}{about[1:]}.", f"  {f.name}: {json.dumps(f.default)}"]
    return "\n".join(lines)


def with_settings(values: str) -> str:
    """values.yaml with its block renewed."""
    between = re.compile(r"(?<=# settings: begin\n).*?(?=\n?# settings: end)", re.DOTALL)
    return between.sub(lambda _: settings_block() + "\n", values, count=1)


def setting_schema(name: str, default: Any) -> dict[str, Any]:
    """What a setting may be, as far as the settings themselves refuse the rest."""
    if name in CHOICES:
        return {"enum": list(CHOICES[name])}
    schema: dict[str, Any] = {"type": TYPES[type(default).__name__]}
    if not isinstance(default, str):
        if refused(name, -1):
            schema["minimum"] = 0
        if refused(name, 0):
            schema = {"type": schema["type"], "exclusiveMinimum": 0}
    return schema


def refused(name: str, value: Any) -> bool:
    """Whether the settings refuse it."""
    try:
        Settings(**{name: value})
    except ValueError:
        return True
    return False


def schema_with_settings(schema: dict[str, Any]) -> dict[str, Any]:
    """values.schema.json with its two places renewed."""
    plain = [f for f in fields(Settings) if not f.metadata["secret"]]
    schema["$defs"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {f.name: setting_schema(f.name, f.default) for f in plain},
        "minProperties": len(plain),  # with the line above: all of them
    }
    schema["$defs"]["settingNames"] = {"enum": [f.name for f in fields(Settings)]}
    return schema


def compact(text: str, columns: int = 110) -> str:
    """Indented JSON with each object and list on one line where it fits."""
    innermost = re.compile(r"^( *)(.*?)([{\[])\n([^{}\[\]]*?)\n *([}\]])(,?)$", re.MULTILINE)
    marks = str.maketrans("{}[]", "\x01\x02\x03\x04")  # what is on one line is no longer in the way

    def joined(found: re.Match[str]) -> str:
        indent, before, opening, inner, closing, comma = found.groups()
        line = before + opening + " ".join(part.strip() for part in inner.splitlines()) + closing + comma
        fits = len(indent) + len(line) <= columns
        return indent + line.translate(marks) if fits else found[0]

    while (shorter := innermost.sub(joined, text)) != text:
        text = shorter
    return text.translate(str.maketrans("\x01\x02\x03\x04", "{}[]"))


def main() -> None:
    values, schema = CHART / "values.yaml", CHART / "values.schema.json"
    values.write_text(with_settings(values.read_text()))
    renewed = schema_with_settings(json.loads(schema.read_text()))
    schema.write_text(compact(json.dumps(renewed, indent=2)) + "\n")


if __name__ == "__main__":
    main()
