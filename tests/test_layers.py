"""Who imports what: every arrow points up this list, no package is part of a circle, and Ray stays behind runtime/."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

# A package or module imports only from those that stand before it.
LAYERS = (
    "config", "filesystems", "store", "sets", "layout", "beside", "lock", "runs", "numerics", "datasets", "models",
    "runtime", "stages", "methods", "evaluation", "library", "pretraining", "report", "benchmarks", "cli",
    "results", "jobs",
)  # fmt: skip
RAY = (
    "d3hr_ray/runtime/", "d3hr_ray/pretraining/", "d3hr_ray/evaluation/schedule.py",
    "d3hr_ray/benchmarks/evaluate.py", "d3hr_ray/benchmarks/pipeline.py",
)  # fmt: skip
PIXELS = ("d3hr_ray/datasets/", "d3hr_ray/stages/", "d3hr_ray/evaluation/", "d3hr_ray/report/", "d3hr_ray/benchmarks/")
AHEAD = re.compile(r'connect\(.*"(d3hr_ray\.[\w.]+)"\)')
NO_MODULE_NEEDS = {"numerics": ("d3hr_ray.config", "pyarrow", "PIL", "diffusers", "timm")}


def imports(file: Path) -> set[str]:
    """Full names of all that a file imports, wherever in it: a.b.C of `from a.b import C`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = {str(p.relative_to(ROOT)): imports(p) for top in ("d3hr_ray", "jobs") for p in (ROOT / top).rglob("*.py")}


def layer(file: str) -> str:
    """'d3hr_ray/stages/fit.py' => stages, 'd3hr_ray/store.py' => store."""
    top, _, rest = file.partition("/")
    return rest.partition("/")[0].removesuffix(".py") if top == "d3hr_ray" else top


@pytest.mark.parametrize("file", sorted(FILES))
def test_every_arrow_points_up(file):
    if file == "d3hr_ray/__init__.py":
        return  # what it names is imported when it is used: tests/test_library.py
    own = LAYERS.index(layer(file))
    for name in FILES[file]:
        top, _, rest = name.partition(".")
        if top == "d3hr_ray" and rest:
            other = rest.partition(".")[0]
            assert LAYERS.index(other) <= own, f"{file} imports {name}, which stands below it"


def test_no_modules_import_each_other():
    """Within a package, too: a module can be read without those that use it."""
    names = {f.removesuffix(".py").replace("/", "."): f for f in FILES}
    arrows = {
        names_of: {t for name in FILES[file] if (t := _module(name, names)) not in ("", names_of)}
        for names_of, file in names.items()
    }
    left = dict(arrows)
    while ends := [m for m, targets in left.items() if not targets & left.keys()]:
        for module in ends:
            del left[module]
    assert not left, f"these import each other: {sorted(left)}"


def _module(name: str, names: dict[str, str]) -> str:
    parent = name.rpartition(".")[0]
    return name if name in names else parent if parent in names else ""


@pytest.mark.parametrize(("package", "where"), [("ray", RAY), ("PIL", PIXELS)])
def test_what_knows_ray_and_pixels_is_known(package, where):
    users = {file for file, found in FILES.items() if package in {name.partition(".")[0] for name in found}}
    assert not {file for file in users if not file.startswith(where)}
    assert all(any(file.startswith(place) for file in users) for place in where), "an entry that nobody needs"


def test_numerics_need_numbers_alone():
    for package, unwanted in NO_MODULE_NEEDS.items():
        for file, found in FILES.items():
            if layer(file) == package:
                assert not {name for name in found if name.startswith(unwanted)}, file


TEXTS = sorted(
    path
    for top in ("d3hr_ray", "jobs", "tests", "docs", "cluster")
    for path in (ROOT / top).rglob("*")
    if path.suffix in (".py", ".md", ".yaml", ".json") and path.is_file()
) + [ROOT / name for name in ("README.md", "Makefile", "pyproject.toml")]


def test_pages_that_are_named_are_there():
    """A reader who follows a comment finds what it points at: a page of docs/, or a public source."""
    named = re.compile(r"\bdocs/[\w-]+\.md\b|\b[A-Z][A-Z0-9_]+\.md\b")
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in TEXTS
        for name in named.findall(path.read_text())
        if not (ROOT / name).is_file() and name != "README.md"
    }
    assert not missing


def first_imports(file: Path) -> set[str]:
    """What a file imports when it is imported: not what its functions do later, nor what type checkers see."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {f"{getattr(node, 'module', None) or a.name}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("job", ["distill", "evaluate", "pretrain", "sweep"])
def test_a_job_starts_without_what_takes_seconds_to_import(job):
    """--help, a wrong flag and a wrong path are answered at once: main() imports the rest when they are right."""
    names = {f.removesuffix(".py").replace("/", "."): ROOT / f for f in FILES}
    seen, left = set(), {f"jobs.{job}"}
    while left:
        module = left.pop()
        seen.add(module)
        for name in first_imports(names[module]):
            parents = {name.rsplit(".", i)[0] for i in range(name.count(".") + 1)}
            heavy = {"torch", "diffusers", "timm", "torchvision", "sklearn", "matplotlib", "scipy"} & parents
            assert not heavy, f"jobs/{job}.py imports {module}, which imports {heavy}"
            left |= (parents & names.keys()) - seen


def test_what_workers_load_ahead_is_there():
    named = {name for file in FILES if file.startswith("jobs/") for name in AHEAD.findall((ROOT / file).read_text())}
    assert len(named) >= 2
    assert all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in named)
