"""A bundle that chats, a cloud in a process of its own, and the target's own text."""

import shutil

import msgspec
import pytest

from bench.lab.processes import cloud
from edgespec.grammars import Grammars
from edgespec.manifest import Bundle
from edgespec.policies import GrammarLimits
from edgespec.sampling import Sampling
from edgespec.text import Codec, TextStream
from engines.alone import write_alone
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from export.publish import described, write_manifest

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def bundle(tiny_bundle, tmp_path_factory):
    """The tiny bundle with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "bundle"
    shutil.copytree(tiny_bundle.folder, folder)
    template = folder / "tokenizer/chat_template.jinja"
    template.write_text(TEMPLATE)
    files = tiny_bundle.manifest.files | {"tokenizer/chat_template.jinja": described(template)}
    write_manifest(folder, msgspec.structs.replace(tiny_bundle.manifest, files=files))
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def endpoint(bundle):
    with cloud(bundle.folder) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def alone(bundle):
    engine, codec = load_target(bundle, OrtSettings()), Codec(bundle)
    ends = bundle.manifest.text.end_ids

    grammars = Grammars.of(bundle, GrammarLimits())

    def write(prompt, most, sampling=Sampling(), *, chat=False, grammar=None):
        tokens = codec.encode(prompt, chat=chat)
        mask = grammar and grammars.start(grammar, ends)
        try:
            return write_alone(engine, tokens, most, sampling, ends, mask)
        finally:
            if mask:
                mask.close()

    yield write
    grammars.close()


@pytest.fixture(scope="module")
def text(bundle, alone):
    """The target's own text."""
    codec = Codec(bundle)

    def of(prompt, most, sampling=Sampling(), *, chat=False, grammar=None):
        stream = TextStream(codec, codec.encode(prompt, chat=chat))
        tokens = alone(prompt, most, sampling, chat=chat, grammar=grammar)
        return "".join(map(stream.push, tokens))

    return of
