"""The participant side: a Flower ClientApp that trains whoever a message asks it to train."""
