"""Numbers from arrays: scores of masks and images, which files belong together, intervals."""
