"""Token counts of data sets, and their histograms."""
