"""One scan -> mask, probability and doubt on its own grid; windows x draws x steps, streamed."""
