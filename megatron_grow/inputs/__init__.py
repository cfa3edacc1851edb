"""What a user's input may be: types, ranges and names, and the one error for a mistake."""
