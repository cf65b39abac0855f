"""From a checkpoint to a bundle: sources of weights, the graph builder, segments, engines."""
