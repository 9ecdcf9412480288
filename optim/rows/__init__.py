"""Row kernels: sum, perturb, restore and step the touched rows of embedding tables. Names load on first use."""
