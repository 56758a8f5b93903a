"""How exact a gateway is under overload, and when a process of it or its Redis goes: any gateway, by URL."""
