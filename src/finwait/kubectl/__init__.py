"""``kubectl finwait``: one question to the agents of many nodes, by the user's own kubectl and login."""
