"""What Megatron-LM says of a checkpoint, in its words."""
