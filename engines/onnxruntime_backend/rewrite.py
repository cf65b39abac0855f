"""A draft's graph in the operators that ONNX Runtime's CPU runs fastest, made when it is loaded.

| in the file | after the rewrite |
|---|---|
| split, rotate, write into the cache, attend, join: 13 nodes a layer | `GroupQueryAttention` |
| `Add` and `RMSNormalization` | `SkipSimplifiedLayerNormalization` |
| `Swish`, which ONNX Runtime expands to two nodes | `QuickGelu` |
| `ArgMax` beside `TopK` | the first of `TopK` |

`GroupQueryAttention` takes rows of any lengths with several new tokens each if it is told their
number (`query_seqlens`). An ONNX Runtime without that input refuses the graph; the caller then
loads the file as it is. Its bits for one token differ from those for several, so a target, whose
bits must not depend on the batch, is never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from engines.cache.pools import CAPACITIES, capacity_for
from engines.onnxruntime_backend.onnx_model import CONTRIB, Attribute, Node, OnnxModel, read

_HEADS_FIRST = (0, 2, 1, 3)
_INT32 = 6
_HEAD_DIM_DIVISOR = 16
"""Divisor of a head's size that `GroupQueryAttention` needs to rotate it."""


class _NoMatch(Exception):
    """A part of the graph has another form than the one that is replaced."""


class Rewrite:
    """A model whose nodes are being replaced."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.maker: dict[str, Node] = {}
        """Node that computes each value."""
        self.tables: set[str] = set()
        """Rotary tables, [positions, head_dim / 2]."""
        self._users: dict[str, list[Node]] = {}
        for node in model.nodes:
            self._index(node)

    def made_by(self, value: str, kind: str, **attributes: Attribute) -> Node:
        """Returns the node of `kind` with these attributes that computes `value`.

        Raises `_NoMatch` if there is none.
        """
        node = self.maker.get(value)
        if node is None or node.kind != kind or node.attributes != attributes:
            raise _NoMatch
        return node

    def only_user(self, value: str, kind: str) -> Node:
        """Returns the one node that reads `value`. Raises `_NoMatch` if it is not of `kind`."""
        users = self.users(value)
        if len(users) != 1 or users[0].kind != kind:
            raise _NoMatch
        return users[0]

    def users(self, value: str) -> list[Node]:
        return self._users.get(value, [])

    def replace(self, node: Node, *new: Node) -> None:
        """Puts nodes in the place of one."""
        at = self.model.nodes.index(node)
        self.model.nodes[at : at + 1] = new
        for one in new:
            self._index(one)

    def prune(self) -> None:
        """Removes nodes, initializers and inputs that no output depends on."""
        model = self.model
        used = {output.name for output in model.outputs}
        kept = []
        for node in reversed(model.nodes):
            if used.intersection(node.outputs):
                used.update(node.inputs)
                kept.append(node)
        model.nodes = kept[::-1]
        model.initializers = {n: stored for n, stored in model.initializers.items() if n in used}
        model.inputs = [stored for stored in model.inputs if stored.name in used]

    def _index(self, node: Node) -> None:
        self.maker.update(dict.fromkeys(filter(None, node.outputs), node))
        for name in filter(None, node.inputs):
            self._users.setdefault(name, []).append(node)


def rewritten(file: bytes, capacities: Sequence[int] = CAPACITIES) -> bytes | None:
    """Returns the rewritten graph of a file for slots of these capacities.

    Returns None if not every layer has the form of the table, or if a slot may hold more positions
    than the rotary tables.
    """
    try:
        rewrite = Rewrite(read(file))
    except ValueError:
        return None
    if not _replace_all(rewrite, "Attention", _group_attention):
        return None
    positions = {rewrite.model.initializers[name].shape[0] for name in rewrite.tables}
    if any(capacity_for(count, capacities) > count for count in positions):
        return None
    rewrite.model.nodes[:0] = _lengths(rewrite.model)
    _replace_all(rewrite, "RMSNormalization", _skip_norm)
    _replace_all(rewrite, "Swish", _quick_gelu)
    _replace_all(rewrite, "ArgMax", _first_of_top)
    rewrite.prune()
    return rewrite.model.written()


def _replace_all(rewrite: Rewrite, kind: str, replace: Callable[[Rewrite, Node], None]) -> bool:
    """Replaces the nodes of a kind. Returns False if there is none or one was not replaced."""
    found = [node for node in rewrite.model.nodes if node.kind == kind]
    replaced = 0
    for node in found:
        with suppress(_NoMatch):
            replace(rewrite, node)
            replaced += 1
    return 0 < len(found) == replaced


def _group_attention(rewrite: Rewrite, node: Node) -> None:
    """Replaces the nodes between a layer's projections and its joined heads."""
    if node.attributes != {"is_causal": 1} or node.inputs[3:] != ["", "", "", "kv_lengths"]:
        raise _NoMatch
    turned = rewrite.only_user(node.outputs[0], "Transpose")
    join = rewrite.only_user(turned.outputs[0], "Reshape")
    caches = node.inputs[1:3]
    writes = [_write(rewrite, node, cache) for cache in caches]
    queries, *tables = rewrite.made_by(node.inputs[0], "RotaryEmbedding").inputs
    keys, *same = rewrite.made_by(writes[0].inputs[1], "RotaryEmbedding").inputs
    if turned.attributes != {"perm": _HEADS_FIRST} or tables != same or tables[2] != "position_ids":
        raise _NoMatch
    parts = [_Part(rewrite, value) for value in (queries, keys, writes[1].inputs[1])]
    inputs = _packed(rewrite, [part.value for part in parts])
    inputs += [*(write.inputs[0] for write in writes), "rows.last", "rows.longest"]
    inputs += [*tables[:2], *[""] * 7, "rows.new"]
    heads = {"num_heads": parts[0].heads, "kv_num_heads": parts[1].heads, "do_rotary": 1}
    outputs = [join.outputs[0], *caches]
    fused = Node("GroupQueryAttention", inputs, outputs, heads, CONTRIB, node.name)
    for write in writes:
        rewrite.model.nodes.remove(write)
    rewrite.replace(join, *(join for part in parts for join in part.joins), fused)
    rewrite.tables.update(tables[:2])


def _write(rewrite: Rewrite, attention: Node, cache: str) -> Node:
    """Returns the write that makes a cache, which no other node reads."""
    node = rewrite.made_by(cache, "TensorScatter", axis=2)
    if node.inputs[2] != "write_indices" or rewrite.users(cache) != [attention]:
        raise _NoMatch
    return node


def _packed(rewrite: Rewrite, parts: list[str]) -> list[str]:
    """Returns queries, keys and values as the operator takes them: one value if they were split
    from one."""
    node = rewrite.maker.get(parts[0])
    if node and node.kind == "Split" and node.outputs == parts and node.attributes == {"axis": -1}:
        return [node.inputs[0], "", ""]
    return parts


class _Part:
    """Queries, keys or values as [batch, tokens, heads * head_dim]."""

    def __init__(self, rewrite: Rewrite, turned: str) -> None:
        """`turned` is the value as [batch, heads, tokens, head_dim]."""
        apart = rewrite.made_by(turned, "Transpose", perm=_HEADS_FIRST).inputs[0]
        self.joins: list[Node] = []
        """Nodes to add."""
        if norm := _norm(rewrite, apart):
            split = rewrite.made_by(norm.inputs[0], "Reshape")
            self.value = f"{apart}.joined"
            shape = rewrite.model.add_integers("joined", (0, 0, -1))
            self.joins.append(Node("Reshape", [apart, shape], [self.value]))
        else:
            split = rewrite.made_by(apart, "Reshape")
            self.value = split.inputs[0]
        *unchanged, self.heads, head_dim = rewrite.model.integers(split.inputs[1]) or (1, 0, 0)
        if unchanged != [0, 0] or head_dim % _HEAD_DIM_DIVISOR:
            raise _NoMatch


def _norm(rewrite: Rewrite, value: str) -> Node | None:
    node = rewrite.maker.get(value)
    return node if node and node.kind == "RMSNormalization" else None


def _lengths(model: OnnxModel) -> list[Node]:
    """Returns nodes that compute, as int32, each row's last position, its number of new tokens,
    and the largest length."""
    one = model.add_integers("rows.one", (1,))
    computed = {
        "last": Node("Sub", ["kv_lengths", one], ["rows.last.wide"]),
        "new": Node("Sub", ["kv_lengths", "write_indices"], ["rows.new.wide"]),
        "longest": Node("ReduceMax", ["kv_lengths"], ["rows.longest.wide"], {"keepdims": 0}),
    }
    to = {"to": _INT32}
    casts = [Node("Cast", [f"rows.{n}.wide"], [f"rows.{n}"], to) for n in computed]
    return [*computed.values(), *casts]


def _skip_norm(rewrite: Rewrite, node: Node) -> None:
    """Replaces a norm and the sum before it, which later nodes read too."""
    total = rewrite.made_by(node.inputs[0], "Add")
    model = rewrite.model
    epsilon = node.attributes.get("epsilon", 0.0)
    at = model.nodes.index(node)
    others = [
        model.nodes.index(user) for user in rewrite.users(total.outputs[0]) if user is not node
    ]
    if (
        node.attributes != {"axis": -1, "epsilon": epsilon}
        or any(place < at for place in others)
        or any(name in model.initializers for name in total.inputs)
    ):
        raise _NoMatch
    fused = Node(
        "SkipSimplifiedLayerNormalization",
        [*total.inputs, node.inputs[1]],
        [node.outputs[0], "", "", total.outputs[0]],
        {"epsilon": epsilon},
        CONTRIB,
        node.name,
    )
    rewrite.replace(node, fused)
    model.nodes.remove(total)


def _quick_gelu(rewrite: Rewrite, node: Node) -> None:
    if node.attributes:
        raise _NoMatch
    fused = Node("QuickGelu", node.inputs, node.outputs, {"alpha": 1.0}, CONTRIB, node.name)
    rewrite.replace(node, fused)


def _first_of_top(rewrite: Rewrite, node: Node) -> None:
    """Replaces the arg-max by the first of the top ids; ties go to the lowest id in both."""
    top = next((n for n in rewrite.users(node.inputs[0]) if n.kind == "TopK"), None)
    if node.attributes != {"axis": -1, "keepdims": 0} or not top or top.attributes != {"axis": -1}:
        raise _NoMatch
    first = rewrite.model.add_integers("head.first", 0)
    rewrite.model.nodes.remove(node)
    best = Node("Gather", [top.outputs[1], first], node.outputs, {"axis": 1}, name=node.name)
    rewrite.replace(top, top, best)
