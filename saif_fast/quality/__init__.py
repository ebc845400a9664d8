"""Quality of replies beside obedience: repetition, fluency, topic, and what steering costs."""
