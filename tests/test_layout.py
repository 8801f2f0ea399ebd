"""The house's rules that no type checker knows: who may import whom, and what may not be in the tree."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from model.config import PROJECT_ROOT

PACKAGES = ("model", "services", "training")
FORBIDDEN = {"model": {"services", "training"}, "services": {"training"}, "training": {"services"}}
ONLY = {  # what only these files of services/ may import
    "kafka": {"kafka_batches.py", "kafka_consumer.py", "kafka_reader.py", "kafka_writer.py"},
    "redis": {"redis_connection.py", "redis_frame_store.py"},
    "ray": {"app.py", "local_ray.py", "ray_recorder.py"},
}
DEPLOYMENTS = ("frame_fifo", "clip_player", "vision_encoder", "llm_decoder", "gateway")
# Folders of services/ on which others stand, and what these may import of services/ themselves.
MAY_IMPORT: dict[str, set[str]] = {
    "messages": set(),
    "ports": {"messages"},
    "adapters": {"messages", "ports", "settings"},
    "access": {"adapters", "messages", "ports", "settings"},
    "page": set(),
}
MOST_FILES = 14  # in one folder
MOST_LINES = 400  # of one file
MEDIAN_LINES = 200
NOT_IN_MODEL = {"ray", "kafka", "redis", "fastapi", "uvicorn", "httpx"}
LIGHT = (
    "gateway.gateway",
    "gateway.chat.endpoint",
    "gateway.realtime.session",
    "frame_fifo.frame_fifo",
    "cli.main",
    "local.up",
    "local.supervisor",
    "publisher.publish",
)
# local_ray.py hands Ray its settings: it writes the environment of its own process, and reads nothing from it; but
# that it is a job of a cluster, `ray job submit` tells a process in this way alone.
WRITES_ENVIRONMENT = {
    "services/local/local_ray.py": {"update", "PYTHONPATH"},
    "training/run/local_ray.py": {"update", "RAY_ADDRESS"},
}
TEXTS = {".py", ".md", ".toml", ".txt", ".html", ".js", ".css", ".yaml", ".yml", ".json", ".cfg", "", ".sh"}
NOT_OURS = re.compile(
    r"(?<![\w.])(/root/|/home/\w|/work/|/opt/pypi|/opt/wheels)"
    r"|\b(pypi\.org|pythonhosted\.org|registry\.npmjs|extra-index-url|--index-url|find-links)",
)


def files(suffix: str = "") -> list[Path]:
    """All files that git knows or would take, by name."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    found = (PROJECT_ROOT / name for name in sorted(set(listed)))
    return [path for path in found if path.is_file() and path.name.endswith(suffix)]


def sources(package: str) -> list[Path]:
    return [path for path in files(".py") if path.is_relative_to(PROJECT_ROOT / package)]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that is imported anywhere in the file, inside functions too, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or "", node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for path in sources(package)
        for module, line in imports(path)
        if module.partition(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


def test_the_model_is_pure() -> None:
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for path in sources("model")
        for module, line in imports(path)
        if module.partition(".")[0] in NOT_IN_MODEL
    ]
    assert wrong == []


@pytest.mark.parametrize("client", sorted(ONLY))
def test_one_file_knows_each_client(client: str) -> None:
    found = {
        path.name
        for path in sources("services")
        for module, _ in imports(path)
        if module.partition(".")[0] == client
    }
    assert found <= ONLY[client]


def test_only_settings_reads_the_environment() -> None:
    wrong: list[str] = []
    for package in PACKAGES:
        for path in sources(package):
            name = str(path.relative_to(PROJECT_ROOT))
            allowed = WRITES_ENVIRONMENT.get(name, set[str]())
            tree = ast.parse(path.read_text())
            uses = [use for use in environment_uses(tree) if not any(word in use[0] for word in allowed)]
            wrong += [f"{name}:{line}: {use}" for use, line in uses if name != "services/settings.py"]
    assert wrong == []


def environment_uses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Statements and expressions that name `os.environ` or `os.getenv`, the largest first."""
    names = {"environ", "environb", "getenv", "putenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in names)
        if isinstance(node, ast.stmt) and not isinstance(
            node,
            ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If | ast.For | ast.With | ast.Try,
        ):
            parts = (part for part in ast.walk(node) if isinstance(part, ast.Attribute))
            if any(part.attr in names and ast.unparse(part.value) == "os" for part in parts):
                yield ast.unparse(node), node.lineno


@pytest.mark.parametrize("module", LIGHT)
def test_light_processes_never_load_torch(module: str) -> None:
    program = f"import sys, services.{module}; print(*sorted({{'torch', 'transformers', 'ray'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_what_makes_training_data_never_loads_torch() -> None:
    # Every task of Ray Data would take seconds and 200 MB more to start.
    program = "import sys, training.run.micro_batch_stream; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_no_file_beside_a_script_hides_an_installed_module() -> None:
    # `python training/sft.py` puts training/ first on the path: `datasets.py` there would hide Hugging Face's.
    installed = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    hidden = (installed | {"datasets", "evaluate"}) - set(PACKAGES)
    folders = {path.parent for path in sources("training") if '__name__ == "__main__"' in path.read_text()}
    wrong = [
        str(path.relative_to(PROJECT_ROOT))
        for folder in sorted(folders)
        for path in folder.iterdir()
        if (path.stem if path.suffix == ".py" else path.name) in hidden
    ]
    assert len(folders) >= 4
    assert wrong == []


def test_tests_are_no_packages_and_mirror_the_sources() -> None:
    tests = [
        path.relative_to(PROJECT_ROOT) for path in files(".py") if path.is_relative_to(PROJECT_ROOT / "tests")
    ]
    assert [path for path in tests if path.name == "__init__.py"] == []
    wrong: list[str] = []
    for path in tests:
        package = path.parts[1]
        if path.name.startswith("test_") and package in PACKAGES:
            source = PROJECT_ROOT.joinpath(*path.parts[1:-1]) / path.name.removeprefix("test_")
            if not source.exists() and not source.with_suffix("").is_dir():
                wrong.append(f"{path}: no {source.relative_to(PROJECT_ROOT)}")
    assert wrong == []


def test_deployments_are_apart() -> None:
    # They run in processes of their own, and may be scaled, killed and upgraded alone.
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for name in DEPLOYMENTS
        for path in sources(f"services/{name}")
        for module, line in imports(path)
        if (parts := module.split("."))[0] == "services" and parts[1] in DEPLOYMENTS and parts[1] != name
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_services_folders_import_in_one_direction(folder: str) -> None:
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for path in sources(f"services/{folder}")
        for module, line in imports(path)
        if (parts := module.split("."))[0] == "services" and parts[1] not in {folder, *MAY_IMPORT[folder]}
    ]
    assert wrong == []


def test_no_folder_is_a_corridor() -> None:
    counts = Counter(path.parent for path in files(".py"))
    assert {str(folder): count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in files(".py")}
    assert {str(path): length for path, length in lengths.items() if length > MOST_LINES} == {}
    assert median(length for length in lengths.values() if length) < MEDIAN_LINES


def test_no_names_that_say_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
    assert [path for path in files(".py") if path.stem in empty] == []


def test_no_machine_in_the_tree() -> None:
    wrong: list[str] = []
    for path in files():
        if path.suffix not in TEXTS or path == Path(__file__) or path.stat().st_size > 2**20:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if found := NOT_OURS.search(line):
                wrong.append(f"{path.relative_to(PROJECT_ROOT)}:{number}: {found[0]}")
    results = (PROJECT_ROOT / "tests" / "bench" / "results").glob("*.json")
    wrong += [f"{path.name} names a temporary folder" for path in results if "/tmp/" in path.read_text()]
    assert wrong == []


def test_settings_are_described() -> None:
    from services.settings import Settings

    about = {name: field.description or "" for name, field in Settings.model_fields.items()}
    assert [name for name, text in about.items() if len(text) < 10] == []
