"""What users type and see: one file for each family of commands."""
