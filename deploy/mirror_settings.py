"""Copy the services' settings (services/settings.py) into the chart's values and schema, and into docs/settings.md.

    python deploy/mirror_settings.py

Secret settings are in neither `settings` nor the ConfigMap of the chart: they come through `secretSettings`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from model.config import PROJECT_ROOT
from services.settings import PREFIX, Settings

CHART = PROJECT_ROOT / "helm" / "streamchat"
PAGE = PROJECT_ROOT / "docs" / "settings.md"
# Each setting with its JSON schema (`type`, `default`, `description`, `enum`, limits).
SETTINGS: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]
PLAIN = {name: about for name, about in SETTINGS.items() if about.get("format") != "password"}
PAGE_HEAD = """# Settings

The services are configured by environment variables. An unknown `STREAMCHAT_` variable or a wrong value stops the start
with a message that names it. The [chart](../helm/streamchat/README.md) has the same settings in its values.

This page is made from [services/settings.py](../services/settings.py) by `python deploy/mirror_settings.py`.

| variable | default | values | meaning |
| --- | --- | --- | --- |
"""


def settings_block() -> str:
    """The `settings:` of values.yaml, a comment over each."""
    lines = ["settings:"]
    for name, about in PLAIN.items():
        lines += [f"  # {text(about)}", f"  {name}: {json.dumps(about['default'])}"]
    return "\n".join(lines)


def text(about: dict[str, Any]) -> str:
    """What a setting means, on one line."""
    return " ".join(about["description"].split())


def with_settings(values: str) -> str:
    """values.yaml with its block renewed."""
    block = re.compile(r"(?<=# settings: begin\n).*?(?=\n?# settings: end)", re.DOTALL)
    return block.sub(lambda _: settings_block() + "\n", values, count=1)


def setting_schema(about: dict[str, Any]) -> dict[str, Any]:
    """The values that a setting may have, as JSON schema."""
    if "enum" in about:
        return {"enum": about["enum"]}
    return {key: about[key] for key in ("type", "minimum", "exclusiveMinimum", "maximum") if key in about}


def schema_with_settings(schema: dict[str, Any]) -> dict[str, Any]:
    """values.schema.json with its two places renewed."""
    schema["$defs"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: setting_schema(about) for name, about in PLAIN.items()},
        "minProperties": len(PLAIN),  # with the line above: all of them
    }
    schema["$defs"]["settingNames"] = {"enum": list(SETTINGS)}
    return schema


def settings_page() -> str:
    """docs/settings.md: a row for each setting."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {shown_default(about)} | {allowed(about)} | {text(about)} |"
        for name, about in SETTINGS.items()
    ]
    return PAGE_HEAD + "\n".join(rows) + "\n"


def shown_default(about: dict[str, Any]) -> str:
    """The default in a table's cell."""
    return "–" if about["default"] == "" else f"`{about['default']}`".replace("|", "&#124;")


def allowed(about: dict[str, Any]) -> str:
    """The values that a setting may have, for a reader."""
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    kind = {"string": "text", "integer": "whole number", "number": "number"}[about["type"]]
    if about.get("format") == "password":
        return "secret text"
    if "exclusiveMinimum" in about:
        return f"{kind} above {about['exclusiveMinimum']:g}"
    if "maximum" in about:
        return f"{kind}, {about['minimum']:g} to {about['maximum']:g}"
    return f"{kind}, {about['minimum']:g} or more" if "minimum" in about else kind


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
    PAGE.write_text(settings_page())


if __name__ == "__main__":
    main()
