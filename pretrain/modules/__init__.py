"""State and modules that several methods share: momentum encoders, queues and banks, patch masks."""
