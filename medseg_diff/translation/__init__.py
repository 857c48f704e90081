"""One scan -> another contrast, another domain or itself made finer or filled, on its own grid."""
