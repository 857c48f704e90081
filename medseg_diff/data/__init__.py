"""Case lists and splits, fingerprint and plan, MONAI pipelines and their inverse, the sample."""
