"""Answers that follow random JSON schemas: valid, identical in every mode, and how fast."""
