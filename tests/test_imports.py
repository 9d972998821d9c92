"""The house rules that a reader relies on: imports go downward only, and what is heavy is imported late."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
MODULES = sorted((PROJECT / "txl").rglob("*.py"))
ENTRY_POINTS = sorted(PROJECT.glob("*.py"))

# A module may import those of the rows above its own, and its neighbours to the left.
ORDER = [
    "choices errors",
    "config composition rules run_identity distributed hardware precision console dllogger download timing",
    "moses text cache bpe vocab words zipf kernels product adaptive dropout attention optim",
    "state encoding sources data sentences model sampled plan",
    "unpickle convert checkpoint fine_tuning tracking inference program generation evaluation run_folder report",
    "ending trainer evaluator writer",
    "rank evaluation_rank preflight train_speed jobs slurm status launch train_benchmark",
    "inference_speed encoding_speed",
    "command",
]
HYDRA = {"hydra", "omegaconf"}  # compose and convert; nobody else knows where a configuration came from
ALLOWED = {
    "hydra": {"composition", "command"},
    "omegaconf": {"config", "composition", "command", "errors"},
    "wandb": {"tracking"},
    "submitit": {"launch", "rank", "slurm", "status"},
}
LATE = {"wandb", "submitit", "hydra", "matplotlib"}  # never while a module is imported
TORCH_FREE = {"errors", "config", "composition", "rules", "plan", "command", "launch", "hardware", "tracking"}
TORCH_FREE |= {"report", "timing", "encoding_speed"}


def place_of(module: str) -> int:
    rows = [row.split() for row in ORDER]
    names = [name for row in rows for name in row]
    assert module in names, f"txl/{module}.py needs a place in ORDER"
    return names.index(module)


def imports(path: Path) -> Iterable[tuple[str, bool]]:
    """(module, whether it is imported with the file) for every import statement; ours as `txl.name`."""
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names = [f"txl.{a.name}" for a in node.names] if node.module == "txl" else [node.module]
        else:
            continue
        for name in names:
            yield name, id(node) not in late


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def names_read_in(paths: Iterable[Path]) -> set[str]:
    """Names that are read as `something.name`, or as getattr(something, "name"), in some of these files."""
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    return read | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__init__"], ids=lambda path: path.stem)
def test_imports_go_downward_only(path):
    for name, _ in imports(path):
        if name.startswith("txl."):
            own = path.relative_to(PROJECT / "txl").parts[0].removesuffix(".py")  # kernels/ has one place
            assert place_of(name.split(".")[1]) < place_of(own), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES + ENTRY_POINTS, ids=lambda path: path.stem)
def test_only_their_owners_know_hydra_wandb_and_submitit(path):
    for name, with_file in imports(path):
        package = name.split(".")[0]
        assert path.stem in ALLOWED.get(package, {path.stem}), f"{path.name} imports {name}"
        assert package not in LATE or not with_file, f"{path.name} imports {name} at its top"


@pytest.mark.parametrize(
    "path", [p for p in MODULES + ENTRY_POINTS if p.stem in TORCH_FREE or p in ENTRY_POINTS], ids=lambda p: p.stem
)
def test_a_mistake_need_not_wait_for_torch(path):
    reached, waiting = set(), [path]
    while waiting:
        for name, with_file in imports(waiting.pop()):
            assert not with_file or name.split(".")[0] != "torch", f"{path.name} reaches torch"
            module = PROJECT / "txl" / f"{name.removeprefix('txl.')}.py"
            if with_file and module in MODULES and module not in reached:
                reached.add(module)
                waiting.append(module)


@pytest.mark.parametrize("path", MODULES + ENTRY_POINTS, ids=lambda path: path.stem)
def test_no_module_works_while_it_is_imported(path):
    """Definitions, constants and docstrings only: no call for its effect, no loop."""
    for node in ast.parse(path.read_text()).body:
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        assert not call and not isinstance(node, ast.For | ast.While | ast.With | ast.Try), f"{path.name}:{node.lineno}"
