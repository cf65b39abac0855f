"""Making a bundle from checkpoints: sources of weights, graph builder, segments, engines."""
