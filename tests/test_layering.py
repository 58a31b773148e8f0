"""Who may lean on whom, checked from the imports in the source."""

import ast
import sys
from pathlib import Path

import pytest

import cossim_fast

PACKAGE = Path(cossim_fast.__file__).parent
KERNELS = Path(__file__).parent.parent / "kernels"

# Who may import whom. A room is a module or a folder of modules, by its dotted name; of two that
# fit the longer one counts. A folder's modules may import each other.
RULES = {
    "_reference": set(),
    "_checks": set(),
    "_as_one": set(),
    "_extras": set(),
    "_escaped": set(),
    "_file_kinds": set(),
    "_replacing": {"_file_kinds"},
    "_fp32_setting": set(),
    "_dtypes": set(),
    "_lazily": set(),
    "_numpy": set(),
    "_quiet": set(),
    "_shapes": set(),
    "_vecdot": set(),
    "_cgroup": set(),
    "_threads": {"_cgroup"},
    "_products": {"_fp32_setting", "_quiet", "_threads"},
    "files": {"_extras", "_file_kinds"},
    "_dispatch": {"_checks"},
    "_broadcast": set(),
    "testing": set(),
    "_composite": {"_dtypes", "_products"},
    "_score.exact": {"_quiet"},
    "_score.near": {"_numpy", "_score.exact", "_threads"},
    "_score": set(),
    "_cpu": {
        "_composite", "_dtypes", "_products", "_quiet", "_score.exact", "_shapes", "_threads",
        "_vecdot",
    },
    "_autograd": {"_composite", "_cpu", "_dispatch"},
    "_gpu": {"_autograd", "_composite", "_dispatch", "kernels"},
    "_ops": {"_checks", "_composite", "_cpu", "_dispatch", "_gpu", "kernels"},
    "functional": {
        "_as_one", "_autograd", "_broadcast", "_checks", "_composite", "_cpu", "_dispatch",
        "_dtypes", "_gpu", "_ops", "_threads",
    },
    "modules": {"_checks", "functional"},
    # Retrieval: what all of it stands on, four rooms, and what stands on all of them.
    "retrieval.tuning": set(),
    "retrieval.memory_map": set(),
    "retrieval.progress": {"_extras"},
    "retrieval.results": {"_score.exact"},
    "retrieval.screening": {
        "_lazily", "_numpy", "_products", "_quiet", "_score", "_score.exact", "_score.near",
        "_shapes", "_threads", "_vecdot", "retrieval.memory_map", "retrieval.tuning",
    },
    "retrieval.storage": {
        "_checks", "_file_kinds", "_lazily", "_ops", "_replacing", "_score.exact", "_threads",
        "retrieval.memory_map", "retrieval.screening",
    },
    "retrieval.nearest": {
        "_as_one", "_checks", "_lazily", "_numpy", "_ops", "_score.exact", "_score.near",
        "_threads", "retrieval.memory_map", "retrieval.progress", "retrieval.results",
        "retrieval.screening", "retrieval.storage", "retrieval.tuning",
    },
    "retrieval.joins": {
        "_as_one", "_checks", "_lazily", "_numpy", "_score.exact", "_score.near",
        "_threads", "retrieval.memory_map", "retrieval.progress", "retrieval.results",
        "retrieval.screening", "retrieval.storage", "retrieval.tuning",
    },
    "retrieval": {
        "_as_one", "_checks", "_ops", "_score.exact", "_threads",
        "retrieval.memory_map", "retrieval.progress", "retrieval.results", "retrieval.tuning",
        "retrieval.screening", "retrieval.storage", "retrieval.nearest", "retrieval.joins",
    },
    "losses": {
        "_autograd", "_checks", "_composite", "_cpu", "_dispatch", "_dtypes", "_ops", "_products",
        "_shapes", "_threads", "functional",
    },
    "distributed": {
        "__init__", "_checks", "_extras", "_replacing", "files", "retrieval", "retrieval.progress",
    },
    "diagnose": {
        "_as_one", "_checks", "_escaped", "_extras", "_products", "_replacing", "functional",
        "losses", "modules", "retrieval",
    },
    "__init__": {"_ops", "diagnose", "functional", "losses", "modules", "retrieval"},
    "integrations": {
        "__init__", "functional", "modules", "losses", "retrieval", "diagnose", "_checks",
        "_extras", "_threads",
    },
    "cli": {
        "__init__", "_checks", "_escaped", "_extras", "_products", "_replacing", "_threads",
        "diagnose", "distributed", "files", "functional", "integrations", "modules", "retrieval",
    },
}  # fmt: skip
ONLY_IN_FUNCTIONS = {("_ops", "kernels"), ("_gpu", "kernels")}
# What may be imported as a module is loaded; another package only at its first use.
AT_IMPORT = {"torch", "numpy", "cossim_fast", *sys.stdlib_module_names}
IN_FUNCTIONS_OF = {"diagnose", "distributed", "files", "integrations", "cli", "retrieval", "_ops"}
# The commands stand on these; the room's own __init__ imports them when the command runs.
AT_IMPORT_OF = {"cli": {"typer", "rich"}}
# Adapters that are subclasses of what they stand in for, or hand on to it: nobody imports them
# without the library.
SUBCLASSES = {
    "integrations/scipy.py": {"scipy"},
    "integrations/sklearn.py": {"sklearn", "scipy"},
    "integrations/langchain.py": {"langchain_core"},
    "integrations/langgraph.py": {"langgraph"},
    "integrations/lightly.py": {"lightly"},
    "integrations/llama_index.py": {"llama_index"},
    "integrations/pytorch_metric_learning.py": {"pytorch_metric_learning"},
    "integrations/sentence_transformers_losses.py": {"sentence_transformers"},
}


def imports_of(source: str) -> list[tuple[str, bool]]:
    """List what a source imports: dotted name, and whether not as the module is loaded."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = "." * child.level + (child.module or "")
                found.extend((f"{module}.{alias.name}", inside) for alias in child.names)
            later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            later |= isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            visit(child, inside or later)

    visit(ast.parse(source), False)
    return found


def room_of(dotted: str) -> str:
    """The room that a name within the package belongs to; its own for a name that has none."""
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        room = ".".join(parts[:size])
        if room in RULES or room == "kernels":
            return room
    return "__init__"


def room_of_file(path: Path) -> str:
    """The room of a file of the package."""
    dotted = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return room_of(dotted.removesuffix(".__init__"))


def broken_rules(room: str, source: str, path: str = "") -> list[str]:
    """Say what a source of that room imports against the rules."""
    broken = []
    outer = room.split(".", maxsplit=1)[0]
    at_import = AT_IMPORT | AT_IMPORT_OF.get(outer, set()) | SUBCLASSES.get(path, set())
    for name, inside in imports_of(source):
        top, _, rest = name.partition(".")
        if top == "":
            broken.append(f"{room}: relative import {name}")
        elif top != "cossim_fast":
            if top not in at_import and not (inside and outer in IN_FUNCTIONS_OF):
                broken.append(f"{room}: {name} from outside, at import")
            if room == "_reference" and top not in ("torch", "__future__"):
                broken.append(f"{room}: {name}, where torch alone is allowed")
        else:
            target = room_of(rest) if rest else "__init__"
            if target != room and target not in RULES[room]:
                broken.append(f"{room}: {name}")
            if (room, target) in ONLY_IN_FUNCTIONS and not inside:
                broken.append(f"{room}: {name} outside a function")
    return broken


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "kernels" not in p.parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_leans_on_nothing_but_what_it_may(path):
    room = room_of_file(path)
    expected = "__init__" if path == PACKAGE / "__init__.py" else path.relative_to(PACKAGE).parts[0]
    assert room.split(".")[0] == expected.removesuffix(".py"), "say in RULES what it may import"
    assert (
        broken_rules(room, path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix())
        == []
    )


def test_the_command_loads_what_it_stands_on_when_it_runs():
    source = (PACKAGE / "cli" / "__init__.py").read_text(encoding="utf-8")
    at_import = [name for name, inside in imports_of(source) if not inside]
    outside = [name for name in at_import if name.split(".")[0] not in sys.stdlib_module_names]
    assert outside == ["cossim_fast._extras.require"]


def test_rules_have_no_cycle_and_nobody_leans_on_the_outermost():
    order: list[str] = []
    waiting = {room: needs - {"kernels"} for room, needs in RULES.items()}
    while waiting:
        free = [room for room, needs in waiting.items() if needs <= set(order)]
        assert free, f"a cycle among {sorted(waiting)}"
        order += free
        for room in free:
            del waiting[room]
    for outer in ("testing", "cli", "_reference"):
        assert all(outer not in needs for needs in RULES.values())


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda p: p.name)
def test_kernels_lean_on_triton_torch_and_siblings_alone(path):
    allowed = {"triton", "torch", "", "__future__", *sys.stdlib_module_names}
    names = [name for name, _ in imports_of(path.read_text(encoding="utf-8"))]
    assert [name for name in names if name.split(".")[0] not in allowed] == []
    if path.name == "__init__.py":
        assert names == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("_checks", "from cossim_fast import _cpu"),
        ("_checks", "import cossim_fast._cpu"),
        ("_checks", "import cossim_fast._cpu as c"),
        ("_checks", "from cossim_fast._cpu import BLOCK"),
        ("_checks", "from . import _cpu"),
        ("_checks", "from ._cpu import BLOCK"),
        ("_checks", "def f():\n    from cossim_fast import functional"),
        ("_checks", "class A:\n    from cossim_fast import functional"),
        ("_checks", "from cossim_fast import pairwise_cosine"),
        ("_cpu", "import triton"),
        ("_cpu", "def f():\n    import scipy.linalg"),
        ("_ops", "from cossim_fast.kernels import pairwise"),
        ("_ops", "from cossim_fast import kernels"),
        ("_reference", "import numpy"),
        ("diagnose", "import matplotlib"),
        ("diagnose", "import typer"),
        ("cli", "import pyarrow"),
        ("functional", "from cossim_fast.testing import assert_close"),
        ("retrieval", "from cossim_fast.diagnose import findings"),
        ("retrieval", "from cossim_fast.integrations import sklearn"),
        ("integrations", "import faiss"),
    ],
)
def test_the_check_can_fail(room, source):
    assert broken_rules(room, source)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("_ops", "def f():\n    from cossim_fast.kernels import pairwise"),
        ("diagnose", "def f():\n    import matplotlib.pyplot"),
        ("_cpu", "import math\nimport numpy\nfrom torch.linalg import vector_norm"),
        ("cli", "from cossim_fast import pairwise_cosine"),
        ("cli", "import typer"),
        ("functional", "from cossim_fast import _checks, _cpu"),
    ],
)
def test_the_check_lets_the_allowed_pass(room, source):
    assert broken_rules(room, source) == []
