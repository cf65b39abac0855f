"""Training exit heads and fitting confidences."""
