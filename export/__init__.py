"""From a checkpoint to a bundle: sources of weights, graph builder, segments, engines."""
