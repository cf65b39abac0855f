"""Rendering of chat templates, which are Jinja programs that come with a bundle.

Jinja's sandbox keeps a template from other objects, but bounds neither its time nor its memory.
Here a trace function, which works in any thread, ends loops at a bound of CPU time. Text is bounded
where its parts are joined. Operands of filters, calls and operators are bounded before use, since
Python cannot interrupt these. A process of its own would do the same, but takes too long to start.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from edgespec.errors import BundleError

MAX_TEMPLATE_CHARS = 1 << 18
MAX_TEXT_CHARS = 10_000_000
"""Longest text that a template may make."""
MAX_OPERAND_PRODUCT = 100_000_000
"""Largest product of the two largest operands of one call: lengths, and values of integers."""
MAX_CPU_S = 2.0
_EVENTS_COUNT = 64
"""Events of the trace function between two looks at the time."""
_TEMPLATE_FILE = "<template>"
"""File name that jinja2 gives to the code of a template made from a string."""
_WIDE_FIELD = re.compile(r"\d{5}")
"""Width in a format string that would make a long text."""


ToolStyle = Literal["", "hermes", "llama", "unknown"]
"""How a template lets the model call tools. `hermes`: `{"name", "arguments"}` in `<tool_call>`, as
Qwen does too. `llama`: `{"name", "parameters"}`. Empty: it has no tools."""


def tool_style(template: str) -> ToolStyle:
    """The style of a template, by what it tells the model."""
    try:
        tree = _Environment().parse(template[:MAX_TEMPLATE_CHARS])
        names = jinja2.meta.find_undeclared_variables(tree)
    except (jinja2.TemplateError, RecursionError):
        return ""
    if "tools" not in names:
        return ""
    if "<tool_call>" in template:
        written_in_xml = "<function=" in template or "<arg_key>" in template
        return "unknown" if written_in_xml else "hermes"
    llama = "<|python_tag|>" in template or '"parameters": dictionary' in template
    return "llama" if llama else "unknown"


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos: str,
    eos: str,
    name: str = "the chat template",
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The Jinja template applied to `messages`; it ends where the assistant's answer begins.

    `tools` are functions in OpenAI's form.

    Raises `BundleError`, with `name`, if the template fails or exceeds the bounds.
    """
    values: dict[str, Any] = {
        "messages": list(messages),
        "add_generation_prompt": True,
        "bos_token": bos,
        "eos_token": eos,
    }
    if tools:
        values["tools"] = list(tools)
    try:
        if len(template) > MAX_TEMPLATE_CHARS:
            raise _TooLarge(f"it is longer than {MAX_TEMPLATE_CHARS} characters")
        compiled = _Environment().from_string(template)
        with _bounded_time():
            return compiled.render(values)
    except Exception as error:  # a template is a program that may fail in every way
        reason = str(error) or type(error).__name__
        raise BundleError(f"{name} failed: {reason}") from error


class _TooLarge(jinja2.TemplateError):
    pass


@contextmanager
def _bounded_time() -> Iterator[None]:
    """Ends a template that takes more than `MAX_CPU_S` of this thread in the block.

    An event is a line of the template's code or a call of any function from it.
    """
    end_s = time.thread_time() + MAX_CPU_S
    events = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal events
        del event, argument
        events += 1
        if events % _EVENTS_COUNT == 0 and time.thread_time() > end_s:
            raise _TooLarge(f"it did not end within {MAX_CPU_S:g} s")
        return trace if frame.f_code.co_filename == _TEMPLATE_FILE else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


class _Generator(CodeGenerator):
    """Compiles `a ~ b` to a call of the environment, which bounds the length."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  # jinja's name
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        self.filters["tojson"] = _to_json
        self.filters = {name: self._guarded(each) for name, each in self.filters.items()}
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins parts of the text. Raises `TemplateError` if they are too long."""
        kept, length = [], 0
        for part in parts:
            kept.append(part)
            length += len(part)
            if length > MAX_TEXT_CHARS:
                raise _TooLarge(f"it makes a text of more than {MAX_TEXT_CHARS} characters")
        return "".join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise _TooLarge(f"it uses the operator {operator}, which is not allowed")
        if operator == "*":
            _check((left, right))
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self.concat((left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:
        itself = getattr(function, "__self__", None)
        _check((itself, *args, *options.values()))
        if getattr(function, "__name__", "") in ("format", "format_map"):
            _check_format(itself)
        return super().call(context, function, *args, **options)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter with its operands checked."""

        @functools.wraps(function)  # keeps the marks of filters that take the environment
        def guarded(*args: Any, **options: Any) -> Any:
            _check((*args, *options.values()))
            if function is jinja2.filters.FILTERS["format"]:
                _check_format(args[0])
            return function(*args, **options)

        return guarded


def _check(operands: Iterable[object]) -> None:
    """Raises `TemplateError` if a call with these operands might take long or much memory."""
    largest, second = 1, 1
    for operand in operands:
        size = _size(operand)
        if size > second:
            largest, second = max(largest, size), min(largest, size)
    if largest * second > MAX_OPERAND_PRODUCT:
        raise _TooLarge("it would make too large a value")


def _size(operand: object) -> int:
    if isinstance(operand, int):
        return abs(operand)
    return len(operand) if isinstance(operand, str | list | tuple | dict) else 0


def _check_format(text: object) -> None:
    if isinstance(text, str) and _WIDE_FIELD.search(text):
        raise _TooLarge("it would make too large a value")


def _to_json(value: object, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=options.get("indent"))


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
