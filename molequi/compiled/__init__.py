"""Compiled functions of models: their inputs, tracing, and the comparison with the plain model.

`molequi.accelerate` is the interface. The parts are

- `inputs`: the weights of a model and the tensors of a structure, as arguments of a compiled function;
- `functions`: a compiled function, and the sizes for which it is known to be right;
- `tracing`: from a model to one graph of plain operations;
- `machine_code`: from that graph to machine code, by the compiler of torch;
- `kept`, `keys`, `expressions`: compiled functions on disk, for other processes;
- `costs`: what compilation costs and gains;
- `trials`: the structures and weights on which a new function is tried;
- `comparison`: the largest difference between two predictions;
- `compiling`: all of these together.
"""
