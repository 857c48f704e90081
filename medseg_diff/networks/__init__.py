"""Networks: conditioners turn an image into context, denoisers use it at each step.

Nothing here knows a path, a sampler or a task. Tensors are (B, C, *S) with 2 or 3 spatial axes.
"""
