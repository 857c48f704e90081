"""A trained model and the truth: temperature, reverse variance, bits per dimension, couplings."""
