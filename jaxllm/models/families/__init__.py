"""Published families as choices of parts: their config.json and their tensors, both ways. No arrays, no layers."""
