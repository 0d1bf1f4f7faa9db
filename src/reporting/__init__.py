"""Reports on finished, running and failed runs: read what they left, compare, draw, and write one page.

``load`` reads run directories, ``compare`` and ``paper`` make figures of what was read, ``tables`` and ``charts`` show
them, ``page`` and ``markdown`` write them. Nothing here trains, and nothing needs torch.
"""
