"""A configuration and a case list -> a run folder, and all that it takes to go on after a stop."""
