"""lalref inside a framework: `lalref.adapters.torch`, `.torch_distributed`, `.jax`, `.tensorflow` and `.dask`.

Each is imported by its full name, and only then its framework. An adapter speaks its framework's conventions at
its own door and hands the same memory, 16-bit logits in float32, to an engine by the calls of `.calls`, which all
share; no arithmetic of the loss may come in.
"""
