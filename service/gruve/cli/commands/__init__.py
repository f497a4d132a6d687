"""One file for each command, named as it is; the second words of a command are in its file."""
