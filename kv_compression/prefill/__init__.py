"""Reading a prompt: what is processed at once, in how much memory, and what can be left out."""
