"""A target's graph that runs one new token alone with the bits of several, made when it is loaded.

ONNX Runtime's CPU multiplies one row by a matrix as it multiplies many, with the same bits, if the
matrix is a weight. The products within `Attention` are of activations, and for a single query they
take another path, which rounds differently (by 4e-7; int8 activations amplify that to differences
of logits near 1). So only `Attention` gets two queries where there is one: the token's query twice,
of which the second counts, since the last query sees the last position. Two `Gather` nodes a layer
do that, with places that the engine gives; for more tokens they copy. Everything else runs one row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from engines.onnxruntime_backend.onnx_model import Node, read

ASKED, OWN = "queries.asked", "queries.own"
"""Inputs of the graph: tokens whose queries are asked, and the places of the results that count."""
_TOKENS_AXIS = {"axis": 2}


def with_two_queries(file: bytes) -> bytes | None:
    """Returns the graph of a file with at least two queries in each attention.

    Returns None if there is no attention, or one in another form.
    """
    try:
        model = read(file)
    except ValueError:
        return None
    nodes: list[Node] = []
    for node in model.nodes:
        if node.kind != "Attention":
            nodes.append(node)
            continue
        query, result = node.inputs[0], node.outputs[0]
        if "q_num_heads" in node.attributes or node.inputs[3:] != ["", "", "", "kv_lengths"]:
            return None  # queries as [batch, tokens, width], or a mask with a row for each
        node.inputs[0], node.outputs[0] = f"{query}.asked", f"{result}.asked"
        nodes += [
            Node("Gather", [query, ASKED], [node.inputs[0]], _TOKENS_AXIS),
            node,
            Node("Gather", [node.outputs[0], OWN], [result], _TOKENS_AXIS),
        ]
    if len(nodes) == len(model.nodes):
        return None
    model.nodes = nodes
    for name in (ASKED, OWN):
        model.add_integer_input(name)
    return model.written()


def query_places(width: int) -> Mapping[str, npt.NDArray[np.int64]]:
    """Returns the graph's inputs for rows of `width` tokens."""
    own = np.arange(width)
    return {ASKED: own, OWN: own} if width > 1 else {ASKED: np.array([0, 0]), OWN: np.array([1])}
