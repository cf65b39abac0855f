"""The cloud: scheduler, verifier and server loop."""
