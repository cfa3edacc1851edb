"""How a model's init, rates and multipliers follow from its sizes; one file for each rule."""
