"""What is written: text, tables, JSON, notes, progress and logs."""
