"""Comparison of methods that make a model follow an instruction: equal searches, fresh contents."""
