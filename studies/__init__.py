"""The measured study: sweeps as bash loops, and the tables and figures of their logs."""
