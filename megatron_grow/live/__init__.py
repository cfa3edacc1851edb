"""One stage as this process holds it: model, optimizer, and the pieces of their state."""
