"""The user-mode network as the lab file has it; the engine is the core's."""
