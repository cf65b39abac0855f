"""The device: drafting and the client loop. Imports neither torch, transformers nor onnx."""
