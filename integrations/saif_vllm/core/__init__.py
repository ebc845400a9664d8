"""The engine core's room: which request goes in, with which sets, and how its blocks are keyed."""
