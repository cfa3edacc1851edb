"""Update rules, as torch optimizers."""
