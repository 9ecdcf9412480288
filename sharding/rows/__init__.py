"""The `rows` engine: TorchRec's sharded tables, stepped by our row kernels."""
