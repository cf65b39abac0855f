"""TensorRT's runtime as the runner knows it, over ONNX Runtime and a `HostDevice`.

An engine's file names the graph that it runs. A context refuses shapes outside its profile, runs
nothing that is not bound, and, like TensorRT, runs later: when the stream gets there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from enum import Enum
from types import SimpleNamespace

import msgspec
import numpy as np
import onnxruntime

from edgespec.manifest import MANIFEST, Built, Bundle, File, Shapes

MAGIC = b"engine"
SHAPES = (
    Shapes(batch=(1, 2, 3), tokens=(1, 1, 2), selected=(1, 2, 6)),
    Shapes(batch=(1, 2, 3), tokens=(1, 5, 16), selected=(1, 10, 32)),
    Shapes(batch=(1, 1, 2), tokens=(1, 64, 64), selected=(1, 64, 64)),
)
_KINDS = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class Logger:
    Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

    def __init__(self):
        pass


class FakeTensorrt:
    """The module. `strays`: caches are written elsewhere, not in place."""

    __name__ = "tensorrt"
    __version__ = "10.3.0.30"
    ILogger = Logger
    TensorIOMode = Mode
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    def __init__(self, device, *, strays=False, aliases=False, fails=(), rtx=None):
        self.device, self.strays, self.aliases, self.fails = device, strays, aliases, fails
        self.rtx = rtx
        """What a context says when it is asked whether it can be recorded; None: it has no word."""
        self.profiles = []
        """Of every run, which optimisation profile it took."""
        self.bindings = 0
        """Shapes that were set."""
        self.sessions = {}

    def Runtime(self, log):  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self.load(log, bytes(data)))

    def load(self, log, data):
        if not data.startswith(MAGIC):
            log.log(Logger.Severity.ERROR, "magicTag failed")
            return None
        about = json.loads(data.removeprefix(MAGIC))
        if about["graph"] not in self.sessions:
            self.sessions[about["graph"]] = onnxruntime.InferenceSession(about["graph"])
        return Engine(self, self.sessions[about["graph"]], about, log)


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, trt, session, about, log):
        self.trt, self.session, self.log = trt, session, log
        self.inputs = {i.name: i for i in session.get_inputs()}
        self.ports = {**self.inputs, **{o.name: o for o in session.get_outputs()}}
        self.capacity = about["capacity"]
        self.shapes = [msgspec.convert(shapes, Shapes) for shapes in about["shapes"]]
        self.num_io_tensors = len(self.ports)
        self.num_optimization_profiles = len(self.shapes)
        if trt.aliases:
            self.get_aliased_input_tensor = lambda name: (
                name.removesuffix(".out") if name.startswith("cache_") else None
            )

    def get_tensor_name(self, number):
        return list(self.ports)[number]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=_KINDS[self.ports[name].type])

    def get_tensor_mode(self, name):
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def dims(self, name, **known):
        known["capacity"] = self.capacity
        dims = self.ports[name].shape
        return tuple(dim if isinstance(dim, int) else known.get(dim, -1) for dim in dims)

    def get_tensor_shape(self, name):
        return self.dims(name)

    def get_tensor_profile_shape(self, name, number):
        spans = {
            "batch": self.shapes[number].batch,
            "tokens": self.shapes[number].tokens,
            "selected": self.shapes[number].selected,
        }
        return [
            self.dims(name, **{dim: span[point] for dim, span in spans.items()})
            for point in range(3)
        ]

    def create_execution_context(self, strategy):
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return None if "context" in self.trt.fails else Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.trt = engine, engine.trt
        self.profile = None
        self.shapes, self.addresses = {}, {}
        self.scratch = 0
        self.recorded = False
        if engine.trt.rtx is not None:
            self.is_stream_capturable = lambda stream: engine.trt.rtx

    def set_device_memory(self, address, size):
        self.trt.device.at(address, size)
        self.scratch = size

    def set_optimization_profile_async(self, number, stream):
        assert stream == self.trt.device.stream
        self.profile = number
        return True

    def set_input_shape(self, name, shape):
        assert not self.recorded, "a graph knows other shapes"
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, self.profile)
        self.trt.bindings += 1
        self.shapes[name] = tuple(shape)
        spans = zip(smallest, shape, largest, strict=True)
        return all(low <= dim <= high for low, dim, high in spans)

    def set_tensor_address(self, name, address):
        assert not self.recorded, "a graph knows other addresses"
        self.addresses[name] = address
        return address % 4 == 0

    def infer_shapes(self):
        return [name for name in self.engine.inputs if name not in self.shapes]

    def execute_async_v3(self, stream):
        assert stream == self.trt.device.stream
        assert self.scratch >= self.engine.device_memory_size_v2
        if "execute" in self.trt.fails:
            self.engine.log.log(Logger.Severity.ERROR, "cudaErrorLaunchFailure")
            return False
        if set(self.addresses) != set(self.engine.ports):
            return False
        self.recorded = self.recorded or self.trt.device.recording
        self.trt.profiles.append(self.profile)
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.trt.device.enqueue(lambda: self.run(shapes, addresses))
        return True

    def run(self, shapes, addresses):
        known = {}
        for name, port in self.engine.inputs.items():
            known |= dict(zip(port.shape, shapes[name], strict=True))
        binding = self.engine.session.io_binding()
        kept = []
        for name, port in self.engine.ports.items():
            dtype = np.dtype(_TYPES[_KINDS[port.type]])
            shape = [dim if isinstance(dim, int) else known[dim] for dim in port.shape]
            memory = self.trt.device.at(addresses[name], int(np.prod(shape)) * dtype.itemsize)
            if name not in self.engine.inputs and name.startswith("cache_") and self.trt.strays:
                memory = memory.copy()
            kept.append(memory)
            into = binding.bind_input if name in self.engine.inputs else binding.bind_output
            into(name, "cpu", 0, dtype.type, shape, memory.ctypes.data)
        self.engine.session.run_with_iobinding(binding)


def with_engines(bundle, folder, graphs, capacities, **changes):
    """A copy of a bundle that has engines of these graphs."""
    shutil.copytree(bundle.folder, folder)
    manifest, files, engines = bundle.manifest, {}, []
    for graph in graphs:
        has_cache = "segment" in graph or "draft" in graph
        for capacity in capacities if has_cache else (0,):
            built = Built(
                graph=graph,
                file=graph.removesuffix(".onnx")
                + (f"-{capacity}.engine" if capacity else ".engine"),
                capacity=capacity,
                sources={graph: manifest.files[graph].sha256},
                shapes=list(SHAPES),
                **(
                    {
                        "profile": "jetson-orin",
                        "api": "tensorrt",
                        "version": FakeTensorrt.__version__,
                        "capability": "",
                        "platform": "linux-x86_64",
                        "floats": "fp16",
                    }
                    | changes
                ),
            )
            about = {
                "graph": str(folder / graph),
                "capacity": capacity,
                "shapes": msgspec.to_builtins(built.shapes),
            }
            data = MAGIC + json.dumps(about).encode()
            (folder / built.file).write_bytes(data)
            files[built.file] = File(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
            engines.append(built)
    manifest = msgspec.structs.replace(manifest, engines=engines, files=manifest.files | files)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest.sealed()))
    return Bundle.open(folder)
