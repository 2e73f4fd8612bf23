"""Tools that a policy calls in its model's own tool-call format. To add one: a file here with a `Tool`, named in a recipe."""
