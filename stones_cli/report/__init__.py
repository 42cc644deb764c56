"""From records to what people and programs read.

A report is a record for JSON beside the tables and paragraphs that tell it: `tables.py` says what these are, one file
per command makes them, `emit.py` writes them. Only `terminal.py` knows rich.
"""
