"""Imports point one way, and a device carries only what it runs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "edgespec": set(),
    "engines": {"edgespec"},
    "edge_runtime": {"edgespec", "engines"},
    "cloud_runtime": {"edgespec", "engines"},
    "export": {"edgespec", "engines"},
    "calibration": {"edgespec", "engines"},
    "bench": {"edgespec", "engines", "edge_runtime", "cloud_runtime", "export", "calibration"},
    "cli": {
        "edgespec", "engines", "edge_runtime", "cloud_runtime", "export", "calibration", "bench",
    },
}  # fmt: skip
HEAVY = (
    "torch", "transformers", "onnx", "onnx_ir", "gguf", "safetensors", "ml_dtypes",
    "prometheus_client", "cryptography", "prompt_toolkit", "llama_cpp", "llguidance", "starlette",
    "uvicorn",
)  # fmt: skip
TORCH = {"torch", "onnx_ir", "ml_dtypes"}
"""What `engines/torch_backend` may import besides; the device's packages do not import it."""
LEAN = {"numpy", "onnxruntime", "tokenizers", "zmq", "msgspec", "click", "rich", "jinja2"}
OPTIONAL = {
    "grammar_process.py": {"llguidance"},
    "bindings.py": {"llama_cpp"}, "line_reader.py": {"prompt_toolkit"},
    "signing.py": {"cryptography"},
}  # fmt: skip
"""What a module imports only if it is installed, or asked for."""


API = {"starlette", "uvicorn", "anyio", "prometheus_client"}
"""What `edge_runtime/api` may import besides."""


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node):
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def parsed(path):
    """The syntax tree of a module. The names that `edgespec/__init__.py` imports for type checkers
    are left out: at run time its `__getattr__` imports them, when one is first used."""
    tree = ast.parse(path.read_text())
    lazy = path == ROOT / "edgespec" / "__init__.py"
    return _WithoutTypeChecking().visit(tree) if lazy else tree


def imported(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").partition(".")[0]


def modules(package):
    entry = ROOT / "edgespec" / "__main__.py"  # starts the command line
    return [path for path in (ROOT / package).rglob("*.py") if path != entry]


@pytest.mark.parametrize("package", BELOW)
def test_imports_point_one_way(package):
    for path in modules(package):
        siblings = set(imported(path)) & set(BELOW) - {package}
        assert siblings <= BELOW[package], f"{path} imports {siblings - BELOW[package]}"


def test_the_command_line_imports_outward_only_inside_its_commands():
    views = {"bundle_view", "fleet_view", "watch"}  # imported inside commands
    for path in modules("cli"):
        outside = set(top_level(path)) - {"edgespec", "cli", "click"} - set(sys.stdlib_module_names)
        allowed = {"rich", "msgspec"} if path.stem in views else set()
        assert outside <= allowed, f"{path} imports {outside - allowed}"


def top_level(path):
    """Packages that are imported when the module is, not when one of its functions runs."""
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("package", ["edgespec", "engines", "edge_runtime"])
def test_the_device_side_imports_only_what_the_lean_install_has(package):
    for path in modules(package):
        outside = set(imported(path)) - set(BELOW) - set(sys.stdlib_module_names)
        allowed = LEAN | OPTIONAL.get(path.name, set())
        allowed |= TORCH if is_torch(path) else API if path.parent.name == "api" else set()
        assert outside <= allowed, f"{path} imports {outside - allowed}"


def is_torch(path):
    return path.parent.name == "torch_backend"


@pytest.mark.parametrize("package", ["edgespec", "engines", "edge_runtime", "cloud_runtime"])
def test_the_torch_back_end_is_reached_by_its_name_alone(package):
    for path in modules(package):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [getattr(node, "module", None) or ""] if isinstance(node, ast.ImportFrom) else []
            )
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found = [name for name in names if name.startswith("engines.torch_backend.")]
            assert not found or is_torch(path), f"{path} imports {found}"


def loaded_by(code):
    script = f"import sys\n{code}\nprint(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_importing_the_device_loads_nothing_heavy():
    code = "import edge_runtime.terminal, edge_runtime.loop, cli.main, engines.backends"
    code += ", engines.exactness, engines.onnxruntime_backend.engine"
    assert loaded_by(code) == []


def test_an_answer_loads_nothing_heavy(tiny_bundle):
    """The whole of `edge-run`, against a cloud in another process."""
    code = f"""
import subprocess, sys, threading
cloud = subprocess.Popen(
    [sys.executable, "-m", "edgespec", "cloud-run", {str(tiny_bundle.folder)!r},
     "--bind", "tcp://127.0.0.1:*"], stderr=subprocess.PIPE, text=True)
for line in cloud.stderr:
    if "listening on" in line:
        endpoint = line.split()[-1]
        break
threading.Thread(target=cloud.stderr.read, daemon=True).start()
from click.testing import CliRunner
from cli.main import main
result = CliRunner().invoke(main, ["edge-run", {str(tiny_bundle.folder)!r}, "--connect", endpoint,
    "--prompt", "hello", "--max-tokens", "5", "--drafter", "cpu-int8", "--json"])
cloud.terminate()
assert result.exit_code == 0, result.output
assert '"tokens":5' in result.stderr, result.stderr
"""
    assert loaded_by(code) == []
