"""Compiled functions of models: their inputs, tracing, and the comparison with the plain model.

`molequi.accelerate` is the interface. The parts are

- `inputs`: the weights of a model and the tensors of a structure, as arguments of a compiled function;
- `functions`: a compiled function, and the sizes for which it is known to be right;
- `tracing`: from a model to a compiled function;
- `trials`: the structures and weights on which a new function is tried;
- `comparison`: the largest difference between two predictions;
- `compiling`: all of these together.
"""
