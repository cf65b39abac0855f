"""Checkpoint sources: Hugging Face folders, GGUF files, and what they hold."""
