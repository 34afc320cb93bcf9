"""The daemon's worker processes: messages, links, the arena, and the fleet that supervises them."""
