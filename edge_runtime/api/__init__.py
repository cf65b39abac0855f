"""OpenAI's API on the device: any client of it talks to the target through edgespec."""
