"""Who calls, and what they may do and use: keys, web tokens, roles, tenants and their limits."""
