"""A run, planned: layouts, time, memory and cost before it begins."""
