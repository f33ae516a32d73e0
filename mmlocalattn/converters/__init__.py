"""Official checkpoints to ours: names and shapes in, our names out. One module per release."""
