"""What the control plane, the worker and the client agree on. Pydantic and the standard library alone."""
