"""Many scans: which there are, what is done, one from files to files, where it is computed."""
