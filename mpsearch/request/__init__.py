"""What the user asks for: options, budgets, rules about layers, given bits."""
