"""Runs the text of CUDA kernels on the CPU, so that they can be tested where there is no GPU."""
