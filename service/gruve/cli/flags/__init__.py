"""How flags are declared, and those that several commands take or that fill a file of their own."""
