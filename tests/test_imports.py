"""The house rules that a reader relies on: imports go downward only, and what is heavy is imported late."""

import ast
import functools
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
MODULES = sorted((PROJECT / "txl").rglob("*.py"))
ENTRY_POINTS = sorted(PROJECT.glob("*.py"))

# A folder (or file) of txl/ may import those in the lines above its own, and its own modules without cycles.
ORDER = """
    version
    errors
    files
    config
    system
    data
    plan
    model
    optim
    checkpoint
    tracking
    evaluate
    api
    train
    report
    bench
    launch
    cli
    download
""".split()
ALLOWED = {  # which folders and files may know these packages
    "hydra": {"cli", "config/compose", "config/error_messages"},
    "omegaconf": {"cli", "config"},
    "wandb": {"tracking/wandb_sink"},
    "submitit": {"launch/slurm_submit", "launch/slurm_script"},
}
LATE = {"wandb", "submitit", "hydra", "matplotlib"}  # never while a module is imported
TORCH_FREE = {"errors", "files", "config", "plan", "report", "cli"}  # folders
TORCH_FREE |= {"launch/start", "launch/prepare", "system/hardware", "system/console", "system/timing"}  # and files
TORCH_FREE |= {"tracking/tracker", "tracking/metrics_file", "bench/encoding", "data/corpus", "data/download"}


def name_of(path: Path) -> str:
    """`data/corpus` for txl/data/corpus.py."""
    return path.relative_to(PROJECT / "txl").with_suffix("").as_posix() if path in MODULES else path.stem


def module_at(name: str) -> Path | None:
    """The file of `txl.data.corpus`, or of the package `txl.data`."""
    path = PROJECT.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate in MODULES), None)


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported with the file) for every import statement."""
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if module_at(name) else node.module for name in inside]
        else:
            continue
        found += [(name, id(node) not in late) for name in names]
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def reached_from(path: Path, late: bool) -> set[Path]:
    """Modules of this package that a module imports, directly or not; `late`: also inside of functions."""
    reached: set[Path] = set()
    waiting = [path]
    while waiting:
        for name, with_file in imports(waiting.pop()):
            module = module_at(name)
            if module and (late or with_file) and module not in reached:
                reached.add(module)
                waiting.append(module)
    return reached


def test_every_folder_has_a_line_in_the_order():
    there = {name_of(path).split("/")[0] for path in MODULES} - {"__init__", "__main__"}
    assert there == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downward_only(path):
    own = name_of(path).split("/")[0]
    for name, _ in imports(path):
        folder = name.split(".")[1] if name.startswith("txl.") else None
        if folder and own in ORDER:
            assert ORDER.index(folder) <= ORDER.index(own), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_reaches_itself(path):
    assert path not in reached_from(path, late=True)


@pytest.mark.parametrize("path", MODULES + ENTRY_POINTS, ids=name_of)
def test_only_their_owners_know_hydra_wandb_and_submitit(path):
    for name, with_file in imports(path):
        package = name.split(".")[0]
        own = {name_of(path), name_of(path).split("/")[0]}
        assert own & ALLOWED.get(package, own), f"{name_of(path)} imports {name}"
        assert package not in LATE or not with_file, f"{name_of(path)} imports {name} at its top"


def needs_no_torch(path: Path) -> bool:
    name = name_of(path)
    return path in ENTRY_POINTS or bool({name, name.split("/")[0]} & TORCH_FREE)


@pytest.mark.parametrize("path", [p for p in MODULES + ENTRY_POINTS if needs_no_torch(p)], ids=name_of)
def test_a_mistake_need_not_wait_for_torch(path):
    for module in {path} | reached_from(path, late=False):
        packages = {name.split(".")[0] for name, with_file in imports(module) if with_file}
        assert "torch" not in packages, f"{name_of(path)} reaches torch in {name_of(module)}"


@pytest.mark.parametrize("path", MODULES + ENTRY_POINTS, ids=name_of)
def test_no_module_works_while_it_is_imported(path):
    """Definitions, constants and docstrings only: no call for its effect, no loop."""
    for node in ast.parse(path.read_text()).body:
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        assert not call and not isinstance(node, ast.For | ast.While | ast.With | ast.Try), f"{path.name}:{node.lineno}"
