"""From the protocol's Structs to its JSON Schema, TypeScript types and reference tables."""
