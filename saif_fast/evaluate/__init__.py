"""Which method makes a model follow an instruction: equal searches, disjoint contents."""
