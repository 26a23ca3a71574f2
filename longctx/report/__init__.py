"""All runs of a folder as one page, or as a table for spreadsheets or for text."""
