"""Who may import whom: only towards the right, in Python and in the core."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The first pattern that fits a module says its layer; a module imports from layers behind its own, or from its own folder's neighbours
# where SAME says so.
LAYERS = [
    r"cli(\..*)?",
    r"supervisor|operations|outlets|captures|forwarding",
    r"crew|clients",
    r"processes",
    r"opening|lending|watch",
    r"questions|leases|mirrors|members",
    r"child|ports|journal|notify|store|pulse|restarts|loop",
    r"worker",
    r"netdev",
    r"lab",
    r"workers\.(socket|bridge|packet|l2tpv3|vxlan)",
    r"workers\.dgram",
    r"workers(\..*)?|services(\..*)?|plugged",
    r"connection|datagrams|answers|vhost|moving",
    r"line|manual",
    r"shardnet|ini|switch|kinds|timers|links|carrier|masters|addresses|forwards|nets|migration|serving|statedir|(dhcp|dns|user)(\..*)?",
    r"control",
    r"tftp(\..*)?|smb(\..*)?",
    r"options|rundir|title|capturefile|rotation|hands|room",
    r"impairments",
    r"_core",
]
SAME = {0, 1, 6, 15, 17}


def layer(module):
    return next(number for number, pattern in enumerate(LAYERS) if re.fullmatch(pattern, module))


def imports(path):
    """The shardnet modules that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "shardnet")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "shardnet":
            folder = ROOT / Path(*node.module.split("."))
            for name in node.names:
                inner = folder / f"{name.name}.py"
                yield f"{node.module}.{name.name}" if inner.exists() or (folder / name.name).is_dir() else node.module
            if node.module == "shardnet" and any(name.name == "_core" for name in node.names):
                yield "shardnet._core"


def inner(module):
    """A module's name without the package's."""
    return module.removeprefix("shardnet.")


def test_python_modules_import_only_towards_the_right():
    wrong = []
    for path in sorted((ROOT / "shardnet").rglob("*.py")):
        module = inner(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for imported in map(inner, imports(path)):
            here, there = layer(module), layer(imported)
            if imported != module and (there < here or (there == here and here not in SAME)):
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_no_worker_of_one_kind_knows_the_supervisor_or_the_command_line():
    kinds = [path for folder in ("workers", "services") for path in (ROOT / "shardnet" / folder).glob("*.py")]
    assert kinds
    for path in kinds:
        known = {inner(module).split(".")[0] for module in imports(path)}
        assert not known & {"supervisor", "crew", "cli", "control", "operations"}, path.name


CORE = [
    "python",
    "shard|relay",
    "user",
    "port|repair",
    "switch",
    "lane",
    "arena",
    "table",
    "ports|index|bell",
    "offload",
    "frame|impair",
    "sys|sync",
]


def test_modules_of_the_core_use_only_what_lies_to_their_right():
    rank = {name: number for number, names in enumerate(CORE) for name in names.split("|")}
    wrong = []
    for path in sorted((ROOT / "core/src").rglob("*.rs")):
        module = path.relative_to(ROOT / "core/src").with_suffix("").parts[0]
        if module in ("lib", "testing"):
            continue
        source = path.read_text().split("#[cfg(test)]")[0]
        for used in set(re.findall(r"\bcrate::(?:\{)?(\w+)", source)) & rank.keys():
            if used != module and rank[used] <= rank[module]:
                wrong.append(f"{path.name}: {module} uses {used}")
    assert not wrong


def test_no_source_file_ate_the_house():
    long = [
        f"{path.relative_to(ROOT)}: {count} lines"
        for pattern in ("shardnet/**/*.py", "core/src/**/*.rs", "bench/**/*.py", "tests/**/*.py")
        for path in ROOT.glob(pattern)
        if (count := len(path.read_text().splitlines())) > 700
    ]
    assert not long
