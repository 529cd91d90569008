"""Weights of other people's PyTorch models, in and out: names, layouts, sizes.

* torch_files, safetensors_files, numpy_pickles: files, read without trusting them; pickles and untrusted serve these;
* sources: which of a file's dicts are the weights, and of what model;
* tables: rows of (their name, our path, layout), carried out both ways, strictly;
* vdt, dit, autoencoder: the tables, and what the shapes say about the model;
* positions: the position tables for other sizes of frames and clips.

Every name is used or reported as ignored with a reason, every parameter is filled, and all that does not fit is
reported at once.
"""
