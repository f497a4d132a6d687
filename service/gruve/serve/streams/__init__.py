"""The streams of generated tokens: opening, sending, steering."""
