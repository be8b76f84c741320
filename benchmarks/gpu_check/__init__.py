"""``make gpu-check``: whether the kit works on this machine's GPU, and how fast; see `benchmarks.gpu_check.__main__`."""
