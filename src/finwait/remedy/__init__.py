"""A finding → steps, and the reasons not to take them. Pure."""
