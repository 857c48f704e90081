"""Domain adaptation: each method one small file, and an experiment that judges them alike."""
