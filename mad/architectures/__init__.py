"""Networks: images in [0, 1] to logits; normalisation is inside the model. One file a family."""
